"""Inference engines: rows do not depend on the batch, engines agree with PyTorch, and refusals."""

import builtins
import contextlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa.encode.inference import encoder as staging
from wsa.encode.inference import engines, openvino
from wsa.encode.inference.engines import make, require
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.inference.trunk import Trunk
from wsa.encode.models.networks import build
from wsa.encode.models.registry import parse_request
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.probe import step_error

CPU = torch.device("cpu")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# With PyTorch, batches of the first three give results that depend on the batch or the threads.
COMBINATIONS = [
    *(("torch", name, "fp32") for name in ("convnext2", "efficientnet", "vit3", "resnet", "vit")),
    ("openvino", "resnet", "fp32"),
    ("openvino", "vit", "fp32"),
    ("openvino", "vit", "bf16"),
    slow(("openvino", "resnet", "bf16")),
    slow(("compile", "vit", "fp32")),
]


@pytest.fixture(scope="module")
def alone(frames, make_encoder, tiny):
    """An encoder, and its embedding of each frame alone, on one core."""
    computed = {}

    def of(engine, name, precision):
        if reason := engines.why_not(engine, CPU, precision):
            pytest.skip(reason)
        if (engine, name, precision) not in computed:
            torch.set_num_threads(1)
            encoder = make_encoder(tiny(name, "grid:2"), engine=engine, precision=precision)
            rows = np.concatenate([encoder(frame[None]) for frame in frames])
            computed[engine, name, precision] = encoder, rows
        return computed[engine, name, precision]

    return of


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
@settings(max_examples=settings().max_examples // 8)
@given(
    picked=st.one_of(
        st.permutations(range(16)),
        st.sampled_from([1, 3, 8, 17]).flatmap(
            lambda n: st.lists(st.integers(0, 15), min_size=n, max_size=n)
        ),
    ),
    threads=st.sampled_from([1, 2, 3]),
)
def test_a_row_depends_on_its_frame_alone(combination, picked, threads, frames, alone):
    encoder, rows = alone(*combination)
    torch.set_num_threads(threads)
    before = encoder.passes
    np.testing.assert_array_equal(encoder(frames[picked]), rows[picked])
    assert encoder.passes - before == len(picked)
    assert torch.get_num_threads() == threads, "the caller's threads are unchanged"


@pytest.mark.parametrize("name", ["resnet", pytest.param("vit", marks=pytest.mark.slow)])
def test_openvino_runs_batches_only_if_they_change_no_bit(name, frames, tiny, monkeypatch):
    trunk = Trunk(build(tiny(name)), parse_output("pooled")).eval()
    engine = make("openvino", trunk, (3, 160, 160), CPU, "fp32")
    assert engine.batch == openvino.BATCH
    # If a batch changed a bit, OpenVINO would run frame by frame.
    monkeypatch.setattr(openvino.torch, "equal", lambda a, b: False)
    single = make("openvino", trunk, (3, 160, 160), CPU, "fp32")
    assert single.batch == 1
    pixels = torch.rand(6, 3, 160, 160)
    np.testing.assert_array_equal(single(pixels).numpy(), engine(pixels).numpy())


@pytest.mark.parametrize("engine", [pytest.param("compile", marks=pytest.mark.slow), "openvino"])
def test_engines_agree_with_pytorch(engine, frames, make_encoder, alone):
    _, expected = alone("torch", "vit", "fp32")
    encoder, rows = alone(engine, "vit", "fp32")
    assert encoder.engine.name == engine
    assert step_error(rows, expected) < 1e-3
    assert rows.shape == expected.shape and rows.dtype == np.float32


@pytest.mark.slow
def test_openvino_runs_trained_weights_and_windows(frames, make_encoder, stacked):
    for request, shown in (
        (parse_request("lite0", {}, "grid:7"), frames),
        (stacked(4, "pooled"), np.stack([frames[i : i + 4] for i in range(8)])),
    ):
        exact = make_encoder(request)(shown)
        rows = make_encoder(request, engine="openvino")(shown)
        assert step_error(rows, exact) < 1e-3


# Every alias, a timm model of each kind, and users' own models. Nightly runs try those that take
# seconds, and compile.
FAST = ["ae", "timm:test_convnext:random", "user_nets:scripted"]
TRIED = ["ae", "sr", "vos", *(f"timm:test_{kind}:random" for kind in ("vit", "resnet", "convnext"))]
USERS = ["user_nets:named", "user_nets:scripted", "user_nets:tokens"]
LARGE = ["oke", "okk", "lite0", "lite1", "lite2", "timm:vit_tiny_patch16_224:random"]
LARGE += ["timm:resnet18:random", "timm:convnext_atto:random"]


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *((name, "openvino") for name in FAST),
        *(slow(name, "openvino") for name in [*TRIED, *USERS, *LARGE] if name not in FAST),
        *(slow(name, "compile") for name in [*TRIED, *LARGE]),
    ],
)
def test_every_kind_of_model_runs_in_every_engine(name, engine, frames, make_encoder, monkeypatch):
    if reason := engines.why_not(engine, CPU, "fp32"):
        pytest.skip(reason)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    request = parse_request(name, {}, "pooled" if ":" in name or "lite" in name else "")
    window = getattr(build(request), "window", 1)
    shown = frames[:4] if window == 1 else np.stack([frames[i : i + window] for i in range(4)])
    encoder = make_encoder(request, engine=engine)
    assert encoder.engine.name == engine
    assert step_error(encoder(shown), make_encoder(request)(shown)) < 1e-3


def test_bf16_has_a_step_error_above_that_of_fp32(frames, alone):
    _, exact = alone("torch", "vit", "fp32")
    _, rough = alone("openvino", "vit", "bf16")
    assert 1e-3 < step_error(rough, exact) < 1


# Which engines are available, and errors if one is not.


def test_auto_tries_torch_and_openvino_but_does_not_compile(every_engine):
    assert engines.offered(CPU, "fp32") == ["torch", "openvino"]
    assert "compile" not in engines.offered(CPU, "bf16")


def without_openvino(monkeypatch):
    find, load = importlib.util.find_spec, builtins.__import__

    def refuse(name, *rest):
        if name.partition(".")[0] == "openvino":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name)
    )
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "wsa.encode.inference.openvino")


def test_pytorch_runs_all_without_openvino(every_engine, frames, make_encoder, tiny, monkeypatch):
    without_openvino(monkeypatch)
    assert engines.offered(CPU, "fp32") == ["torch"]
    assert np.isfinite(make_encoder(tiny("resnet"))(frames[:1])).all()
    with pytest.raises(MissingError) as refused:
        make_encoder(tiny("resnet"), engine="openvino")
    assert str(refused.value) == (
        "--engine openvino needs OpenVINO, which is not installed: pip install 'wsa[cpu]', or use "
        "--engine torch."
    )


@pytest.mark.parametrize(
    ("engine", "device", "precision", "message"),
    [
        ("tvm", "cpu", "fp32", "'tvm' is not one; choose from auto, torch, compile, openvino."),
        ("openvino", "cuda", "fp32", "openvino runs on a CPU; use torch or compile, or --device"),
        ("openvino", "cpu", "tf32", "tf32 needs an NVIDIA GPU; on a CPU use fp32 or bf16."),
        ("torch", "cpu", "tf32", "tf32 needs an NVIDIA GPU; on a CPU use fp32 or bf16."),
    ],
)
def test_an_impossible_engine_or_precision_is_refused(engine, device, precision, message):
    with pytest.raises(UsageError, match=message):
        require(engine, torch.device(device), precision)


def test_a_precision_that_the_processor_lacks_is_refused(monkeypatch):
    class Old:
        def get_property(self, device, name):
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "_core", Old)
    assert openvino.capable("fp32") and not openvino.capable("bf16")
    with pytest.raises(UsageError, match="no bf16 on this CPU; use --engine torch or fp32"):
        require("openvino", CPU, "bf16")
    assert engines.why_not("openvino", CPU, "fp32") == ""


def test_compile_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingError, match=r"compiler, such as g.*; install one, or use torch"):
        require("compile", CPU, "fp32")


# How a GPU is fed, tested without one.


class FakeCuda:
    """A stand-in for `torch.cuda` that logs who waits for what."""

    def __init__(self):
        self.log = []
        self.recorded = 0

    def Event(self):
        return FakeEvent(self)

    def Stream(self, device):
        return FakeStream(self, "copies")

    def current_stream(self, device):
        return FakeStream(self, "computing")

    def stream(self, stream):
        return contextlib.nullcontext()


class FakeEvent:
    def __init__(self, cuda):
        self.cuda, self.number = cuda, -1

    def synchronize(self):
        if self.number >= 0:
            self.cuda.log.append(f"host waits for {self.number}")

    def record(self, stream):
        self.number = self.cuda.recorded
        self.cuda.recorded += 1


class FakeStream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.log.append(f"{self.name} waits for {other.name}")


@given(count=st.integers(1, 14), batches=st.sets(st.integers(1, 5), min_size=1).map(sorted))
def test_a_gpu_gets_full_batches_and_returns_every_row_once(count, batches):
    frames = np.random.default_rng(count).integers(0, 256, (count, 2, 3, 3), np.uint8)
    sizes = []

    def function(part):
        sizes.append(len(part))
        return part.float().flatten(1) * 2  # A new tensor, because the buffer is reused.

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
        patch.setattr(torch, "cuda", FakeCuda())
        rows = staging.run_on_gpu(function, frames, batches, CPU)
    np.testing.assert_array_equal(rows.numpy(), frames.reshape(count, -1).astype(np.float32) * 2)
    whole, rest = divmod(count, batches[-1])
    last = [min(size for size in batches if size >= rest)] if rest else []
    assert sizes == [batches[-1]] * whole + last


def test_the_host_waits_only_for_the_batch_before_the_last(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    staging.run_on_gpu(lambda part: part.float(), np.zeros((8, 2), np.uint8), [2], CPU)
    compute = "computing waits for copies"
    assert cuda.log == [
        "copies waits for computing",
        compute,
        compute,
        "host waits for 0",
        compute,
        "host waits for 1",
        compute,
    ]


class Rounding:
    """An engine that rounds differently in batches of these sizes."""

    batch = 256

    def __init__(self, name, *other):
        self.name, self._other, self.sizes = name, other, set[int]()

    def __call__(self, pixels):
        self.sizes.add(len(pixels))
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        return pixels.flatten(1) + 1e-6 * (len(pixels) in self._other)


@pytest.mark.parametrize(
    ("other", "expected"), [((), (16, 32, 64, 128, 256)), ((16, 64), (32, 128, 256))]
)
def test_a_smaller_batch_is_used_only_if_it_changes_no_bit(other, expected):
    engine = Rounding("torch", *other)
    assert engines.equal_batches(engine, (3, 8, 8), CPU) == expected
    assert engine.sizes == {16, 32, 64, 128, 256}
    compiled = Rounding("compile")
    assert engines.equal_batches(compiled, (3, 8, 8), CPU) == (256,) and not compiled.sizes


def test_pixels_reach_the_engine_preprocessed_and_channels_last(frames, make_encoder, tiny):
    encoder = make_encoder(tiny("resnet"))
    batches = []
    engine = encoder.engine

    class Recorder:
        name, batch = engine.name, engine.batch

        def __call__(self, pixels):
            batches.append(pixels)
            return engine(pixels)

    encoder.engine = Recorder()
    encoder(frames)
    expected = preprocess(torch.from_numpy(frames.copy()), encoder.preprocessing)
    assert sum(map(len, batches)) == encoder.passes == len(frames)
    np.testing.assert_array_equal(torch.cat(batches).numpy(), expected.numpy())
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in batches)


def test_openvino_sends_no_telemetry():
    from openvino.tools.ovc import convert_impl, telemetry_stub

    assert convert_impl.tm is telemetry_stub
