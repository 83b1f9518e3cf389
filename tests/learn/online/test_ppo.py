from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsa.learn.configs.algorithms import PPOConfig
from wsa.learn.configs.fusions import FusionConfig, make_fusion_config
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs.atari import group_sizes
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import ActorCritic, Torso
from wsa.learn.networks.recurrent import RecurrentActorCritic
from wsa.learn.online import ppo
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner
from wsa.learn.online.ppo import advantages, minibatches
from wsa.learn.online.session import Session
from wsa.store.common.errors import UsageError

SMALL = PPOConfig(
    total_timesteps=768, num_envs=4, num_steps=16, num_minibatches=2, update_epochs=2,
    learning_rate=1e-3, save_frequency=192,
)  # fmt: skip
NETWORK = NetworkConfig(FusionConfig(size=16), frame_stack=2, hidden=(16,))


pytestmark = pytest.mark.usefixtures("one_thread")


class Run:
    """A run of PPO on the walk."""

    def __init__(
        self, walk: SimpleNamespace, folder: Path, config: PPOConfig = SMALL, groups: int = 1
    ) -> None:
        torch.manual_seed(1)
        self.config, self.folder = config, folder
        self.encoder = walk.Counting()
        self.table = Table(folder / "table", self.encoder)
        played = [walk.Walk(n) for n in group_sizes(config.num_envs, groups)]
        self.stage = EnvRunner(played, self.table, 2, seed=3)
        self.session = Session(self.stage, ["model"], [slice(0, walk.states)], settled=False)
        self.network: Any = ActorCritic(Inputs(((2, walk.states),)), 3, NETWORK)
        if config.recurrent:
            self.network = RecurrentActorCritic(self.network.torso, 3)

    def train(self, on_update: Any = lambda step, line: None) -> Any:
        return ppo.train_ppo(
            self.config, self.session, self.network, self.folder, on_line=on_update
        )


def test_a_policy_that_may_be_dead_tells_whether_it_is(
    walk: SimpleNamespace, tmp_path: Path, read_metrics: Any
) -> None:
    config = msgspec.structs.replace(SMALL, total_timesteps=128)
    run = Run(walk, tmp_path, config)
    network = msgspec.structs.replace(NETWORK, fusion=make_fusion_config(preset="paper", size=16))
    run.network = ActorCritic(Inputs(((2, walk.states),)), 3, network)
    run.train()
    told = [line["wsa/dead_rows"] for line in read_metrics(tmp_path) if "wsa/dead_rows" in line]
    assert len(told) == 1 and 0 <= told[0] <= 1  # None of the rollout that only settles.


def test_the_clipping_range_falls_to_nothing_if_it_is_to(
    walk: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    update = ppo.update_policy

    def spy(config: PPOConfig, *rest: Any) -> Any:
        seen.append(config.clip_coef)
        return update(config, *rest)

    monkeypatch.setattr(ppo, "update_policy", spy)
    for name, anneal in (("still", False), ("falls", True)):
        config = msgspec.structs.replace(SMALL, total_timesteps=256, anneal_clip=anneal)
        Run(walk, tmp_path / name, config).train()
    assert seen[:3] == [0.1] * 3  # The first rollout of four settles what is normalized with.
    assert seen[3:] == pytest.approx([0.075, 0.05, 0.025])


def stop_at(step: int) -> Any:
    def on_update(now: int, line: Any) -> None:
        if now >= step:
            raise RuntimeError("killed")

    return on_update


@pytest.mark.parametrize(
    "killed_at", [(320,), pytest.param((64, 192, 704), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("recurrent", "groups"),
    [
        (False, 2),
        *(pytest.param(*p, marks=pytest.mark.slow) for p in ((True, 1), (False, 1), (True, 2))),
    ],
)
def test_a_killed_run_continues_as_if_nothing_had_happened(
    walk: SimpleNamespace, tmp_path: Path, read_metrics: Any, recurrent: bool,
    groups: int, killed_at: tuple[int, ...], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        "wsa.learn.online.env_runner.STRETCH", 20
    )  # Several stretches in each environment.
    config = msgspec.structs.replace(SMALL, recurrent=recurrent)
    whole = Run(walk, tmp_path / "whole", config, groups)
    whole.train()
    wanted = read_metrics(tmp_path / "whole")
    for step in killed_at:
        folder = tmp_path / str(step)
        with pytest.raises(RuntimeError, match="killed"):
            Run(walk, folder, config, groups).train(stop_at(step))
        run = Run(walk, folder, config, groups)
        if step > SMALL.save_frequency:
            torch.manual_seed(99)  # What a process begins with matters to none that continues.
        run.train()
        assert read_metrics(folder) == wanted
        for name, tensor in whole.network.state_dict().items():
            assert torch.equal(tensor, run.network.state_dict()[name]), name
    assert Run(walk, tmp_path / "whole", config, groups).train().steps == 0


@pytest.mark.parametrize("recurrent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ppo_learns_the_walk(
    walk: SimpleNamespace, tmp_path: Path, read_metrics: Any, recurrent: bool
) -> None:
    steps, rate = (8192, 2e-3) if recurrent else (4096, 4e-3)
    config = msgspec.structs.replace(
        SMALL, total_timesteps=steps, num_envs=8, recurrent=recurrent, learning_rate=rate
    )
    Run(walk, tmp_path, config).train()
    returns = [
        l["charts/episodic_return"] for l in read_metrics(tmp_path) if "charts/episodic_return" in l
    ]
    assert np.mean(returns[:100]) < 2 and np.mean(returns[-100:]) > 2.8
    assert set(returns) == {0.0, 3.0}  # Raw, though trained on signs.


def test_every_distinct_frame_goes_through_the_model_once(
    walk: SimpleNamespace, tmp_path: Path, read_metrics: Any
) -> None:
    run = Run(walk, tmp_path)
    played = run.train()
    assert run.encoder.passes == len(run.table) == walk.states
    assert played.passes == run.encoder.passes and played.steps == SMALL.total_timesteps
    line = [l for l in read_metrics(tmp_path) if "cache/hit_rate" in l][-1]
    assert line["cache/backbone_passes"] == run.encoder.passes
    assert line["cache/hit_rate"] == 1 - run.encoder.passes / run.table.asked


class Fixed(torch.nn.Module):
    """Values a frame at its state's number; any action."""

    def forward(self, stacks: torch.Tensor) -> Any:
        values = stacks[:, -1].float() @ torch.arange(float(stacks.shape[2]))
        return torch.zeros(len(stacks), 3), values, None


@pytest.mark.parametrize("life_loss", [False, True])
def test_what_follows_is_the_true_next_state(
    walk: SimpleNamespace, tmp_path: Path, life_loss: bool
) -> None:
    """Truncation bootstraps from the last frame, never from the reset one; an end from nothing."""
    config = msgspec.structs.replace(SMALL, num_steps=60, terminal_on_life_loss=life_loss)
    run = Run(walk, tmp_path, config)
    (env,) = run.stage._played
    shown: list[Any] = []
    real = env.step

    def step(actions: NDArray[np.int64]) -> Any:
        lives = env.lives.copy()
        moved = env.state + np.array([-1, 1, 0])[actions]
        found = real(actions)
        lost = (actions == 2) & ~(found[2] | found[3])
        assert (lives[lost] - 1 == env.lives[lost]).all()
        shown.append((moved, found[1], found[2], found[3], lost))
        return found

    env.step = step
    run.stage.begin()
    fixed: Any = Fixed()

    class Silent:
        def write(self, *_: Any) -> None: ...

    silent: Any = Silent()
    rollout, _ = ppo.play(config, run.session, fixed, None, "cpu", silent)
    moved, rewards, terminated, truncated, lost = map(np.array, zip(*shown, strict=True))
    assert truncated.any() and terminated.any() and lost.any()
    dead = terminated | (lost & life_loss)
    np.testing.assert_array_equal(rollout.terminated, dead)
    np.testing.assert_array_equal(rollout.ended, dead | truncated)
    alive = ~dead
    np.testing.assert_array_equal(rollout.following[torch.from_numpy(alive)], moved[alive])
    np.testing.assert_array_equal(rollout.rewards, np.sign(rewards))
    assert len(shown) == config.num_steps  # No step is a reset.
    # Literally, backwards.
    found = advantages(config, rollout)
    for i in range(config.num_envs):
        later = 0.0
        for t in reversed(range(config.num_steps)):
            worth = 0.0 if dead[t, i] else config.gamma * moved[t, i]
            delta = np.sign(rewards[t, i]) + worth - float(rollout.values[t, i])
            keep = not (dead[t, i] or truncated[t, i])
            later = delta + config.gamma * config.gae_lambda * keep * later
            assert found[t, i].item() == pytest.approx(later, abs=1e-4)


def test_groups_play_what_they_would_together(walk: SimpleNamespace, tmp_path: Path) -> None:
    """An environment's play depends on its number alone, and a frame is embedded once for all."""
    apart, together = (
        EnvRunner(played, Table(tmp_path / str(len(played)), walk.Counting()), 3, seed=1)
        for played in ([walk.Walk(2), walk.Walk(1)], [walk.Walk(3)])
    )
    assert apart.groups == [slice(0, 2), slice(2, 3)] and apart.num_envs == 3
    apart.begin()
    together.begin()
    generator = np.random.default_rng(0)
    for _ in range(60):
        actions = generator.integers(3, size=3)
        whole = together.step(actions)
        parts = [apart.step(actions[group], i) for i, group in enumerate(apart.groups)]
        for name in ("rewards", "terminated", "truncated", "life_lost"):
            found = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(found, getattr(whole, name))
        assert sorted(e for part in parts for e in part.episodes) == sorted(whole.episodes)
        final = apart.table.gather(np.concatenate([part.final for part in parts]))
        assert torch.equal(final, together.table.gather(whole.final))
        assert torch.equal(apart.table.gather(apart.stacks), together.table.gather(together.stacks))
        np.testing.assert_array_equal(apart.first, together.first)
    assert apart.steps == together.steps == 180
    assert apart.table.passes == together.table.passes == walk.states


def test_stacks_do_not_reach_over_an_episodes_border(walk: SimpleNamespace, tmp_path: Path) -> None:
    table = Table(tmp_path, walk.Counting())
    env = walk.Walk(3)
    stage = EnvRunner([env], table, 4, seed=1)
    stage.begin()
    history = [[int(env.state[i])] for i in range(3)]
    generator = np.random.default_rng(0)
    for _ in range(200):
        step = stage.step(generator.integers(3, size=3))
        for i in range(3):
            history[i] = [int(env.state[i])] if step.ended[i] else [*history[i], int(env.state[i])]
            padded = [history[i][0]] * 4 + history[i]
            states = table.gather(stage.stacks[i]).argmax(dim=1).tolist()
            assert states == padded[-4:]
            assert stage.first[i] == step.ended[i]


def test_sequences_of_a_memory_stay_whole() -> None:
    config = msgspec.structs.replace(SMALL, recurrent=True)
    torch.manual_seed(0)
    seen = []
    for t, i in minibatches(config):
        envs = i[: len(i) // config.num_steps]
        assert t.view(config.num_steps, -1).unique(dim=1).shape == (config.num_steps, 1)
        assert (i.view(config.num_steps, -1) == envs).all()
        seen += envs.tolist()
    assert sorted(seen) == list(range(config.num_envs))


def test_a_memory_forgets_at_a_reset_and_only_there(walk: SimpleNamespace) -> None:
    torch.manual_seed(0)
    torso = ActorCritic(Inputs(((2, walk.states),)), 3, NETWORK).torso
    network = RecurrentActorCritic(torso, 3)
    stacks = torch.randn(6, 2, walk.states)
    blank = network.blank(1)
    first = torch.tensor([1.0, 0, 0, 1, 0, 0])
    whole = network(stacks, first, blank)[0]
    memory, parts = network.blank(1), []
    for t in range(6):
        logits, _, _, memory = network(stacks[t : t + 1], first[t : t + 1], memory)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(network(stacks[3:], first[3:], blank)[0], whole[3:])
    assert not torch.allclose(network(stacks[4:], first[4:], blank)[0], whole[4:])


@pytest.mark.parametrize(
    ("size", "millions"), [(128, 4.45), (256, 9.11), (512, 19.2), (1024, 42.6)]
)
def test_a_memory_has_the_papers_number_of_parameters(size: int, millions: float) -> None:
    """The published fork's WSA with its LSTM, 6 actions, one frame in a state."""
    shapes = ((1, 512), (1, 21, 21, 128), (1, 21, 21, 4), (1, 84, 84, 20), (1, 16, 16, 64))
    config = NetworkConfig(make_fusion_config("wsa", "paper", size=size), frame_stack=1)
    with torch.device("meta"):
        torso = Torso(Inputs(shapes, 4, 4), config)
        made = RecurrentActorCritic(torso, 6)
    count = sum(p.numel() for p in made.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize(
    "change",
    [
        {"num_envs": 0}, {"gamma": 1.5}, {"learning_rate": 0.0}, {"num_minibatches": 3},
        {"recurrent": True, "num_minibatches": 8},
        {"num_envs": 1, "num_steps": 2, "num_minibatches": 2}, {"total_timesteps": 10},
    ],
)  # fmt: skip
def test_bad_options_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        msgspec.structs.replace(SMALL, **change).__post_init__()
