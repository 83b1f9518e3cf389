"""P1, P2, P3: writers are killed and write concurrently; nothing acknowledged is lost."""

import random
import re
import time

import pytest

from wsa.store.common import names
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

ALIASES = ["lite0", "vit"]


def plan(kit, numbers):
    """The segments, and the paths of all objects that `write_all` commits."""
    metas = [kit.remember(number)[0] for number in numbers]
    paths = []
    for meta in metas:
        paths += kit.segment_paths(meta)
        paths += [names.embedding_path(meta.game, kit.key(a), meta.segment) for a in ALIASES]
    return metas, paths


def acknowledged(child):
    return {line.split()[0] for line in child.said()}


def kill_often(kit, nursery, folder, moments, size, seed):
    """Kill writers; each continues the work of the previous one.

    Returns:
        Number of killed writers, and number of those that left files of an incomplete object.
    """
    rng = random.Random(seed)
    models = [kit.key(alias) for alias in ALIASES]
    numbers = list(range(size))
    metas, paths = plan(kit, numbers)
    committed = set()
    killed = torn = finished = attempts = 0
    while moments or committed:  # Fill one store after the other.
        url = str(folder / f"store{finished}")
        done = not moments or len(committed) == len(paths)
        if done:
            child = nursery.start("write_all", url, numbers, ALIASES)
            assert nursery.wait(child) == [0]
            assert acknowledged(child) == set(paths)
        else:
            moments -= 1
            if moments % 2:  # After some system calls; a segment takes about 150.
                child = nursery.start("write_all", url, numbers, ALIASES, rng.randrange(200))
            else:  # At a random time after its start, or after its first new object.
                child = nursery.start("write_all", url, numbers, ALIASES)
                assert child.wait_for(min(rng.choice([0, len(committed) + 1]), len(paths)), 60)
                time.sleep(rng.random() * 0.03)
                child.process.kill()
            killed += nursery.wait(child) == [-9]
        committed |= acknowledged(child)
        store = open_store(url, create=True)
        snapshot = take_snapshot(store)
        assert committed <= set(snapshot.commits), "an acknowledged commit is there"
        whole = kit.check_whole(snapshot, metas, models)
        assert whole == len(snapshot.commits)
        report = verify(store)
        assert not kit.damage_beside_models(report)
        left = leftovers(kit, store, snapshot)
        torn += bool(left)
        if done:
            # A dead writer leaves its attempt at one object, and what it was just writing.
            assert whole == len(paths)
            temporary = kit.paths(store, "tmp")
            assert report.leftovers == len(left) + len(temporary)
            attempts += len({attempt(path) for path in left})
            assert len(temporary) <= writer.PUTS_AT_ONCE * killed
            finished += 1
            committed = set()
    assert attempts <= killed and finished
    return killed, torn


def leftovers(kit, store, snapshot):
    """Files that lie where an object's would, and that no record names."""
    named = {f"{c.folder}/{file.name}" for c in snapshot.commits.values() for file in c.files}
    left = set(kit.paths(store, "games")) - named
    assert not {attempt(path) for path in left} & {c.folder for c in snapshot.commits.values()}
    return left


def attempt(path):
    """The folder of the attempt that a file belongs to."""
    match = re.match(r".*?/[0-9a-f]{16}(?=/)", path)
    assert match, path
    return match[0]


def test_a_killed_writer_loses_nothing_acknowledged(tmp_path, kit, nursery):
    killed, torn = kill_often(kit, nursery, tmp_path, 7, 4, 1)
    assert killed >= 4 and torn >= 1, "kills hit writers at work"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_writer_killed_200_times_loses_nothing_acknowledged(tmp_path, kit, nursery):
    killed, torn = kill_often(kit, nursery, tmp_path, 200, 20, 2)
    assert killed >= 120 and torn >= 50, "kills hit writers at work"


def write_side_by_side(kit, nursery, url, processes, rounds, size, seed):
    """Let processes write overlapping sets in different orders; kill one in every third round."""
    rng = random.Random(seed)
    everything = set()
    for turn in range(rounds):
        numbers = list(range(turn * size, (turn + 1) * size))
        metas, paths = plan(kit, numbers)
        children = [
            nursery.start(
                "write_all", url, rng.sample(numbers, rng.randrange(2, size + 1)), ALIASES
            )
            for _ in range(processes - 1)
        ]
        children.append(nursery.start("write_all", url, rng.sample(numbers, size), ALIASES))
        if turn % 3 == 2:
            time.sleep(rng.random() * 0.1)
            children[0].process.kill()
        codes = nursery.wait(*children)
        assert set(codes[1:]) == {0} and codes[0] in (0, -9)
        won = [line.split()[0] for child in children for line in child.said() if line.endswith("1")]
        assert len(won) == len(set(won)), "an object is made visible once"
        missing = set(paths) - set(won)
        words = [*map(kit.segment_paths, metas), *([path] for path in paths)] * (codes[0] == -9)
        assert any(missing <= set(committed) for committed in [[], *words]), (
            "only a last line may be lost"
        )
        everything |= set(paths)
        snapshot = take_snapshot(open_store(url))
        assert set(snapshot.commits) == everything
        kit.check_whole(snapshot, metas, [kit.key(a) for a in ALIASES])
    report = verify(open_store(url))
    assert not kit.damage_beside_models(report)
    assert report.objects == len(everything) == rounds * size * (2 + len(ALIASES))


def test_four_writers_make_every_object_once(tmp_path, kit, nursery):
    write_side_by_side(kit, nursery, str(tmp_path / "store"), 4, 1, 4, 1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_eight_writers_make_every_object_once_in_a_hundred_rounds(tmp_path, kit, nursery):
    write_side_by_side(kit, nursery, str(tmp_path / "store"), 8, 100, 6, 2)


def test_readers_beside_writers_see_whole_objects_only(tmp_path, kit, nursery):
    """P2: each snapshot contains, whole, what was acknowledged before it."""
    url = str(tmp_path / "store")
    numbers = list(range(6))
    metas, paths = plan(kit, numbers)
    children = [
        nursery.start("write_all", url, order, ALIASES) for order in (numbers, numbers[::-1])
    ]
    store = open_store(url, create=True)
    seen = [0]
    while seen[-1] < len(paths):
        before = set().union(*map(acknowledged, children))
        snapshot = take_snapshot(store)
        assert before <= set(snapshot.commits)
        seen.append(kit.check_whole(snapshot, metas, [kit.key(a) for a in ALIASES]))
        assert seen[-1] == len(snapshot.commits) >= seen[-2]
    assert nursery.wait(*children) == [0, 0]
    assert len(set(seen)) > 3, "snapshots were taken while the store grew"
