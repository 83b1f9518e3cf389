"""The frames that encoders are trained on: which, how they are mixed, and what is held out."""

from __future__ import annotations

import collections
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch

from wsa.encode.models.paper.base import TrainingInput, grey
from wsa.learn.pretrain import data
from wsa.learn.pretrain.data import Examples, levels, scale
from wsa.store.backends.base import Backend
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.objects.snapshot import take_snapshot

ONE = TrainingInput(grey(84, 84))
STACK = TrainingInput(grey(20, 16), depth=5, one_game=True)
PAIR = TrainingInput(grey(20, 16), apart=19)


def test_screens_are_upright_and_whole() -> None:
    screen = np.zeros((1, 210, 160, 3), np.uint8)
    screen[0, :10] = 200  # Above.
    screen[0, :, :4] = 100  # At the left, over it.
    seen = levels(screen, ONE)[0]
    assert seen.shape == (84, 84)
    assert (seen[0, 4:] == 200).all() and (seen[:, 0] == 100).all() and not seen[8:, 8:].any()
    tall = levels(screen, TrainingInput(grey(210, 160)))[0]
    assert tall.shape == (210, 160)
    np.testing.assert_array_equal(tall[9:11, 5], [200, 0])


def test_numbers_are_from_0_to_1_once() -> None:
    found = scale(torch.arange(256, dtype=torch.uint8), "cpu")
    np.testing.assert_allclose(found, np.arange(256) / 255, rtol=1e-6)


def test_a_batch_is_the_same_for_the_same_step_and_another_for_another(
    examples_of: Callable[..., Examples],
) -> None:
    examples = examples_of(ONE)
    batch = examples.draw(1, 7, 8)
    assert batch.shape == (8, 1, 84, 84) and batch.dtype == torch.uint8
    assert torch.equal(batch, examples.draw(1, 7, 8))
    assert not torch.equal(batch, examples.draw(1, 8, 8))
    assert not torch.equal(batch, examples.draw(2, 7, 8))


def drawn(examples: Examples, batches: int, size: int) -> list[collections.Counter[str]]:
    """How many examples of each game some batches have; what is drawn is found by its rows."""
    found: list[collections.Counter[str]] = []
    owner = {int(row): game for game, rows in examples.training.items() for row in rows}
    take = examples.take

    def note(rows: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
        assert len(set(rows.tolist())) == len(rows)
        found.append(collections.Counter(owner[int(row)] for row in rows))
        return take(rows, generator)

    examples.take = note  # type: ignore[method-assign]
    for step in range(batches):
        examples.draw(1, step, size)
    return found


def test_games_have_the_same_share(examples_of: Callable[..., Examples]) -> None:
    examples = examples_of(ONE)
    examples.training["Pong"] = examples.training["Pong"][:30]  # However little there is of one.
    found = drawn(examples, 10, 7)
    assert sum(found, collections.Counter()) == {"Breakout": 35, "Pong": 35}
    assert all(len(batch) == 2 for batch in found)


def test_a_batch_whose_looks_are_told_apart_is_of_one_game(
    examples_of: Callable[..., Examples],
) -> None:
    found = drawn(examples_of(STACK), 10, 6)
    assert [len(batch) for batch in found] == [1] * 10
    assert sum(found, collections.Counter()) == {"Breakout": 30, "Pong": 30}


def test_policies_are_mixed_by_frame_and_not_by_episode(store: Backend, kit: ModuleType) -> None:
    """Four short games of one policy and one long game of another: all steps count the same."""
    for number in range(4):
        kit.add_segment(store, 0, env=number, steps=10, ends=(9,))
    kit.add_segment(store, 0, run="ba9876543210", steps=60, ends=(59,))
    kit.add_segment(store, 0, run="ba9876543210", env=1, steps=60, ends=(59,))
    snapshot = take_snapshot(store)
    chosen = data.choose(snapshot, ["Pong"], (), [ONE], 1 << 30)
    examples = data.read(snapshot, chosen.segments, ONE, 0.01)
    # One episode is held out; every step of the others is there once.
    held = len(examples.held_out["Pong"])
    assert held in (10, 60) and examples.steps == 160 - held
    rows = examples.training["Pong"]
    assert len(np.unique(rows)) == len(rows)


def test_whole_episodes_are_held_out(examples_of: Callable[..., Examples], played: Backend) -> None:
    examples = examples_of(ONE)
    snapshot = take_snapshot(played)
    chosen = data.choose(snapshot, ["Breakout", "Pong"], (), [ONE], 1 << 30)
    names: list[tuple[str, str, int, int]] = []
    steps = 0
    for meta in chosen.segments:
        rows = snapshot.read_rows(meta)
        names += [(meta.game, meta.run, meta.env, int(e)) for e in rows["episode"]]
        steps += int((rows["action"] >= 0).sum())
    for game in ("Breakout", "Pong"):
        trained, held = (
            {names[row] for row in rows[game]} for rows in (examples.training, examples.held_out)
        )
        assert trained and held and not trained & held
        assert {name[0] for name in trained | held} == {game}
        assert examples.episodes[game] == (len(trained), len(held))
    found = np.concatenate([*examples.training.values(), *examples.held_out.values()])
    assert len(found) == len(set(found)) == steps


def test_every_encoder_holds_out_the_same_episodes(
    examples_of: Callable[..., Examples],
) -> None:
    one, stack = examples_of(ONE), examples_of(STACK)
    for game in ("Breakout", "Pong"):
        assert set(stack.held_out[game]) <= set(one.held_out[game])
        assert set(stack.training[game]) <= set(one.training[game])


@pytest.mark.parametrize("training_input", [ONE, STACK, PAIR])
def test_a_validation_sees_all_that_is_held_out_in_the_same_batches_each_time(
    training_input: TrainingInput, examples_of: Callable[..., Examples]
) -> None:
    examples = examples_of(training_input)
    first, second = (list(examples.validation(7)) for _ in range(2))
    for (game, batch), (other, again) in zip(first, second, strict=True):
        assert game == other and torch.equal(batch, again) and len(batch) <= 7
    for game, rows in examples.held_out.items():
        seen = torch.cat([batch for of, batch in first if of == game])
        newest = examples.take(rows, np.random.default_rng(0))
        at = 0 if training_input.apart else -1
        assert sorted(f.numpy().tobytes() for f in seen[:, at]) == sorted(
            f.numpy().tobytes() for f in newest[:, at]
        )


def test_more_than_fits_is_left_out_the_same_share_of_each_game(played: Backend) -> None:
    snapshot = take_snapshot(played)
    whole = data.choose(snapshot, ["Breakout", "Pong"], (), [ONE], 1 << 30)
    assert whole.left_out == 0 and whole.frames == sum(m.frames for m in whole.segments)
    some = data.choose(snapshot, ["Breakout", "Pong"], (), [ONE, STACK], 240 * 84 * 84)
    assert some.frames + some.left_out == whole.frames and some.left_out > 0
    for game in ("Breakout", "Pong"):
        assert 60 < sum(m.frames for m in some.segments if m.game == game) <= 120
    assert set(some.segments) < set(whole.segments)
    with pytest.raises(UsageError, match="--memory-gb"):
        data.choose(snapshot, ["Breakout", "Pong"], (), [ONE], 5000)


def test_policies_and_games_that_are_not_there(played: Backend) -> None:
    snapshot = take_snapshot(played)
    with pytest.raises(
        MissingError, match="no frames of Pong played by expert \\(available: random"
    ):
        data.choose(snapshot, ["Pong"], ["expert"], [ONE], 1 << 30)
    with pytest.raises(MissingError, match="wsa collect --game Qbert"):
        data.choose(snapshot, ["Qbert"], (), [ONE], 1 << 30)


def test_one_episode_cannot_be_split(store: Backend, kit: ModuleType) -> None:
    kit.add_segment(store, 0)
    snapshot = take_snapshot(store)
    chosen = data.choose(snapshot, ["Pong"], (), [ONE], 1 << 30)
    with pytest.raises(MissingError, match="has 1 episodes, but training needs at least two"):
        data.read(snapshot, chosen.segments, ONE, 0.2)


def test_the_digest_of_the_data_is_that_of_its_records(played: Backend, store: Backend) -> None:
    snapshot = take_snapshot(played)
    segments = snapshot.segments()
    digest = data.data_digest(snapshot, segments)
    assert digest == data.data_digest(take_snapshot(played), segments)
    assert digest != data.data_digest(snapshot, segments[1:])
