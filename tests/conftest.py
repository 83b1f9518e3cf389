"""Fixtures that every room's tests may use, and the hypothesis profiles.

`HYPOTHESIS_PROFILE=nightly`, which `make nightly` sets, runs forty times as many examples. Where an
example writes files or runs a model a test asks for a share of them.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Before torch is imported anywhere: on busy cores its threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing that is imported or collected is garbage, and to look for some in it takes a sixth of the time.
gc.disable()

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Shapes written in signatures are checked in tests that ask for `checked_shapes`, and by night in
# all: that is a good part of a small training. They cost nothing elsewhere.
install_import_hook(["wsa.learn.fusion", "wsa.learn.networks.heads"], "beartype.beartype")

from wsa.store.backends.base import Backend
from wsa.store.format import arrays
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.root import open_store
from wsa.store.testing.faults import MemoryBackend

HERE = Path(__file__).parent

# Machines that run tests are busy: no deadlines. Session fixtures only are used under @given.
settings.register_profile(
    "default", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
jaxtyping.config.update("jaxtyping_disable", os.environ.get("HYPOTHESIS_PROFILE") != "nightly")


def _load(name: str, folder: Path = HERE) -> ModuleType:
    # `tests` is no package: helpers are loaded by their place and handed out as fixtures.
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# A short strip, here and in every process that a test starts.
_load("sitecustomize", HERE / "short")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE / "short"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

_load("command_kit")  # For `from command_kit import options`.
_load("browser_kit")


@pytest.hookimpl(tryfirst=True)  # Before the choice of what is slow is made.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave all but the first parameters of a test that is marked `variants` to the night.

    Tests that wait for processes come first, and on one worker, which starts one warm parent.
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
    """From now on look for garbage, but only among what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Tests do not outlive a power cut, so their own process need not wait for the disk.

    That files are flushed, and in which order, is tested by watching the calls; the processes of
    the nursery flush for real.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no process that one starts, reads or writes the cache in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def pytorch_alone() -> Iterator[None]:
    """`auto` tries PyTorch and nothing else: to convert a model takes OpenVINO seconds.

    What is about engines names one, or asks for `every_engine`.
    """
    from wsa.encode.inference import engines

    offered = engines.offered
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            engines, "offered", lambda *how: [n for n in offered(*how) if n != "openvino"]
        )
        patch.setattr(engines, "really_offered", offered, raising=False)
        yield


@pytest.fixture(scope="module")
def checked_shapes() -> Iterator[None]:
    """Tensors are held to the shapes in the signatures of fusions and networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", False)
        yield


@pytest.fixture
def every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` tries what it tries outside of tests."""
    from wsa.encode.inference import engines

    monkeypatch.setattr(engines, "offered", engines.really_offered)  # type: ignore[attr-defined]


@pytest.fixture
def whole_strip() -> Iterator[None]:
    """The strip and the probe frames as they are shipped, in this process."""
    from wsa.encode.registration import probe_frames

    with pytest.MonkeyPatch.context() as patch:
        for name, value in probe_frames.whole.items():  # type: ignore[attr-defined]
            patch.setattr(probe_frames, name, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def emulators() -> Iterator[Any]:
    """Emulators that were closed are handed out again, for one takes 0.1 s to make.

    After `reset(seed=...)` one that was used plays as a new one does, which
    `learn/test_env.py` shows by `new_emulators`.
    """
    from wsa.learn.envs import atari

    make = atari.make_env
    free: dict[Any, list[Any]] = defaultdict(list)

    def hand_out(game: str, stated: Any, num_envs: int) -> Any:
        played = ("name", "actions", "max_steps")  # These are no matter of the emulator.
        facts = {f: getattr(stated, f) for f in stated.__struct_fields__ if f not in played}
        key = (game, num_envs, *facts.items())
        env: Any = free[key].pop() if free[key] else make(game, stated, num_envs)
        env._max_steps = stated.max_steps
        left = [env]
        env.close = lambda **_: free[key].append(left.pop()) if left else None
        return env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atari, "make_env", hand_out)
        patch.setattr(atari, "really_make_env", make, raising=False)
        yield free


@pytest.fixture
def new_emulators() -> Iterator[None]:
    """Each emulator is a new one, as outside of tests."""
    from wsa.learn.envs import atari

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atari, "make_env", atari.really_make_env)  # type: ignore[attr-defined]
        yield


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """`tests/store_kit.py`: fake segments, embeddings and models, and processes to kill."""
    return _load("store_kit")


@pytest.fixture
def service(tmp_path: Path, warm: Any) -> Iterator[Callable[..., Any]]:
    """`service(*options)` starts `wsa encode --watch` as a process: a `service_kit.Service`."""
    with _load("service_kit").services(tmp_path, warm.start) as start:
        yield start


@pytest.fixture
def on_disk(tmp_path: Path) -> Backend:
    """An empty store in a folder, opened."""
    return open_store(str(tmp_path / "store"), create=True)


@pytest.fixture
def in_memory() -> MemoryBackend:
    """An empty store in memory: as one in a folder (`store/test_backends.py`), in half the time."""
    made = MemoryBackend()
    made.put_new("wsa.json", b'{"format":1}')
    return made


@pytest.fixture
def store(on_disk: Backend) -> Backend:
    """An empty store, in a folder unless a module replaces this by one in memory."""
    return on_disk


@pytest.fixture(scope="session")
def fake_segment(kit: ModuleType) -> Callable[..., tuple[SegmentMeta, arrays.Arrays]]:
    """`store_kit.fake_segment`: a valid segment of noise, `(meta, arrays)`, without an emulator."""
    made: Callable[..., tuple[SegmentMeta, arrays.Arrays]] = kit.fake_segment
    return made


@pytest.fixture(scope="session")
def stacked() -> Iterator[Callable[..., Any]]:
    """A request for a tiny random network that looks at several frames: `stacked(4, "pooled")`."""
    import timm
    import torch

    from wsa.encode.models import registry

    build = registry.build

    def ask(window: int, output: str = "pooled") -> registry.Request:
        return registry.Request(f"stacked{window}", "test_resnet.r160_in1k", "random", output)

    def make(request: registry.Request) -> Any:
        if not request.alias.startswith("stacked"):
            return build(request)
        window = int(request.alias.removeprefix("stacked"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(window)
            network: Any = timm.create_model("test_resnet", num_classes=0, in_chans=3 * window)
        network.window = window
        return network.eval().requires_grad_(False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "build", make)
        yield ask


@pytest.fixture
def nursery(kit: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """A `store_kit.Nursery`, which starts processes with this test's environment in no time."""
    folder = tmp_path / "nursery"
    folder.mkdir()
    with kit.nursery(folder) as made:
        yield made


@pytest.fixture(scope="session")
def warm() -> Iterator[Any]:
    """A `warm_process.Nursery`, which starts commands that need torch in no time."""
    with _load("warm_process").warm_parent() as made:
        yield made
