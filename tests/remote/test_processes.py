"""P1, P3 on a bucket: processes write the same objects, and some are killed."""

import random

import pytest

from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import take_snapshot

ALIASES = ["vit", "resnet"]


@pytest.fixture
def crowd(faulty, url, nursery):
    """A nursery whose processes reach the bucket through the proxy; without faults yet."""
    return nursery


@pytest.mark.parametrize(
    ("writers", "segments", "rounds"),
    [(3, 2, 1), pytest.param(8, 3, 100, marks=pytest.mark.slow)],
)
def test_overlapping_writers_commit_each_object_once_despite_faults(
    crowd, faulty, url, backend, kit, writers, segments, rounds
):
    for turn in range(rounds):
        rng = random.Random(turn)
        faulty.clear(
            lambda request, rng=rng: (
                rng.choice(("503", "lost", "dropped", "cut")) if rng.random() < 0.05 else None
            )
        )
        numbers = list(range(turn * segments, (turn + 1) * segments))
        plans = [rng.sample(numbers, segments) for _ in range(writers)]
        children = [crowd.start("write_all", url, plan, ALIASES) for plan in plans]
        assert crowd.wait(*children) == [0] * writers
        replies = [line.rsplit(" ", 1) for child in children for line in child.said()]
        won = [path for path, mark in replies if mark == "1"]
        # The process that commits the rows of a segment reports its frames too.
        assert len(won) == len(set(won)) == segments * 4
        metas = [kit.remember(number)[0] for number in numbers]
        keys = [kit.key(alias) for alias in ALIASES]
        assert kit.check_whole(take_snapshot(backend), metas, keys) == segments * 4
    faulty.clear()
    report = verify(backend)
    assert (kit.damage_beside_models(report), report.leftovers) == ([], 0)
    assert report.objects == rounds * segments * 4


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4, 40])
def test_killed_writers_lose_nothing_committed(crowd, url, backend, kit, kills):
    rng = random.Random(kills)
    numbers = list(range(6))
    promised = set()
    for _ in range(kills):
        child = crowd.start("write_all", url, numbers, ALIASES)
        child.wait_for(rng.randrange(1, 24), 20)
        child.process.kill()
        crowd.wait(child)
        promised |= {line.rsplit(" ", 1)[0] for line in child.said()}
        assert promised <= take_snapshot(backend).commits.keys()
    child = crowd.start("write_all", url, numbers, ALIASES)
    assert crowd.wait(child) == [0]
    metas = [kit.remember(number)[0] for number in numbers]
    keys = [kit.key(alias) for alias in ALIASES]
    assert kit.check_whole(take_snapshot(backend), metas, keys) == 24
    assert not kit.damage_beside_models(verify(backend))
