"""Fixtures that every room's tests may use, and the hypothesis profiles.

`HYPOTHESIS_PROFILE=nightly` runs ten times as many examples.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Before torch is imported anywhere: on busy cores its threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Shapes written in signatures are checked in tests, and cost nothing elsewhere.
install_import_hook(["wsa.learn.fusion", "wsa.learn.networks.heads"], "beartype.beartype")

from wsa.store.backends.base import Backend
from wsa.store.format import arrays
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.root import open_store

# Machines that run tests are busy: no deadlines. Session fixtures only are used under @given.
settings.register_profile(
    "default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _load(name: str) -> ModuleType:
    # `tests` is no package: helpers are loaded by their place and handed out as fixtures.
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_load("command_kit")  # For `from command_kit import options`.


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


@pytest.fixture
def every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` tries what it tries outside of tests."""
    from wsa.encode.inference import engines

    monkeypatch.setattr(engines, "offered", engines.really_offered)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """`tests/store_kit.py`: fake segments, embeddings and models, and processes to kill."""
    return _load("store_kit")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`service(*options)` starts `wsa encode --watch` as a process: a `service_kit.Service`."""
    with _load("service_kit").services(tmp_path) as start:
        yield start


@pytest.fixture
def store(tmp_path: Path) -> Backend:
    """An empty store, opened."""
    return open_store(str(tmp_path / "store"), create=True)


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
    """A `store_kit.Nursery`, which starts real processes quickly."""
    folder = tmp_path / "nursery"
    folder.mkdir()
    with kit.nursery(folder) as made:
        yield made
