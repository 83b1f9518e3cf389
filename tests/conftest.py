"""Fixtures for the tests of every room, and the hypothesis profiles.

`HYPOTHESIS_PROFILE=nightly`, which `make nightly` sets, runs forty times as many examples. A test
whose examples write files or run a model asks for a share of them.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

# Tests send Ctrl-C, which a shell's background job ignores, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported anywhere: on busy cores its threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing that is imported or collected is garbage; searching it takes a sixth of the time.
gc.disable()

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Tests that ask for `checked_shapes` check the shapes in signatures, and `make nightly` checks them
# in all tests. This takes a good part of the time of a small training; elsewhere it costs nothing.
install_import_hook(["wsa.learn.fusion", "wsa.learn.networks.heads"], "beartype.beartype")

from wsa.store.backends.base import Backend
from wsa.store.format import arrays
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.root import open_store
from wsa.store.testing.faults import MemoryBackend

HERE = Path(__file__).parent

# Machines that run tests are busy, so there are no deadlines.
settings.register_profile(
    "default", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
jaxtyping.config.update("jaxtyping_disable", os.environ.get("HYPOTHESIS_PROFILE") != "nightly")


def _load(name: str, folder: Path = HERE) -> ModuleType:
    # `tests` is not a package, so kits are loaded from their files.
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Shorten the probe frames, here and in every process that a test starts.
_load("sitecustomize", HERE / "short")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE / "short"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

_load("command_kit")  # For `from command_kit import options`.
_load("browser_kit")


@pytest.hookimpl(tryfirst=True)  # Before slow tests are deselected.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all but the first parameters of a test that is marked `variants` as slow.

    Tests that wait for processes come first, on one worker, which then starts one warm parent.
    """
    seen: set[str] = set()
    for item in items:
        if item.get_closest_marker("variants"):
            test = item.nodeid.partition("[")[0]
            if test in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(test)
    items.sort(key=lambda item: "warm" not in getattr(item, "fixturenames", ()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Collect garbage again, but only what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """The tests' own process does not wait for the disk: no test outlives a power cut.

    Tests of flushing watch the calls; the processes of the nursery really flush.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def encode_once() -> Iterator[None]:
    """Writers encode equal small arrays once: Zarr takes 60 ms of CPU for a segment of 12 steps.

    `store/test_layout.py` tests the encoder itself, and that equal arrays give equal files.
    """
    from wsa.store.objects import writer

    encoded: dict[str, arrays.Files] = {}

    def memoize(encode: Callable[[Any], arrays.Files]) -> Callable[[Any], arrays.Files]:
        def encode_once(given: Any) -> arrays.Files:
            named = given if isinstance(given, dict) else {"": given}
            if sum(array.nbytes for array in named.values()) > 1 << 18:
                return encode(given)
            digest = hashlib.sha256(encode.__name__.encode())
            for name, array in named.items():
                digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
                digest.update(array.tobytes())
            key = digest.hexdigest()
            if key not in encoded:
                encoded[key] = encode(given)
            return dict(encoded[key])

        return encode_once

    layout = SimpleNamespace(**vars(arrays))
    layout.encode_group = memoize(arrays.encode_group)
    layout.encode_embedding = memoize(arrays.encode_embedding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "layout", layout)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes that they start, do not use the cache in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def pytorch_alone() -> Iterator[None]:
    """`--engine auto` tries PyTorch only, because OpenVINO takes seconds to convert a model.

    Tests of engines name one, or ask for `every_engine`.
    """
    from wsa.encode.inference import engines

    offered = engines.offered
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            engines, "offered", lambda *how: [n for n in offered(*how) if n != "openvino"]
        )
        patch.setattr(engines, "really_offered", offered, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def docstrings_read_once() -> Iterator[None]:
    """tyro tokenizes an options class once, not for every parsed command line.

    Without this, half of the 0.16 CPU s that `wsa learn` takes to parse its options goes there.
    """
    from tyro import _docstrings

    tokens = _docstrings._ClassTokenization
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "make", staticmethod(cache(tokens.make)))
        yield


@pytest.fixture(scope="module")
def checked_shapes() -> Iterator[None]:
    """Check tensors against the shapes in the signatures of fusions and networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", False)
        yield


@pytest.fixture
def every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--engine auto` tries all engines, as outside of tests."""
    from wsa.encode.inference import engines

    monkeypatch.setattr(engines, "offered", engines.really_offered)  # type: ignore[attr-defined]


@pytest.fixture
def all_probe_frames() -> Iterator[None]:
    """All probe frames that wsa ships, in this process."""
    from wsa.encode.registration import probe_frames

    with pytest.MonkeyPatch.context() as patch:
        for name, value in probe_frames.whole.items():  # type: ignore[attr-defined]
            patch.setattr(probe_frames, name, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def emulators() -> Iterator[Any]:
    """Reuse closed emulators, because a new one takes 0.1 s.

    After `reset(seed=...)` a used one plays like a new one; `learn/test_env.py` checks it with
    `new_emulators`.
    """
    from wsa.learn.envs import atari

    make = atari.make_env
    free: dict[Any, list[Any]] = defaultdict(list)

    def reuse(game: str, protocol: Any, num_envs: int) -> Any:
        others = ("name", "actions", "max_steps")  # The emulator does not depend on these.
        settings = {f: getattr(protocol, f) for f in protocol.__struct_fields__ if f not in others}
        key = (game, num_envs, *settings.items())
        env: Any = free[key].pop() if free[key] else make(game, protocol, num_envs)
        env._max_steps = protocol.max_steps
        in_use = [env]
        env.close = lambda **_: free[key].append(in_use.pop()) if in_use else None
        return env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atari, "make_env", reuse)
        patch.setattr(atari, "really_make_env", make, raising=False)
        yield free


@pytest.fixture
def new_emulators() -> Iterator[None]:
    """Make a new emulator each time, as outside of tests."""
    from wsa.learn.envs import atari

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atari, "make_env", atari.really_make_env)  # type: ignore[attr-defined]
        yield


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """`tests/store_kit.py`: fake segments, embeddings, and models, and processes to kill."""
    return _load("store_kit")


@pytest.fixture
def service(tmp_path: Path, warm: Any) -> Iterator[Callable[..., Any]]:
    """`service(*options)` starts `wsa encode --watch` as a process: a `service_kit.Service`."""
    with _load("service_kit").services(tmp_path, warm.start) as start:
        yield start


@pytest.fixture
def on_disk(tmp_path: Path) -> Backend:
    """An empty store in a folder."""
    return open_store(str(tmp_path / "store"), create=True)


@pytest.fixture
def in_memory() -> MemoryBackend:
    """An empty store in memory: like one in a folder (`store/test_backends.py`), and twice as fast."""
    backend = MemoryBackend()
    backend.put_new("wsa.json", b'{"format":1}')
    return backend


@pytest.fixture
def store(on_disk: Backend) -> Backend:
    """An empty store in a folder, or in memory where a module replaces this fixture."""
    return on_disk


@pytest.fixture(scope="session")
def fake_segment(kit: ModuleType) -> Callable[..., tuple[SegmentMeta, arrays.Arrays]]:
    """`store_kit.fake_segment`: a valid segment of noise, `(meta, arrays)`, without an emulator."""
    make: Callable[..., tuple[SegmentMeta, arrays.Arrays]] = kit.fake_segment
    return make


@pytest.fixture(scope="session")
def stacked() -> Iterator[Callable[..., Any]]:
    """`stacked(4, "pooled")` requests a tiny random network that sees four frames."""
    import timm
    import torch

    from wsa.encode.models import networks, registry

    build = networks.build

    def make_request(window: int, output: str = "pooled") -> registry.Request:
        return registry.Request(f"stacked{window}", "test_resnet.r160_in1k", "random", output)

    def build_stacked(request: registry.Request) -> Any:
        if not request.alias.startswith("stacked"):
            return build(request)
        window = int(request.alias.removeprefix("stacked"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(window)
            network: Any = timm.create_model("test_resnet", num_classes=0, in_chans=3 * window)
        network.window = window
        return network.eval().requires_grad_(False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "build", build_stacked)
        yield make_request


@pytest.fixture(scope="session")
def nursery(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A `store_kit.Nursery`, which forks processes with the environment of the running test."""
    with _load("warm_process").warm_parent(kit.MODULES, "") as parent:
        yield kit.Nursery(parent, tmp_path_factory.mktemp("nursery"))


@pytest.fixture(scope="session")
def warm() -> Iterator[Any]:
    """A `warm_process.Nursery`, which starts commands that need torch in 0.1 s."""
    with _load("warm_process").warm_parent() as parent:
        yield parent
