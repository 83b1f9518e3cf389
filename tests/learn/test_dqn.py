from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors
import torch
from torch import Tensor, nn

from wsa.encode.forward import Encoder
from wsa.encode.spec import Output, Preprocessing
from wsa.learn import dqn
from wsa.learn.dqn import DQNConfig, train, update_loss
from wsa.learn.features import Batch
from wsa.store.errors import DamagedError, UsageError
from wsa.store.flat import FlatMap, materialise
from wsa.store.reader import take_snapshot
from wsa.store.records import EmbeddingMeta
from wsa.store.root import open_store
from wsa.store.writer import commit_embedding, commit_segment

SMALL = DQNConfig(
    updates=60,
    batch_size=8,
    learning_rate=1e-3,
    target_network_frequency=7,
    frame_stack=2,
    fusion_size=16,
    log_frequency=4,
    save_frequency=10,
)
STATES = 5
GAMMA = 0.9


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fill(kit: ModuleType, url: str) -> None:
    """A walk of five states: 2 begins; 0 ends it with nothing, 4 with a reward of 3.

    Actions go left, go right, stay. Episodes are cut after six steps. The embeddings tell the state: one
    model knows it, the other is noise.
    """
    backend = open_store(url, create=True)
    generator = np.random.default_rng(0)
    rows: list[tuple[int, int, float, bool, bool, bool]] = []  # frame, action, reward, ends, first
    for _ in range(150):
        state, first = 2, True
        for step in range(6):
            action = int(generator.integers(3))
            following = state + (-1, 1, 0)[action]
            end = following in (0, STATES - 1)
            reward = 3.0 * (following == STATES - 1)
            rows.append((state, action, reward, end, step == 5 and not end, first))
            state, first = following, False
            if end:
                break
        rows.append((state, -1, 0.0, False, False, False))
    frame, action, reward, terminated, truncated, is_first = map(np.array, zip(*rows, strict=True))
    meta, arrays = kit.fake_segment(steps=len(rows) - 1, frames=STATES)
    steps = int((action >= 0).sum())
    meta = msgspec.structs.replace(meta, rows=len(rows), steps=steps)
    arrays |= {
        "frame": frame.astype(np.int32),
        "action": action.astype(np.int16),
        "reward": reward.astype(np.float32),
        "terminated": terminated,
        "truncated": truncated,
        "is_first": is_first,
        "context": np.zeros(len(rows), np.bool_),
        "lives": np.zeros(len(rows), np.uint8),
        "episode": np.cumsum(is_first).astype(np.int32),
    }
    commit_segment(backend, meta, arrays)
    known = np.eye(STATES, dtype=np.float16)
    noise = np.random.default_rng(1).normal(size=(STATES, 3)).astype(np.float16)
    for alias, array in (("lite0", known), ("vit", noise)):
        about = EmbeddingMeta(
            meta.game, meta.segment, kit.key(alias), array.shape, "float16", STATES, 0, 1.0
        )
        commit_embedding(backend, about, array)


@pytest.fixture(scope="module")
def store_url(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("mdp") / "store")
    fill(kit, url)
    return url


@pytest.fixture(scope="module")
def flat(kit: ModuleType, store_url: str, tmp_path_factory: pytest.TempPathFactory) -> FlatMap:
    cache = tmp_path_factory.mktemp("cache")
    models = [kit.key("lite0"), kit.key("vit")]
    return materialise(take_snapshot(open_store(store_url)), kit.GAME, models, cache)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Metrics without what a clock gave."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k[:4] != "time"} for line in found]


def final(folder: Path) -> dict[str, Any]:
    """Weights, target, optimiser, random states and draws at the end, to the last bit."""
    with safetensors.safe_open(
        folder / "checkpoints" / f"{SMALL.updates:09d}.safetensors", "np"
    ) as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        assert any(name.startswith("optimizer.") for name in tensors)
        return {**tensors, **file.metadata()}


class Table(nn.Module):
    """Action values by state, the state being a frame's only number."""

    def __init__(self, values: list[list[float]]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, stacks: Tensor) -> tuple[Tensor, Tensor]:
        states = stacks[:, -1, 0].long()
        return self.values[states], torch.full((len(states), 2), 0.5)


ONLINE = [[1.0, 2.0, 0.0], [3.0, 0.5, 4.0], [0.0, -1.0, -2.0]]
TARGET = [[5.0, 6.0, 7.0], [0.1, 0.2, 0.3], [-4.0, 8.0, 9.0]]


def literal(config: DQNConfig, steps: list[tuple[int, int, float, float, int]]) -> float:
    """The loss of (state, action, reward, terminated, next state), in plain arithmetic."""
    total = 0.0
    for state, action, reward, terminated, following in steps:
        if config.clip_rewards:
            reward = (reward > 0) - (reward < 0)
        best = ONLINE[following].index(max(ONLINE[following]))
        wanted = reward + (0 if terminated else config.gamma * TARGET[following][best])
        error = abs(wanted - ONLINE[state][action])
        total += 0.5 * error**2 if error < 1 else error - 0.5
        high = math.log(sum(math.exp(q) for q in ONLINE[state]))
        total += config.cql_alpha * (high - ONLINE[state][action])
    return total / len(steps)


STEPS = [(0, 1, 5.0, 0.0, 1), (1, 0, -0.5, 1.0, 2), (2, 2, 0.0, 0.0, 0), (2, 0, 0.25, 0.0, 2)]


def batch_of(steps: list[tuple[int, int, float, float, int]]) -> Batch:
    state, action, reward, terminated, following = zip(*steps, strict=True)
    frames = torch.tensor([state, state, following], dtype=torch.float32).T[:, :, None]
    return Batch(frames, torch.tensor(action), torch.tensor(reward), torch.tensor(terminated))


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_the_loss_is_the_literal_one(clip: bool, alpha: float, gamma: float) -> None:
    config = dataclasses.replace(SMALL, clip_rewards=clip, cql_alpha=alpha, gamma=gamma)
    online: Any = Table(ONLINE)
    target: Any = Table(TARGET)
    loss, scalars = update_loss(config, online, target, batch_of(STEPS), "cpu")
    assert loss.item() == pytest.approx(literal(config, STEPS), rel=1e-5)
    assert scalars["losses/q_values"].item() == pytest.approx((2 + 3 - 2 + 0) / 4)
    assert scalars["wsa/weight_entropy"].item() == pytest.approx(math.log(2))
    both = scalars["losses/td_loss"] + alpha * scalars["losses/cql"]
    assert loss.item() == pytest.approx(both.item())
    loss.backward()
    assert target.values.grad is None and online.values.grad.abs().sum() > 0


def test_one_step_by_hand() -> None:
    config = dataclasses.replace(SMALL, cql_alpha=0.0, gamma=0.5)
    online: Any = Table(ONLINE)
    target: Any = Table(TARGET)

    def loss(reward: float, terminated: float) -> float:
        step = (0, 1, reward, terminated, 1)
        return update_loss(config, online, target, batch_of([step]), "cpu")[0].item()

    # Online likes action 2 of state 1 best (4.0); target values that at 0.3; Q of now is 2.
    assert loss(0.7, 0.0) == pytest.approx(0.5 * (1 + 0.5 * 0.3 - 2) ** 2)
    assert loss(0.7, 1.0) == pytest.approx(0.5)  # |1 - 2| - 0.5


def test_it_learns_the_known_optimum(flat: FlatMap, tmp_path: Path) -> None:
    config = dataclasses.replace(
        SMALL, updates=700, batch_size=32, learning_rate=3e-3, gamma=GAMMA, cql_alpha=0.0,
        frame_stack=1, target_network_frequency=40, log_frequency=100, save_frequency=1000,
    )  # fmt: skip
    network = train(config, flat, 3, None, 1, tmp_path).network
    frames = flat.rows["frame"][flat.steps]
    with torch.inference_mode():
        stacks = torch.from_numpy(np.array(flat.embeddings))[:, None]
        values = network(stacks)[0].numpy()
    best = {1: GAMMA**2, 2: GAMMA, 3: 1.0}  # Clipped: 3 counts as 1.
    for state in (1, 2, 3):
        left = 0 if state == 1 else GAMMA * best[state - 1]
        expected = [left, best[state], GAMMA * best[state]]
        np.testing.assert_allclose(values[state], expected, atol=0.08)
    assert set(frames) == {1, 2, 3}


def test_cql_values_what_was_done_above_what_was_not(flat: FlatMap, tmp_path: Path) -> None:
    gaps = []
    stacks = torch.from_numpy(np.array(flat.embeddings))[1:4, None].expand(-1, 2, -1)
    for alpha in (0.0, 5.0):
        config = dataclasses.replace(SMALL, cql_alpha=alpha, updates=200)
        # Actions 3 to 5 were never taken.
        network = train(config, flat, 6, None, 1, tmp_path / str(alpha)).network
        with torch.inference_mode():
            values = network(stacks)[0]
        gaps.append((values[:, :3].amin() - values[:, 3:].amax()).item())
    assert gaps[0] < 0.5
    assert gaps[1] > 1


def test_the_target_changes_only_at_its_frequency(
    flat: FlatMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    real = dqn.update_loss

    def spy(config: Any, online: nn.Module, target: nn.Module, *rest: Any) -> Any:
        flats = [nn.utils.parameters_to_vector(m.parameters()) for m in (online, target)]
        seen.append((flats[0].detach().clone(), flats[1].detach().clone()))
        return real(config, online, target, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(dqn, "update_loss", spy)
    train(SMALL, flat, 3, 0, 1, tmp_path)
    assert len(seen) == SMALL.updates
    for made, (online, target) in enumerate(seen):  # So many updates had been made.
        copied = made - made % SMALL.target_network_frequency
        assert torch.equal(target, seen[copied][0])
        assert torch.equal(online, target) == (made == copied)


def test_it_is_the_same_again_and_another_with_another_seed(flat: FlatMap, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trained = train(SMALL, flat, 3, 1, seed, tmp_path / name)
        assert (trained.updates, trained.passes) == (SMALL.updates, 0)
        assert trained.updates_per_s > 0
    assert final(tmp_path / "a") == final(tmp_path / "b") != final(tmp_path / "c")
    assert lines(tmp_path / "a") == lines(tmp_path / "b") != lines(tmp_path / "c")


def test_what_is_logged(kit: ModuleType, flat: FlatMap, tmp_path: Path) -> None:
    told: list[int] = []
    config = dataclasses.replace(SMALL, updates=10)
    train(config, flat, 3, None, 1, tmp_path, on_update=lambda step, _: told.append(step))
    found = lines(tmp_path)
    assert told == [line["step"] for line in found] == [4, 8, 10]
    for line in found:
        weights = [line[f"wsa/weight/{kit.key(alias)}"] for alias in ("lite0", "vit")]
        assert sum(weights) == pytest.approx(1, abs=1e-5)
        assert 0 < line["wsa/weight_entropy"] <= math.log(2) + 1e-6
        assert line["cache/backbone_passes"] == 0
        assert line["cache/backbone_passes_saved"] == line["step"] * 8 * 2 * 2
        assert line["charts/learning_rate"] == SMALL.learning_rate
        assert {"losses/td_loss", "losses/cql", "losses/q_values"} < set(line)


def test_the_rate_is_of_the_updates_since_the_last_line(
    flat: FlatMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(dqn.time, "perf_counter", lambda: float(next(clock)))
    rates = []
    config = dataclasses.replace(SMALL, updates=10)
    train(
        config, flat, 3, None, 1, tmp_path,
        on_update=lambda _, line: rates.append(line["time/updates_per_s"]),
    )  # fmt: skip
    assert rates == [4.0, 4.0, 2.0]


class Tiny(nn.Module):
    """A backbone."""

    def forward_features(self, pixels: Tensor) -> Tensor:
        return pixels

    def forward_head(self, features: Tensor, pre_logits: bool) -> Tensor:
        return features.mean(dim=(2, 3))


def test_a_backbone_that_runs_while_training_is_noticed(flat: FlatMap, tmp_path: Path) -> None:
    squash = Preprocessing("squash", 8, 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
    encoder = Encoder(Tiny(), squash, Output("pooled"))
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    encoder(frames)  # Before: it does not count.
    train(SMALL, flat, 3, None, 1, tmp_path / "without")
    seen = []

    def on_update(step: int, line: dict[str, float]) -> None:
        seen.append(line["cache/backbone_passes"])
        if step == 40:
            encoder(frames)

    with pytest.raises(AssertionError, match="must not run a backbone"):
        train(SMALL, flat, 3, None, 1, tmp_path / "with", on_update=on_update)
    assert seen == [0] * 10 + [2] * 5


@pytest.fixture(scope="module")
def whole(flat: FlatMap, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    train(SMALL, flat, 3, 0, 1, folder)
    torch.set_num_threads(threads)
    return folder


class Crash(Exception):
    """Something that the trainer does not expect."""


@pytest.mark.parametrize("at", [4, 12, 20, 32, 40, 52, 60])
def test_a_run_that_crashed_goes_on_as_if_it_had_not(
    flat: FlatMap, whole: Path, tmp_path: Path, at: int
) -> None:
    def crash(step: int, _: Any) -> None:
        if step == at:
            raise Crash

    with pytest.raises(Crash):
        train(SMALL, flat, 3, 0, 1, tmp_path, on_update=crash)
    torch.manual_seed(99)
    trained = train(SMALL, flat, 3, 0, 1, tmp_path)
    assert trained.updates == SMALL.updates - (at - 1) // 10 * 10
    assert final(tmp_path) == final(whole)
    assert lines(tmp_path) == lines(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [8, 20, 60])
def test_a_run_that_was_asked_to_stop_goes_on(
    flat: FlatMap, whole: Path, tmp_path: Path, at: int, number: signal.Signals
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def ask(step: int, _: Any) -> None:
        if step == at:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, flat, 3, 0, 1, tmp_path, on_update=ask)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert (tmp_path / "checkpoints" / f"{at:09d}.safetensors").exists()
    assert train(SMALL, flat, 3, 0, 1, tmp_path).updates == SMALL.updates - at
    assert final(tmp_path) == final(whole)
    assert lines(tmp_path) == lines(whole)


def test_a_second_signal_stops_at_once(flat: FlatMap, tmp_path: Path) -> None:
    def ask_twice(step: int, _: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, flat, 3, 0, 1, tmp_path, on_update=ask_twice)
    assert not (tmp_path / "checkpoints").exists()


def test_a_signal_between_the_last_lines_of_an_update_loses_nothing(
    flat: FlatMap, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dqn.checkpoint.save

    def save(folder: Path, step: int, *rest: Any) -> Path:
        path = real(folder, step, *rest)
        if step == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return path

    monkeypatch.setattr(dqn.checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train(SMALL, flat, 3, 0, 1, tmp_path)
    assert (tmp_path / "checkpoints" / f"{21:09d}.safetensors").exists()
    train(SMALL, flat, 3, 0, 1, tmp_path)
    assert final(tmp_path) == final(whole)


SCRIPT = """
import json, sys, time, torch
from pathlib import Path
from wsa.learn.dqn import DQNConfig, train
from wsa.store.flat import materialise
from wsa.store.reader import take_snapshot
from wsa.store.root import open_store
url, folder, models, config = sys.argv[1:]
torch.set_num_threads(1)
flat = materialise(take_snapshot(open_store(url)), "Pong", models.split(","), Path(folder) / "c")
def tell(step, _):
    print(step, flush=True)
    time.sleep(0.1)
train(DQNConfig(**json.loads(config)), flat, 3, 0, 1, Path(folder), on_update=tell)
"""


def test_a_process_that_is_interrupted_saves_and_goes_on(
    kit: ModuleType, store_url: str, flat: FlatMap, whole: Path, tmp_path: Path
) -> None:
    models = f"{kit.key('lite0')},{kit.key('vit')}"
    arguments = [store_url, str(tmp_path), models, json.dumps(dataclasses.asdict(SMALL))]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1].decode()
    assert "KeyboardInterrupt" in errors
    saved = sorted(int(path.stem) for path in (tmp_path / "checkpoints").iterdir())
    assert 12 <= saved[-1] < 60
    train(SMALL, flat, 3, 0, 1, tmp_path)
    assert final(tmp_path) == final(whole)
    assert lines(tmp_path) == lines(whole)


def test_a_finished_run_started_again_does_nothing(
    flat: FlatMap, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    trained = train(SMALL, flat, 3, 0, 1, folder)
    assert (trained.updates, trained.passes) == (0, 0)
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    assert after == before


def test_a_damaged_newest_checkpoint_is_not_passed_over(
    flat: FlatMap, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    newest = folder / "checkpoints" / "000000060.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(
        DamagedError, match=r"Remove it .*: 000000050.safetensors is then"
    ) as caught:
        train(SMALL, flat, 3, 0, 1, folder)
    assert str(newest) in str(caught.value)
    assert lines(folder) == lines(whole)
    newest.unlink()  # The remedy.
    assert train(SMALL, flat, 3, 0, 1, folder).updates == 10
    assert final(folder) == final(whole)
    assert lines(folder) == lines(whole)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"updates": 0}, "--updates must be at least 1"),
        ({"batch_size": -1}, "--batch-size must be at least 1"),
        ({"save_frequency": 0}, "--save-frequency"),
        ({"target_network_frequency": 0}, "--target-network-frequency"),
        ({"frame_stack": 5}, "--frame-stack must be at most 4"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"learning_rate": math.nan}, "--learning-rate must be positive"),
        ({"learning_rate": math.inf}, "--learning-rate must be positive"),
        ({"gamma": 1.1}, "--gamma from 0 to 1"),
        ({"cql_alpha": -0.1}, "--cql-alpha at least 0"),
        ({"cql_alpha": math.inf}, "--cql-alpha at least 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        dataclasses.replace(SMALL, **change)
