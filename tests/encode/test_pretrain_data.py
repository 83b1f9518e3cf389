"""Training data of the paper's encoders: which frames, how they are mixed, and what is held out."""

import collections

import numpy as np
import pytest
import torch

from wsa.encode.models.paper.base import gray
from wsa.learn.pretrain import data
from wsa.learn.pretrain.data import levels, scale
from wsa.learn.pretrain.trainee import TrainingInput
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.objects.snapshot import take_snapshot

ONE = TrainingInput(gray(84, 84))
STACK = TrainingInput(gray(20, 16), depth=5, one_game=True)
PAIR = TrainingInput(gray(20, 16), apart=19)


def test_screens_are_upright_and_whole():
    screen = np.zeros((1, 210, 160, 3), np.uint8)
    screen[0, :10] = 200  # Above.
    screen[0, :, :4] = 100  # At the left, over it.
    pixels = levels(screen, ONE)[0]
    assert pixels.shape == (84, 84)
    assert (pixels[0, 4:] == 200).all() and (pixels[:, 0] == 100).all() and not pixels[8:, 8:].any()
    tall = levels(screen, TrainingInput(gray(210, 160)))[0]
    assert tall.shape == (210, 160)
    np.testing.assert_array_equal(tall[9:11, 5], [200, 0])


def test_pixels_are_scaled_to_0_to_1():
    pixels = scale(torch.arange(256, dtype=torch.uint8), "cpu")
    np.testing.assert_allclose(pixels, np.arange(256) / 255, rtol=1e-6)


def test_a_batch_depends_on_the_seed_and_the_step(read_examples):
    examples = read_examples(ONE)
    batch = examples.draw(1, 7, 8)
    assert batch.shape == (8, 1, 84, 84) and batch.dtype == torch.uint8
    assert torch.equal(batch, examples.draw(1, 7, 8))
    assert not torch.equal(batch, examples.draw(1, 8, 8))
    assert not torch.equal(batch, examples.draw(2, 7, 8))


def count_games(examples, batches, size):
    """Draw batches, and count the examples of each game in each of them."""
    counts = []
    owner = {int(row): game for game, rows in examples.training.items() for row in rows}
    take = examples.take

    def count(rows, generator):
        assert len(set(rows.tolist())) == len(rows)
        counts.append(collections.Counter(owner[int(row)] for row in rows))
        return take(rows, generator)

    examples.take = count  # type: ignore[method-assign]
    for step in range(batches):
        examples.draw(1, step, size)
    return counts


def test_games_have_equal_shares_however_few_frames_one_has(read_examples):
    examples = read_examples(ONE)
    examples.training["Pong"] = examples.training["Pong"][:30]
    counts = count_games(examples, 10, 7)
    assert sum(counts, collections.Counter()) == {"Breakout": 35, "Pong": 35}
    assert all(len(batch) == 2 for batch in counts)


def test_a_batch_for_a_contrastive_loss_is_of_one_game(read_examples):
    counts = count_games(read_examples(STACK), 10, 6)
    assert [len(batch) for batch in counts] == [1] * 10
    assert sum(counts, collections.Counter()) == {"Breakout": 30, "Pong": 30}


def test_every_step_counts_the_same_whatever_the_length_of_its_episode(store, kit):
    """Four short episodes of one run, and two long ones of another."""
    for number in range(4):
        kit.add_segment(store, 0, env=number, steps=10, ends=(9,))
    kit.add_segment(store, 0, run="ba9876543210", steps=60, ends=(59,))
    kit.add_segment(store, 0, run="ba9876543210", env=1, steps=60, ends=(59,))
    snapshot = take_snapshot(store)
    chosen = data.choose(snapshot, ["Pong"], (), [ONE], 1 << 30)
    examples = data.read(snapshot, chosen.segments, ONE, 0.01)
    # One episode is held out; every step of the others is used once.
    held = len(examples.held_out["Pong"])
    assert held in (10, 60) and examples.steps == 160 - held
    rows = examples.training["Pong"]
    assert len(np.unique(rows)) == len(rows)


def test_whole_episodes_are_held_out(read_examples, atari_store):
    examples = read_examples(ONE)
    snapshot = take_snapshot(atari_store)
    chosen = data.choose(snapshot, ["Breakout", "Pong"], (), [ONE], 1 << 30)
    episodes = []  # Of each row.
    steps = 0
    for meta in chosen.segments:
        rows = snapshot.read_rows(meta)
        episodes += [(meta.game, meta.run, meta.env, int(e)) for e in rows["episode"]]
        steps += int((rows["action"] >= 0).sum())
    for game in ("Breakout", "Pong"):
        trained, held = (
            {episodes[row] for row in rows[game]} for rows in (examples.training, examples.held_out)
        )
        assert trained and held and not trained & held
        assert {episode[0] for episode in trained | held} == {game}
        assert examples.episodes[game] == (len(trained), len(held))
    rows = np.concatenate([*examples.training.values(), *examples.held_out.values()])
    assert len(rows) == len(set(rows)) == steps


def test_every_encoder_holds_out_the_same_episodes(read_examples):
    one, stack = read_examples(ONE), read_examples(STACK)
    for game in ("Breakout", "Pong"):
        assert set(stack.held_out[game]) <= set(one.held_out[game])
        assert set(stack.training[game]) <= set(one.training[game])


@pytest.mark.parametrize("training_input", [ONE, STACK, PAIR])
def test_validation_uses_all_held_out_examples_in_the_same_batches(training_input, read_examples):
    examples = read_examples(training_input)
    first, second = (list(examples.validation(7)) for _ in range(2))
    for (game, batch), (other, again) in zip(first, second, strict=True):
        assert game == other and torch.equal(batch, again) and len(batch) <= 7
    for game, rows in examples.held_out.items():
        validated = torch.cat([batch for batch_game, batch in first if batch_game == game])
        expected = examples.take(rows, np.random.default_rng(0))
        at = 0 if training_input.apart else -1
        assert sorted(frame.numpy().tobytes() for frame in validated[:, at]) == sorted(
            frame.numpy().tobytes() for frame in expected[:, at]
        )


def test_what_does_not_fit_into_memory_is_left_out_evenly(atari_store):
    snapshot = take_snapshot(atari_store)
    whole = data.choose(snapshot, ["Breakout", "Pong"], (), [ONE], 1 << 30)
    assert whole.left_out == 0 and whole.frames == sum(m.frames for m in whole.segments)
    some = data.choose(snapshot, ["Breakout", "Pong"], (), [ONE, STACK], 150 * 84 * 84)
    assert some.frames + some.left_out == whole.frames and some.left_out > 0
    for game in ("Breakout", "Pong"):
        assert 40 < sum(m.frames for m in some.segments if m.game == game) <= 75
    assert set(some.segments) < set(whole.segments)
    with pytest.raises(UsageError, match="--memory-gb"):
        data.choose(snapshot, ["Breakout", "Pong"], (), [ONE], 5000)


def test_a_missing_policy_or_game_is_named(atari_store):
    snapshot = take_snapshot(atari_store)
    with pytest.raises(
        MissingError, match="no frames of Pong played by expert \\(available: random"
    ):
        data.choose(snapshot, ["Pong"], ["expert"], [ONE], 1 << 30)
    with pytest.raises(MissingError, match="wsa collect --game Qbert"):
        data.choose(snapshot, ["Qbert"], (), [ONE], 1 << 30)


def test_training_needs_two_episodes(store, kit):
    kit.add_segment(store, 0)
    snapshot = take_snapshot(store)
    chosen = data.choose(snapshot, ["Pong"], (), [ONE], 1 << 30)
    with pytest.raises(MissingError, match="has 1 episodes, but training needs at least two"):
        data.read(snapshot, chosen.segments, ONE, 0.2)


def test_the_digest_of_the_data_depends_on_the_segments(atari_store):
    snapshot = take_snapshot(atari_store)
    segments = snapshot.segments()
    digest = data.data_digest(snapshot, segments)
    assert digest == data.data_digest(take_snapshot(atari_store), segments)
    assert digest != data.data_digest(snapshot, segments[1:])
