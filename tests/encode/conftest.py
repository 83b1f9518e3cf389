"""Fixtures of the encoder tests: frames, small models, stores with chosen frames, pass counters.

Tests of scheduling use `small`, a network of one convolution, because most of their time would go
into forward passes. Tests of models use timm's `test_*` architectures (`tiny`). Tests that need
trained weights use the EfficientNet-Lites.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import command_kit
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wsa.encode.inference.encoder import Encoder
from wsa.encode.jobs import tasks
from wsa.encode.jobs.dry_run import Estimate, estimate, measure_model
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.run import EncodeReport, encode
from wsa.encode.models import networks, registry
from wsa.encode.models.custom import Input, UserModel
from wsa.encode.models.registry import Request
from wsa.encode.models.user_network import UserNetwork
from wsa.encode.registration import identity, probe_frames
from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.envs.atari import protocol
from wsa.learn.pretrain import data
from wsa.learn.pretrain.data import Examples
from wsa.learn.pretrain.trainee import TrainingInput
from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.format import arrays as layout
from wsa.store.format.records import SegmentMeta
from wsa.store.objects import flat_map, writer
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

Frames = NDArray[np.uint8]


@pytest.fixture(scope="session")
def shipped() -> list[probe_frames.GameFrames]:
    """All probe frames that wsa ships, loaded once."""
    parts: list[probe_frames.GameFrames] = probe_frames.whole["load_frames"]()  # type: ignore[attr-defined]
    return parts


@pytest.fixture
def all_probe_frames(
    all_probe_frames: None, shipped: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe frames as wsa ships them, instead of the few that tests use."""
    monkeypatch.setattr(probe_frames, "load_frames", lambda: list(shipped))


@pytest.fixture(scope="session")
def frames(shipped: list[probe_frames.GameFrames]) -> Frames:
    """Sixteen real frames, pairs of consecutive steps of eight games, (16, 210, 160, 3)."""
    parts = {part.game: part.frames for part in shipped}
    games: tuple[str, ...] = probe_frames.whole["PROBE_GAMES"]  # type: ignore[attr-defined]
    return np.concatenate([parts[game][4:6] for game in games])


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Request]:
    """A request for a timm test model with random weights: `tiny("vit", "grid:2")`."""

    def ask(name: str, output: str = "pooled", **options: Any) -> Request:
        return registry.parse_request(f"timm:test_{name}:random", {}, output, **options)

    return ask


class _Convolution(nn.Module):
    """One convolution, (B, 3 x window, 32, 32) to a map (B, 16, 4, 4)."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3 * window, 16, 8, 8)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layer(pixels)


@pytest.fixture(scope="session")
def small() -> Iterator[Callable[..., Request]]:
    """A request for a network of one random convolution: `small("a", "grid:2", window=4)`."""
    build = networks.build

    def ask(name: str = "a", output: str = "pooled", window: int = 1) -> Request:
        return Request(f"small_{name}_{window}", "test_resnet.r160_in1k", "random", output)

    def build_small(request: Request) -> Any:
        if not request.alias.startswith("small_"):
            return build(request)
        window = int(request.alias.rpartition("_")[2])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum(request.alias.encode()))
            network = UserNetwork(UserModel(_Convolution(window), Input(32, 32), window))
        return network.eval().requires_grad_(False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "build", build_small)
        yield ask


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., Encoder]:
    """Make an encoder without a store or a basis: `make_encoder(request)`."""

    def make(request: Request, **options: Any) -> Encoder:
        module = networks.build(request)
        how = identity.identify(module, request).preprocessing
        return Encoder(module, how, parse_output(request.output), **options)

    return make


@pytest.fixture(scope="session")
def estimate_job() -> Callable[..., Estimate]:
    """The estimate of a dry run, measured in this process: `estimate_job(snapshot, request, games)`."""

    def make(snapshot: Snapshot, request: Request, games: Sequence[str]) -> Estimate:
        sized, _ = measure_model(snapshot, request, Encoding([request], games, "cpu"))
        return estimate(snapshot, request, games, sized)

    return make


@pytest.fixture(scope="session")
def encode_all() -> Callable[..., EncodeReport]:
    """Encode a store in this process: `encode_all(store, request, games=["Pong"], tries=1)`."""

    def run(
        backend: Backend,
        *requests: Request,
        games: Sequence[str] = (),
        engine: str = "auto",
        tries: int = 3,
        **options: Any,
    ) -> EncodeReport:
        encoding = Encoding(requests, games, "cpu", engine, tries=tries)
        return encode(backend, encoding, scheduler="inproc", **options)

    return run


@pytest.fixture(scope="session")
def emptied() -> Callable[[flat_map.FlatMap], Any]:
    """The models of a flat map without any of its frames, so that every frame has to run."""

    def empty(known: flat_map.FlatMap) -> Any:
        blank: Any = copy.copy(known)
        blank.digests = known.digests[:0]
        blank.window_digests = lambda window: blank.digests
        return blank

    return empty


@pytest.fixture(scope="session")
def run_wsa() -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: `run_wsa("status")` returns exit code, output, and errors."""
    return command_kit.run


@pytest.fixture
def batch_sizes() -> Iterator[list[int]]:
    """Sizes of all batches that reach the first layer of a network: the true number of passes."""
    sizes: list[int] = []

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            sizes.append(len(args[0]))

    handle = nn.modules.module.register_module_forward_pre_hook(record)
    yield sizes
    handle.remove()


@pytest.fixture
def fresh_workers() -> None:
    """Workers in this process open their models again."""
    tasks._models.clear()


@pytest.fixture(scope="session")
def noise() -> Callable[[int], Frames]:
    """`noise(i)` is a small frame that differs for every i."""

    def make(number: int) -> Frames:
        return np.random.default_rng(number).integers(0, 256, (12, 10, 3), np.uint8)

    return make


@pytest.fixture(scope="session")
def make_segment(kit: ModuleType) -> Callable[..., tuple[SegmentMeta, layout.Arrays]]:
    """Make a segment of chosen frames: `make_segment(number, frames, game="Pong")`."""

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
    make_segment: Callable[..., tuple[SegmentMeta, layout.Arrays]], noise: Callable[[int], Frames]
) -> Callable[..., list[SegmentMeta]]:
    """`fill(store, [[0, 1], [1, 2]])` commits segments of `noise` frames with these numbers."""

    def commit(
        backend: Backend, numbers: Sequence[Sequence[int]], game: str = "Pong", first: int = 0
    ) -> list[SegmentMeta]:
        metas = []
        for at, shown in enumerate(numbers, first):
            meta, arrays = make_segment(at, [noise(i) for i in shown], game)
            writer.commit_segment(backend, meta, arrays)
            metas.append(meta)
        return metas

    return commit


@pytest.fixture(scope="session")
def damage_frames() -> Callable[[Backend, SegmentMeta], None]:
    """Replace the pixels of a segment by garbage."""

    def damage(backend: Backend, meta: SegmentMeta) -> None:
        commit = take_snapshot(backend).commit(names.frames_path(meta.game, meta.segment))
        (name,) = [file.name for file in commit.files if file.name.startswith("frames/c")]
        chunk = Path(backend.url) / commit.folder / name
        chunk.unlink()
        chunk.write_bytes(b"garbage")

    return damage


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
    """`tree()` returns the checksum of every file of the store."""
    return Tree(Path(store.url))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Restore torch's number of threads after a test that changes it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def atari_store(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """A read-only store of Breakout and Pong: four episodes each, of which the first 40 steps.

    Segments are cut after 25 steps, so some begin inside an episode.
    """
    backend = open_store(str(tmp_path_factory.mktemp("atari") / "store"), create=True)
    for game in ("Breakout", "Pong"):
        plan = plan_collection(
            take_snapshot(backend),
            game,
            protocol(game, "classic"),
            steps=160,
            num_envs=4,
            policy="random",
            seed=1,
            segment_steps=25,
        )
        collect(plan, backend)
    return backend


@pytest.fixture(scope="session")
def read_examples(atari_store: Backend) -> Callable[..., Examples]:
    """Read training examples of real games: `read_examples(Autoencoder.training_input, "Pong")`."""
    snapshot = take_snapshot(atari_store)

    @functools.cache
    def read(training_input: TrainingInput, *games: str) -> Examples:
        chosen = data.choose(snapshot, games or ("Breakout", "Pong"), (), [training_input], 1 << 30)
        return data.read(snapshot, chosen.segments, training_input, 0.25)

    def read_copy(training_input: TrainingInput, *games: str) -> Examples:
        examples = copy.copy(read(training_input, *games))  # Tests replace rows and methods.
        examples.training = dict(examples.training)
        examples.held_out = dict(examples.held_out)
        return examples

    return read_copy


@pytest.fixture(scope="session")
def measure_cost() -> Callable[..., tuple[int, int]]:
    """Count a module's parameters and a call's multiplications: `measure_cost(module, call, input)`."""

    def count(
        module: nn.Module, call: Callable[..., Any], *inputs: torch.Tensor
    ) -> tuple[int, int]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call(*inputs)
        return sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2

    return count
