"""What others got wrong while learning online, each with its guard; offline ones stand with their parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch

from wsa.learn.configs.algorithms import OnlineDQNConfig, PPOConfig
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari as games
from wsa.learn.evaluation.greedy_policy import GreedyPolicy, LiveStacks
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import ActorCritic, QNetwork, Torso
from wsa.learn.networks.nature import Ready
from wsa.learn.networks.recurrent import RecurrentActorCritic
from wsa.learn.online import dqn, ppo
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner
from wsa.learn.online.session import Session
from wsa.learn.training import checkpoint
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError

PPO = PPOConfig(
    total_timesteps=256, num_envs=4, num_steps=16, num_minibatches=2, update_epochs=2,
    learning_rate=1e-3, save_frequency=128,
)  # fmt: skip
DQN = OnlineDQNConfig(
    total_timesteps=240, num_envs=3, learning_starts=60, train_frequency=6, batch_size=8,
    target_network_frequency=60, log_frequency=60, save_frequency=120, learning_rate=1e-3,
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread", "checked_shapes")


def make(
    walk: SimpleNamespace, folder: Path, config: Any, seed: int = 1, dropout: float = 0.0,
    compiled: bool = False,
) -> tuple[Session, Any]:  # fmt: skip
    """A session on the walk, and a network for it."""
    torch.manual_seed(seed)
    table = Table(folder / "table", walk.Counting())
    stage = EnvRunner([walk.Walk(config.num_envs)], table, 2, seed=10 * seed)
    session = Session(
        stage, ["model"], [slice(0, walk.states)], settled=False, seed=seed, compiled=compiled
    )
    network = NetworkConfig(FusionConfig(size=16, dropout=dropout), frame_stack=2, hidden=(16,))
    inputs = Inputs(((2, walk.states),))
    if isinstance(config, OnlineDQNConfig):
        return session, QNetwork(inputs, 3, network)
    made: Any = ActorCritic(inputs, 3, network)
    return session, RecurrentActorCritic(made.torso, 3) if config.recurrent else made


def train(walk: SimpleNamespace, folder: Path, config: Any, seed: int = 1, **details: Any) -> Any:
    session, network = make(walk, folder, config, seed, **details)
    if isinstance(config, PPOConfig):
        return ppo.train_ppo(config, session, network, folder)
    return dqn.train_dqn(config, session, network, folder)


def test_every_step_is_a_transition_and_no_reset_is_one(
    walk: SimpleNamespace, tmp_path: Path
) -> None:
    """Steps played are the lengths of the episodes, and of those that go on."""
    env = walk.Walk(3)
    stage = EnvRunner([env], Table(tmp_path, walk.Counting()), 2, seed=1)
    stage.begin()
    generator = np.random.default_rng(0)
    ended: list[tuple[float, int]] = []
    for _ in range(100):
        ended += stage.step(generator.integers(3, size=3)).episodes
    assert len(ended) > 20
    assert sum(length for _, length in ended) + env.played.sum() == stage.steps == 300


def test_recording_changes_nothing_of_a_run(walk: SimpleNamespace, tmp_path: Path) -> None:
    """Or the same command without it would play otherwise, and find little in the store."""

    class Audience:
        def begin(self, *_: Any) -> None: ...

        step = begin

    seen = []
    for name, audience in (("alone", None), ("watched", Audience())):
        stage = EnvRunner([walk.Walk(3)], Table(tmp_path / name, walk.Counting()), 2, 1, audience)
        stage.begin()
        generator = np.random.default_rng(0)
        steps = [stage.step(generator.integers(3, size=3)) for _ in range(40)]
        table, rows = stage.table, np.arange(len(stage.table))[:, None]
        seen.append([step.final.tolist() for step in steps] + table.gather(rows).tolist())
        assert any(step.terminated.any() for step in steps)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("config", [PPO, DQN])
def test_a_lost_life_is_told_to_the_learner_alone(
    walk: SimpleNamespace, tmp_path: Path, read_metrics: Any, config: Any
) -> None:
    """Episodes and returns that are reported are those of whole games, whatever is trained on."""
    # Nothing is learnt, so both play the same.
    still = msgspec.structs.replace(config, learning_rate=1e-30)
    reported = []
    for mask in (False, True):
        folder = tmp_path / str(mask)
        train(walk, folder, msgspec.structs.replace(still, terminal_on_life_loss=mask))
        keep = ("step", "charts/episodic_return", "charts/episodic_length")
        lines = [li for li in read_metrics(folder) if "charts/episodic_return" in li]
        reported.append([[li[key] for key in keep] for li in lines])
    assert reported[0] == reported[1] and len(reported[0]) > 10


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_rollouts_first_update_sees_the_policy_that_played(
    walk: SimpleNamespace, tmp_path: Path, recurrent: bool
) -> None:
    """The ratio of probabilities begins at 1: nothing is drawn anew, no memory is another."""
    config = msgspec.structs.replace(PPO, recurrent=recurrent)
    session, network = make(walk, tmp_path, config)
    session.runner.begin()
    memory = network.blank(config.num_envs) if recurrent else None

    class Silent:
        def write(self, *_: Any) -> None: ...

    silent: Any = Silent()
    for _ in range(2):
        _, memory = ppo.play(config, session, network, memory, "cpu", silent)
    rollout, _ = ppo.play(config, session, network, memory, "cpu", silent)
    assert rollout.ended.any()
    for at in ppo.minibatches(config):
        estimates = ppo.advantages(config, rollout)
        returns = estimates + rollout.values
        _, scalars = ppo.loss_of(config, session, network, rollout, estimates, returns, at, "cpu")
        assert abs(float(scalars["losses/approx_kl"])) < 1e-6 and float(scalars["clipfrac"]) == 0


@pytest.mark.parametrize(
    ("clip", "reach"), [({"clip_vloss": False}, None), ({}, 0.1), ({"vf_clip_coef": 0.02}, 0.02)]
)
def test_the_value_term(
    walk: SimpleNamespace, tmp_path: Path, clip: dict[str, Any], reach: float | None
) -> None:
    """With vf_coef 1 and no clipping half the squared error, as Stable-Baselines3 has it with 0.5."""
    config = msgspec.structs.replace(PPO, vf_coef=1.0, ent_coef=0.0, **clip)
    session, network = make(walk, tmp_path, config)
    session.runner.begin()
    silent: Any = SimpleNamespace(write=lambda *_: None)
    rollout, _ = ppo.play(config, session, network, None, "cpu", silent)
    at = next(ppo.minibatches(config))
    estimates = torch.zeros_like(rollout.values)
    returns = rollout.values + torch.linspace(-1, 1, 64).view_as(rollout.values)
    with torch.no_grad():
        network.critic[-1].bias += 0.05  # Since the rollout was played.
        config = msgspec.structs.replace(config, norm_adv=False)
        loss, scalars = ppo.loss_of(
            config, session, network, rollout, estimates, returns, at, "cpu"
        )
    errors = (rollout.values + 0.05 - returns)[at] ** 2
    if reach:
        near = rollout.values + min(reach, 0.05)
        errors = torch.max(errors, (near - returns)[at] ** 2)
    assert scalars["losses/value_loss"].item() == pytest.approx(
        0.5 * errors.mean().item(), rel=1e-4
    )
    assert loss.item() == pytest.approx(scalars["losses/value_loss"].item(), rel=1e-4)


@pytest.mark.parametrize("config", [PPO, DQN])
def test_dropout_is_for_updates(walk: SimpleNamespace, tmp_path: Path, config: Any) -> None:
    session, network = make(walk, tmp_path, config, dropout=0.5)
    seen: list[tuple[bool, bool]] = []
    hooked = network.torso.register_forward_hook(
        lambda module, *_: seen.append((module.training, torch.is_grad_enabled()))
    )
    if isinstance(config, PPOConfig):
        ppo.train_ppo(config, session, network, tmp_path)
        assert set(seen) == {(False, False), (True, True)}  # Played; learnt.
    else:
        dqn.train_dqn(config, session, network, tmp_path)
        # Played; learnt; the best actions of what follows are the learning network's.
        assert set(seen) == {(False, False), (True, True), (True, False)}
    hooked.remove()


@pytest.mark.parametrize("config", [PPO, DQN])
def test_a_seed_settles_everything(
    walk: SimpleNamespace, tmp_path: Path, read_metrics: Any, config: Any
) -> None:
    found = {}
    for name, seed, before in (("a", 1, 5), ("b", 1, 6), ("c", 2, 5)):
        torch.manual_seed(before)
        np.random.seed(before)
        network = train(walk, tmp_path / name, config, seed).network
        found[name] = read_metrics(tmp_path / name), network.state_dict()
    assert found["a"][0] == found["b"][0] != found["c"][0]
    for name, tensor in found["a"][1].items():
        assert torch.equal(tensor, found["b"][1][name])
    assert any(not torch.equal(t, found["c"][1][n]) for n, t in found["a"][1].items())


@pytest.mark.parametrize("config", [PPO, DQN])
def test_a_run_keeps_no_more_than_it_must(
    walk: SimpleNamespace, tmp_path: Path, read_metrics: Any, config: Any
) -> None:
    """A line an update or log interval and one an episode; no backbone in a checkpoint."""
    train(walk, tmp_path, config)
    lines = read_metrics(tmp_path)
    others = [li for li in lines if "charts/episodic_return" not in li]
    assert len(others) == 4
    tensors, _ = checkpoint.read(checkpoint.latest(tmp_path / "checkpoints"))
    kinds = {name.partition(".")[0] for name in tensors}
    networks = {"online"} if config is PPO else {"online", "target"}
    assert kinds == {*networks, "optimizer", "arrays", "torch_random_state"}


def test_a_memory_too_can_do_with_fewer_models() -> None:
    """A model that is left out has no part in logits, memory and weights, in play too."""
    torch.manual_seed(0)
    config = NetworkConfig(FusionConfig(size=8), frame_stack=2, normalize="none")
    network = RecurrentActorCritic(Torso(Inputs(((2, 5), (2, 3))), config), 3)
    stacks, noise = torch.randn(2, 4, 2, 8)
    noise[..., :5] = stacks[..., :5]
    first, mask = torch.zeros(4), (True, False)
    with torch.no_grad():
        one, other = (network(s, first, network.blank(2), mask) for s in (stacks, noise))
        whole = network(stacks, first, network.blank(2))
    for a, b in zip((*one[:3], *one[3]), (*other[:3], *other[3]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(one[2], torch.tensor([[1.0, 0.0]]).repeat(4, 1))
    assert not torch.equal(one[0], whole[0])

    class Stacks:
        def see(self, *seen: Any) -> Any:
            return stacks[:1]

    policy = GreedyPolicy(network, cast("Any", Stacks()), 3, 0.0, 1, mask=mask)
    blank = np.zeros((1, 2, 2, 3), np.uint8)
    assert policy(blank, np.ones(1, np.bool_), np.zeros(1, np.int64)) == one[0][0].argmax()
    np.testing.assert_array_equal(policy.weights, [[1.0, 0.0]])


def test_a_memory_is_carried_in_evaluation(walk: SimpleNamespace, tmp_path: Path) -> None:
    """And each environment has its own, blank where an episode begins."""
    _, network = make(walk, tmp_path, msgspec.structs.replace(PPO, recurrent=True))
    torch.nn.init.orthogonal_(network.actor.weight, 5.0)
    encoder = walk.Counting()
    generator = np.random.default_rng(0)
    states = generator.integers(walk.states, size=(40, 2))
    first = generator.random((40, 2)) < 0.1
    first[0] = True
    policy = GreedyPolicy(network, LiveStacks(encoder, 2, 2), 3, 0.0, 1)
    played = np.array(
        [policy(walk.picture(s), f, np.arange(2)) for s, f in zip(states, first, strict=True)]
    )
    forgetful = []
    for i in range(2):
        stacks = []
        for t in range(40):
            before = states[t if first[t, i] else t - 1, i]
            stacks.append(np.eye(walk.states, dtype=np.float16)[[before, states[t, i]]])
        begins = torch.from_numpy(first[:, i]).float()
        seen = torch.from_numpy(np.stack(stacks))
        logits = network(seen, begins, network.blank(1))[0]
        np.testing.assert_array_equal(played[:, i], logits.argmax(dim=1))
        forgetful.append(network(seen, torch.ones(40), network.blank(1))[0].argmax(dim=1).numpy())
    assert (played != np.array(forgetful).T).any()


class Digits:
    """Frames, and windows of four, by the first numbers of their identities."""

    width, dtype = 6, np.dtype(np.uint8)

    def __init__(self) -> None:
        self.lookups = {1: DigitsOf(0), 4: DigitsOf(3)}


class DigitsOf:
    width, dtype, found, passes = 3, np.dtype(np.uint8), 0, 0

    def __init__(self, begin: int) -> None:
        self.places = (slice(begin, begin + 3),)

    def begin(self, digests: list[bytes], inputs: Any) -> Ready:
        for digest, shown in zip(digests, inputs(list(range(len(digests)))), strict=True):
            frames = shown if shown.ndim == 4 else shown[None]
            each = b"".join(hashing.frame_digest(frame) for frame in frames)
            assert digest == (hashing.window_digest(each) if shown.ndim == 4 else each)
        return Ready(np.array([list(digest[:3]) for digest in digests], np.uint8))


@pytest.mark.parametrize("stood", [103, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("played", ["classic", pytest.param("v5", marks=pytest.mark.slow)])
def test_an_emulator_is_played_to_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, played: str, stood: int
) -> None:
    """Stretches, truncations and lost lives included, in a game that is no stand-in."""
    monkeypatch.setattr("wsa.learn.online.env_runner.STRETCH", 50)
    protocol = games.protocol("Breakout", played, max_steps=40)
    encoder: Any = Digits()

    def begin(name: str) -> EnvRunner:
        env = games.make_env("Breakout", protocol, 2)
        return EnvRunner([env], Table(tmp_path / name, encoder), 2, seed=4)

    def play(stage: EnvRunner, generator: np.random.Generator, steps: int) -> list[Any]:
        told = []
        for _ in range(steps):
            step = stage.step(generator.integers(4, size=2))
            rows = stage.table.gather(np.concatenate([stage.stacks, step.final])).tolist()
            told.append((rows, step.rewards.tolist(), step.ended.tolist(), step.life_lost.tolist(),
                         step.episodes))  # fmt: skip
        return told

    whole = begin("whole")
    whole.begin()
    generator = np.random.default_rng(0)
    wanted = play(whole, generator, 140)
    assert sum(len(step[4]) for step in wanted) >= 6
    assert played == "v5" or any(any(step[3]) for step in wanted)
    stage = begin("stood")
    stage.begin()
    generator = np.random.default_rng(0)
    play(stage, generator, stood)
    stage.table.flush()
    state, rows = stage.state(), stage.table.state()
    again = begin("stood")
    again.table.restore(rows)
    again.restore(state)
    assert play(again, generator, 140 - stood) == wanted[stood:]
    state["lives"] = state["lives"] + 1
    with pytest.raises(ConflictError, match="does not play here as it did"):
        begin("other").restore(state)


def compiled_is_plain(walk: Any, folder: Path, config: Any) -> None:
    """After updates what is compiled gives what the same weights give when they are not."""
    network = train(walk, folder, config, compiled=True).network
    _, fresh = make(walk, folder / "fresh", config, seed=7)
    table = walk.Counting()(walk.picture(np.arange(walk.states)))
    stacks = torch.from_numpy(np.stack([table[[0, 1]], table[[1, 2]], table[[2, 3]]]))
    more = (torch.ones(3), fresh.blank(3)) if hasattr(fresh, "blank") else ()
    network.eval()
    fresh.eval()
    with torch.no_grad():
        for _ in range(2):
            before = fresh(stacks, *more)[0]
            fresh.load_state_dict(network.state_dict())
            wanted = fresh(stacks, *more)[0]
            torch.testing.assert_close(network(stacks, *more)[0], wanted, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(before, wanted)
            for parameter in network.parameters():
                parameter += 0.1


CODE = """
import importlib.util, pathlib, sys
def load(path):
    spec = importlib.util.spec_from_file_location("loaded", path)
    sys.modules["loaded"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
guards, kit = load(sys.argv[1]), load(sys.argv[2])
config = {"ppo": guards.PPO, "dqn": guards.DQN}.get(sys.argv[3])
config = config or guards.msgspec.structs.replace(guards.PPO, recurrent=True)
kit.walk = type("walk", (), {"Walk": kit.Walk, "Counting": kit.Counting, "states": kit.STATES,
                             "picture": staticmethod(kit.picture)})
guards.compiled_is_plain(kit.walk, pathlib.Path(sys.argv[4]), config)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "dqn", "recurrent"])
def test_a_compiled_network_acts_with_the_new_weights(tmp_path: Path, name: str) -> None:
    """In a process without the checks of shapes, which torch.compile cannot see through."""
    kit = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-W", "ignore", "-c", CODE, __file__, str(kit), name, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
