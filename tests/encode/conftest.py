"""What the tests of encoding share: real frames, tiny models, stores of chosen frames, a counter.

Models are timm's `test_*` architectures, which run a frame in milliseconds; what needs trained
weights uses the EfficientNet-Lites that a package brings.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wsa.encode.inference.encoder import Encoder
from wsa.encode.jobs.dry_run import Estimate, estimate, measure_model
from wsa.encode.models import registry
from wsa.encode.models.paper.base import Trainee, TrainingInput
from wsa.encode.models.registry import Request
from wsa.encode.registration import identity, probe_frames
from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.envs.atari import protocol
from wsa.learn.pretrain import data
from wsa.learn.pretrain.data import Examples
from wsa.store.backends.base import Backend
from wsa.store.common import hashing
from wsa.store.format import arrays as layout
from wsa.store.format.records import SegmentMeta
from wsa.store.objects import writer
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

Frames = NDArray[np.uint8]


@pytest.fixture(scope="session")
def frames() -> Frames:
    """Sixteen real frames, pairs of consecutive steps of eight games, (16, 210, 160, 3)."""
    whole: dict[str, Any] = probe_frames.whole  # type: ignore[attr-defined]
    shown = {part.game: part.frames for part in whole["load_frames"]()}
    return np.concatenate([shown[game][4:6] for game in whole["PROBE_GAMES"]])


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Request]:
    """A request for one of timm's test models with random weights: `tiny("vit", "grid:2")`."""

    def ask(name: str, output: str = "pooled", **options: Any) -> Request:
        return registry.parse_request(f"timm:test_{name}:random", {}, output, **options)

    return ask


@pytest.fixture(scope="session")
def encoder_of() -> Callable[..., Encoder]:
    """An encoder without a store or a basis: `encoder_of(request)`."""

    def make(request: Request, **options: Any) -> Encoder:
        module = registry.build(request)
        how = identity.identify(module, request).preprocessing
        return Encoder(module, how, parse_output(request.output), **options)

    return make


@pytest.fixture(scope="session")
def estimated() -> Callable[..., Estimate]:
    """What a dry run says of a model, measured in this process: `estimated(snapshot, request, games)`."""

    def make(snapshot: Snapshot, request: Request, games: Sequence[str]) -> Estimate:
        sized, _ = measure_model(snapshot, request, games, "cpu")
        return estimate(snapshot, request, games, sized)

    return make


@pytest.fixture
def ran() -> Iterator[list[int]]:
    """Batch sizes seen by any first layer of a network, in this process: the true count."""
    seen: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            seen.append(len(args[0]))

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    yield seen
    handle.remove()


@pytest.fixture(scope="session")
def noise() -> Callable[[int], Frames]:
    """`noise(i)` is a small frame that differs for every i."""

    def make(number: int) -> Frames:
        return np.random.default_rng(number).integers(0, 256, (12, 10, 3), np.uint8)

    return make


@pytest.fixture(scope="session")
def segment_of(kit: ModuleType) -> Callable[..., tuple[SegmentMeta, layout.Arrays]]:
    """A segment of chosen frames: `segment_of(number, frames, game="Pong")`."""

    def make(
        number: int, shown: Sequence[Frames], game: str = "Pong"
    ) -> tuple[SegmentMeta, layout.Arrays]:
        height, width, _ = shown[0].shape
        meta, arrays = kit.fake_segment(
            number, game=game, steps=1, height=height, width=width, indexed=False
        )
        count = len(shown)
        rows = {name: np.resize(arrays[name], count) for name in layout.ROW_FIELDS}
        rows["frame"] = np.arange(count, dtype=np.int32)
        digests = b"".join(hashing.frame_digest(frame) for frame in shown)
        whole: layout.Arrays = {
            **rows,
            "frames": np.stack(shown),
            "digest": np.frombuffer(digests, np.uint8).reshape(count, -1),
        }
        fields = {name: getattr(meta, name) for name in meta.__struct_fields__}
        return SegmentMeta(**{**fields, "rows": count, "frames": count}), whole

    return make


@pytest.fixture(scope="session")
def fill(
    segment_of: Callable[..., tuple[SegmentMeta, layout.Arrays]],
    noise: Callable[[int], Frames],
) -> Callable[..., list[SegmentMeta]]:
    """`fill(store, [[0, 1], [1, 2]])` commits segments of `noise` frames with these numbers."""

    def commit(
        backend: Backend, numbers: Sequence[Sequence[int]], game: str = "Pong", first: int = 0
    ) -> list[SegmentMeta]:
        metas = []
        for at, shown in enumerate(numbers, first):
            meta, arrays = segment_of(at, [noise(i) for i in shown], game)
            writer.commit_segment(backend, meta, arrays)
            metas.append(meta)
        return metas

    return commit


@dataclasses.dataclass
class Tree:
    """Checksums of all files below a folder."""

    root: Path

    def __call__(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def tree(store: Backend) -> Tree:
    """`tree()` is the store's every file with its checksum."""
    return Tree(Path(store.url))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Tests change how many cores torch uses; none inherits that."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """A store of real games: 4 episodes' beginnings of Breakout and of Pong, 64 steps each.

    Segments are cut after 40 steps, so that some begin inside an episode.
    """
    backend = open_store(str(tmp_path_factory.mktemp("played") / "store"), create=True)
    for game in ("Breakout", "Pong"):
        plan = plan_collection(
            take_snapshot(backend),
            game,
            protocol(game, "classic"),
            steps=256,
            num_envs=4,
            policy="random",
            seed=1,
            segment_steps=40,
        )
        collect(plan, backend)
    return backend


@pytest.fixture(scope="session")
def examples_of(played: Backend) -> Callable[..., Examples]:
    """What a trainee sees of the real games: `examples_of(Autoencoder.training_input, "Pong")`."""

    def see(training_input: TrainingInput, *games: str) -> Examples:
        snapshot = take_snapshot(played)
        chosen = data.choose(snapshot, games or ("Breakout", "Pong"), (), [training_input], 1 << 30)
        return data.read(snapshot, chosen.segments, training_input, 0.25)

    return see


@pytest.fixture(scope="session")
def fit() -> Callable[..., list[float]]:
    """`fit(trainee, examples, steps)`: the losses of a batch that is trained on again and again."""

    def train(trainee: Trainee, examples: torch.Tensor, steps: int, rate: float) -> list[float]:
        optimizer = torch.optim.Adam(trainee.parameters(), rate)
        losses = []
        for _ in range(steps):
            loss, _ = trainee.loss(examples, 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


@pytest.fixture(scope="session")
def cost() -> Callable[..., tuple[int, int]]:
    """`cost(module, function, input)`: parameters of a module, and products of a call."""

    def count(module: nn.Module, call: Callable[..., Any], *given: torch.Tensor) -> tuple[int, int]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call(*given)
        return sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2

    return count
