from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsa.encode.live.frame_history import FrameHistory
from wsa.learn.configs.algorithms import OnlineDQNConfig
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import QNetwork
from wsa.learn.networks.nature import Ready
from wsa.learn.online import dqn
from wsa.learn.online.dqn import Draws
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner
from wsa.learn.online.replay_buffer import Replay
from wsa.learn.online.session import Session
from wsa.learn.training import checkpoint
from wsa.store.common.errors import DamagedError, UsageError

SMALL = OnlineDQNConfig(
    total_timesteps=600, num_envs=3, learning_starts=60, train_frequency=6, batch_size=8,
    target_network_frequency=60, buffer_size=300, log_frequency=30, save_frequency=150,
    learning_rate=1e-3, exploration_fraction=0.5,
)  # fmt: skip
NETWORK = NetworkConfig(FusionConfig(size=16), frame_stack=2, hidden=(16,))


pytestmark = pytest.mark.usefixtures("one_thread")


class Run:
    """A run of online DQN on the walk."""

    def __init__(
        self, walk: SimpleNamespace, folder: Path, config: OnlineDQNConfig = SMALL
    ) -> None:
        torch.manual_seed(1)
        self.config, self.folder = config, folder
        self.encoder = walk.Counting()
        self.table = Table(folder / "table", self.encoder)
        self.stage = EnvRunner([walk.Walk(config.num_envs)], self.table, 2, seed=3)
        columns = [slice(0, walk.states)]
        self.session = Session(self.stage, ["model"], columns, settled=False, seed=5)
        self.network = QNetwork(Inputs(((2, walk.states),)), 3, NETWORK)

    def train(self) -> Any:
        return dqn.train_dqn(self.config, self.session, self.network, self.folder)


@pytest.mark.parametrize("n_step", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("killed_at", [(450,), pytest.param((300, 600), marks=pytest.mark.slow)])
def test_a_killed_run_continues_as_if_nothing_had_happened(
    walk: SimpleNamespace, tmp_path: Path, read_metrics: Any, n_step: int,
    killed_at: tuple[int, ...], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("wsa.learn.online.env_runner.STRETCH", 20)
    config = msgspec.structs.replace(SMALL, n_step=n_step)
    whole = Run(walk, tmp_path / "whole", config)
    whole.train()
    wanted = read_metrics(tmp_path / "whole")
    real = checkpoint.save
    for step in killed_at:

        def save(folder: Path, at: int, *args: Any, step: int = step, **details: Any) -> Path:
            if at >= step:
                raise RuntimeError("killed")
            return real(folder, at, *args, **details)

        folder = tmp_path / str(step)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", save)
            with pytest.raises(RuntimeError, match="killed"):
                Run(walk, folder, config).train()
        run = Run(walk, folder, config)
        torch.manual_seed(99)
        run.train()
        assert read_metrics(folder) == wanted
        for name, tensor in whole.network.state_dict().items():
            assert torch.equal(tensor, run.network.state_dict()[name]), name
    assert Run(walk, tmp_path / "whole", config).train().steps == 0


@pytest.mark.slow
def test_dqn_learns_the_walk(walk: SimpleNamespace, tmp_path: Path, read_metrics: Any) -> None:
    config = msgspec.structs.replace(
        SMALL, total_timesteps=6000, target_network_frequency=200, train_frequency=3,
        learning_starts=200, gamma=0.9, buffer_size=6000, end_e=0.0,
    )  # fmt: skip
    run = Run(walk, tmp_path, config)
    run.train()
    lines = read_metrics(tmp_path)
    returns = [li["charts/episodic_return"] for li in lines if "charts/episodic_return" in li]
    assert np.mean(returns[:50]) < 2.2 and np.mean(returns[-100:]) > 2.8
    assert run.encoder.passes == len(run.table) <= walk.states
    epsilons = [(li["step"], li["charts/epsilon"]) for li in lines if "charts/epsilon" in li]
    for step, epsilon in epsilons:
        assert epsilon == pytest.approx(max(0.0, 1 - step / 3000))
    # What it has learnt is worth: a step before the reward 1, two steps 0.9, three 0.81.
    table = walk.Counting()(walk.picture(np.arange(walk.states)))
    stacks = torch.from_numpy(np.stack([table[1:4], table[1:4]], axis=1))
    best = run.network(stacks)[0]
    assert best.argmax(dim=1).tolist() == [1, 1, 1]
    assert best.amax(dim=1).tolist() == pytest.approx([0.81, 0.9, 1.0], abs=0.15)


def played(
    walk: SimpleNamespace, folder: Path, steps: int, *, life_loss: bool = False, **details: Any
) -> tuple[Replay, list[Any]]:
    """Random play in a replay, and the same as plain lists: (state, action, reward, dead, ended, next)."""
    table = Table(folder / "table", walk.Counting())
    env = walk.Walk(2)
    stage = EnvRunner([env], table, 3, seed=1)
    stage.begin()
    replay = Replay(folder, table, 2, steps, 3, 10_000, **details)
    told: list[Any] = []
    generator = np.random.default_rng(0)
    for _ in range(steps):
        before, first, state = stage.stacks, stage.first, env.state.copy()
        actions = generator.integers(3, size=2)
        step = stage.step(actions)
        replay.add(before, first, actions, step, life_loss)
        lost = (actions == 2) & ~step.ended & life_loss
        moved = state + np.array([-1, 1, 0])[actions]
        told.append(
            (state, actions, step.rewards, step.terminated | lost, step.ended, moved, first)
        )
    return replay, told


@pytest.mark.parametrize("life_loss", [False, True])
@pytest.mark.parametrize("n_step", [1, 3])
def test_transitions_are_the_literal_ones(
    walk: SimpleNamespace, tmp_path: Path, n_step: int, life_loss: bool
) -> None:
    steps = 120
    replay, told = played(
        walk, tmp_path, steps, life_loss=life_loss, n_step=n_step, gamma=0.9, clip=True
    )
    t, env = np.divmod(np.arange(2 * steps), 2)
    batch = replay.of(t, env)
    state, action, reward, dead, ended, moved, first = (
        np.array(x) for x in zip(*told, strict=True)
    )
    assert dead.any() and (ended & ~dead).any()

    def stack(at: int, i: int, depth: int) -> list[int]:
        begin = max(s for s in range(at + 1) if first[s, i])
        return [int(state[max(s, begin), i]) for s in range(at - depth + 1, at + 1)]

    for row, (at, i) in enumerate(zip(t, env, strict=True)):
        assert batch.states[row].argmax(dim=1).tolist() == stack(at, i, 3)
        assert batch.actions[row] == action[at, i]
        returned, discount, last = 0.0, 1.0, at
        for last in range(at, min(at + n_step, steps)):
            returned += discount * np.sign(reward[last, i])
            discount *= 0.9
            if dead[last, i] or ended[last, i]:
                break
        if dead[last, i]:
            discount = 0.0
        assert batch.rewards[row].item() == pytest.approx(returned)
        assert batch.discounts[row].item() == pytest.approx(discount)
        if not dead[last, i]:  # Truncation included: never the next episode's first frame.
            wanted = [*stack(last, i, 2), int(moved[last, i])]
            assert batch.following[row].argmax(dim=1).tolist() == wanted


def test_draws_see_the_newest_steps_only(walk: SimpleNamespace, tmp_path: Path) -> None:
    replay, _ = played(walk, tmp_path, 50)
    seen: set[int] = set()
    replay._window = 10
    real = replay.of
    replay.of = lambda t, env: (seen.update(t.tolist()), real(t, env))[1]  # type: ignore[method-assign]
    replay.draw(500, np.random.default_rng(0))
    assert seen == set(range(40, 50))


def test_the_share_of_stored_data_is_exact(walk: SimpleNamespace, tmp_path: Path) -> None:
    config = msgspec.structs.replace(SMALL, offline_fraction=0.5, offline_fraction_end=0.0)
    assert [config.stored_of(step) for step in (0, 150, 300, 600)] == [4, 3, 2, 0]
    run = Run(walk, tmp_path, config)
    replay, _ = played(walk, tmp_path / "stored", 60)

    class Stored:
        steps = np.arange(5)

    class FakeBatches:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def draw(self, size: int) -> Any:
            batch = replay.of(np.zeros(size, np.int64), np.zeros(size, np.int64))
            batch.actions[:] = 77
            return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dqn, "OfflineBatches", FakeBatches)
        stored: Any = Stored()
        run.session.stored = stored
        draws = Draws(config, run.session, tmp_path / "new")
    draws.replay = replay
    for step in (0, 150, 300, 600):
        batch = draws.draw(step)
        assert len(batch.states) == config.batch_size == len(batch.discounts)
        assert (batch.actions == 77).sum() == config.stored_of(step)


def see(table: Table, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Rows of frames, each the first of an episode."""
    count = len(frames)
    return table.see(FrameHistory(1).push(frames, np.ones(count, np.bool_), np.arange(count)))


def test_a_table_is_of_distinct_frames_and_grows(
    walk: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsa.learn.online.digest_table.GROWTH", 16)
    monkeypatch.setattr("wsa.learn.online.digest_table.RECENT", 3)
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (30, 4, 5, 3)).astype(np.uint8)

    class Corner:
        width, dtype, found, passes, places = 1, np.dtype(np.float32), 0, 0, (slice(0, 1),)

        def __init__(self) -> None:
            self.lookups = {1: self}

        def begin(self, digests: list[bytes], inputs: Any) -> Ready:
            self.passes += len(digests)
            return Ready(inputs(list(range(len(digests))))[:, 0, 0, :1].astype(np.float32))

    encoder: Any = Corner()
    table = Table(tmp_path, encoder)
    for _ in range(60):
        at = generator.integers(0, 30, size=5)
        rows = see(table, frames[at])
        np.testing.assert_array_equal(table.gather(rows)[:, 0], frames[at, 0, 0, 0])
    assert encoder.passes == len(table) == 30 and table.asked == 300 and table.known == 270
    table.flush()
    state = table.state()
    again = Table(tmp_path, encoder)
    again.restore(state)
    assert (see(again, frames) == see(table, frames)).all() and encoder.passes == 30
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"\1" * 64)):
        for name in ("embeddings.bin", "digests.bin"):
            shutil.copytree(tmp_path, tmp_path / "hurt")
            damage(tmp_path / "hurt" / name)
            with pytest.raises(DamagedError, match="does not match the run"):
                Table(tmp_path / "hurt", encoder).restore(state)
            shutil.rmtree(tmp_path / "hurt")


def test_a_replay_that_was_lost_is_not_continued_from(
    walk: SimpleNamespace, tmp_path: Path
) -> None:
    replay, _ = played(walk, tmp_path, 20)
    state = replay.state()
    replay.flush()
    again = Replay(tmp_path, replay._table, 2, 20, 3, 100)
    again.restore(state)
    assert torch.equal(again.of(np.arange(9), np.zeros(9, np.int64)).states,
                       replay.of(np.arange(9), np.zeros(9, np.int64)).states)  # fmt: skip
    (tmp_path / "replay.bin").unlink()
    with pytest.raises(DamagedError, match="does not hold the steps"):
        Replay(tmp_path, replay._table, 2, 20, 3, 100).restore(state)


@pytest.mark.parametrize(
    "change", [{"num_envs": 0}, {"gamma": 2.0}, {"offline_fraction": -0.1}, {"learning_rate": 0.0}]
)
def test_bad_options_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        msgspec.structs.replace(SMALL, **change).__post_init__()
