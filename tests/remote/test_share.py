"""Labs share objects through a bucket: what one pushes, another pulls."""

import json

import command_kit
import pytest

from wsa.store.exchange import sync
from wsa.store.maintenance.verify import verify
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

# Faults of successive requests.
BAD = (*[None] * 13, "503", "lost", "dropped", "cut")


@pytest.fixture
def lab(store, kit):
    """A store with a segment, encoded by two models."""
    models = [kit.key("lite0"), kit.key("vit")]
    for key in models:
        kit.add_model(store, key)
        kit.add_embedding(store, kit.remember(0)[0], key)
    kit.add_segment(store, 0)
    return store


def run(*arguments):
    """Run wsa with --json; its exit code and output."""
    code, out, err = command_kit.run(*arguments, "--json")
    assert out, err
    return code, json.loads(out)


def hold_the_same(one, other):
    """Whether two stores hold the same objects, apart from the names of their attempts."""

    def describe(backend):
        commits = take_snapshot(backend).commits.items()
        return {path: (c.meta, c.files, c.author, c.time) for path, c in commits}

    return describe(one) == describe(other)


def test_push_to_a_bucket_and_pull_from_it(lab, url, tmp_path):
    code, planned = run("push", url, "--store", lab.url, "--dry-run")
    code, pushed = run("push", url, "--store", lab.url)
    assert (code, pushed) == (0, planned)
    assert (pushed["objects"], pushed["to"]) == (6, url)
    assert hold_the_same(open_store(url), lab)
    assert run("push", url, "--store", lab.url)[1]["present"] == 6
    code, pulled = run("pull", url, "--store", tmp_path / "mine", "--no-frames")
    assert (code, pulled["objects"], pulled["frames"]) == (0, 5, 0)
    code, rest = run("merge", url, "--store", tmp_path / "mine")
    assert (code, rest["objects"], rest["present"]) == (0, 1, 5)
    mine = open_store(str(tmp_path / "mine"))
    assert hold_the_same(mine, lab)
    assert verify(mine).damage == ()
    # From one bucket to another place in it.
    code, pushed = run("push", f"{url}2", "--store", url)
    assert (code, pushed["objects"]) == (0, 6)
    assert hold_the_same(open_store(f"{url}2"), lab)


@pytest.mark.slow
def test_push_and_pull_survive_faults(store, kit, url, tmp_path, faulty):
    kit.add_model(store, kit.key())
    kit.add_embedding(store, kit.add_segment(store)[0], kit.key())
    target = open_store(url, create=True)
    faulty.clear(lambda request: BAD[request.number % len(BAD)])
    have = take_snapshot(store)
    done = sync.copy(have, target, sync.plan_sync(have, take_snapshot(target)))
    back = open_store(str(tmp_path / "mine"), create=True)
    there = take_snapshot(target)
    again = sync.copy(there, back, sync.plan_sync(there, take_snapshot(back)))
    faulty.clear()
    assert done.damaged == again.damaged == ()
    assert len(done.objects) == len(again.objects) == 4
    assert hold_the_same(target, store) and hold_the_same(back, store)
    assert verify(target).damage == ()
