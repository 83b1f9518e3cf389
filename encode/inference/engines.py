"""What runs a network: the same function of pixels, at the speed of the machine.

An engine is made of a `Trunk`, a device and a precision, and is called with a batch of pixels.
Whichever it is, a row depends on its frame alone, to the last bit. A library may sum in another
order for another batch or another number of threads (measured: EfficientNet-Lite0 in PyTorch
differs with one and two threads, ViT-B with batches of one and eight), so on a CPU PyTorch runs
frame by frame, each on one core, and OpenVINO in batches that it has shown to make no difference;
on a GPU every batch has the same size. Engines differ from each other in the last bits of a number;
`wsa.encode.registration.engine_choice` measures by how much before one is used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from wsa.encode.inference.trunk import Trunk
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.objects.model_spec import Precision

NAMES = ("torch", "compile", "openvino")
GPU_BATCH = 256

_tf32 = threading.Lock()
_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Engine(Protocol):
    """A network ready to run.

    Attributes:
        name: What users call the engine.
        batch: Frames that it runs at once. On a GPU it is called with exactly so many.
    """

    name: str
    batch: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, c, h, w) float32 on the device to (B, *shape) float32 there."""
        ...


def make(
    name: str,
    trunk: Trunk,
    shape: tuple[int, int, int],
    device: torch.device,
    precision: Precision,
    threads: int | None = None,
) -> Engine:
    """An engine.

    Args:
        name: Which one.
        trunk: The network, on the device.
        shape: Channels, height and width of its input.
        device: Where it runs.
        precision: Arithmetic of the forward pass.
        threads: Threads of a CPU that call it at once; as many as torch uses if not given.

    Raises:
        MissingError: It is not installed.
        UsageError: It has no such arithmetic there.
    """
    require(name, device, precision)
    if name == "openvino":
        from wsa.encode.inference.openvino import OpenVINO

        return OpenVINO(trunk, shape, precision, threads)
    if name == "compile":
        return Compiled(trunk, shape, device, precision)
    return Eager(trunk, device, precision)


class Eager:
    """PyTorch as it is."""

    name = "torch"

    def __init__(self, trunk: Trunk, device: torch.device, precision: Precision) -> None:
        self.batch = 1 if device.type == "cpu" else GPU_BATCH
        self._trunk: Any = trunk
        self._device = device
        self._precision: Precision = precision

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, c, h, w) to (B, *shape)."""
        with torch.inference_mode(), arithmetic(self._device, self._precision):
            found = [self._trunk(part) for part in pixels.split(self.batch)]
            return torch.cat(found).float()


class Compiled(Eager):
    """PyTorch compiled for one shape of batch: CUDA graphs on a GPU, C++ on a CPU."""

    name = "compile"

    def __init__(
        self,
        trunk: Trunk,
        shape: tuple[int, int, int],
        device: torch.device,
        precision: Precision,
    ) -> None:
        super().__init__(trunk, device, precision)
        # A CUDA graph lives in the thread that recorded it, whichever calls. All threads use the
        # device's default stream, so this changes no order.
        self._thread = ThreadPoolExecutor(1) if device.type != "cpu" else None
        self._trunk = (
            torch.compile(trunk, dynamic=False, mode="reduce-overhead")
            if self._thread
            else torch.compile(trunk, dynamic=False, options={"freezing": True})
        )
        with one_thread():  # As all frames run on a CPU: the code would be made for more.
            pixels = torch.zeros((self.batch, *shape), device=device)
            self(pixels.to(memory_format=torch.channels_last))

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, c, h, w) to (B, *shape)."""
        if self._thread is None:
            return super().__call__(pixels)
        return self._thread.submit(self._replay, pixels).result()

    def _replay(self, pixels: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return super().__call__(pixels).clone()  # The next replay writes where this one did.


def why_not(name: str, device: torch.device, precision: Precision) -> str:
    """Why an engine cannot be used, and what would help; empty if it can."""
    return _lacking(name, device) or _impossible(name, device, precision)


def require(name: str, device: torch.device, precision: Precision) -> None:
    """Refuse an engine that cannot be used.

    Raises:
        MissingError: It is not installed.
        UsageError: There is none of that name, or it has no such arithmetic there.
    """
    if reason := _lacking(name, device):
        raise MissingError("no-library", reason)
    if reason := _impossible(name, device, precision):
        raise UsageError("bad-option", reason)


def _lacking(name: str, device: torch.device) -> str:
    """What is not installed here, and how to get it; empty where nothing is."""
    on_cpu = device.type == "cpu"
    if name == "openvino" and on_cpu and importlib.util.find_spec("openvino") is None:
        return (
            "--engine openvino needs OpenVINO, which is not installed: pip install 'wsa[cpu]', or "
            "use --engine torch."
        )
    if name == "compile" and on_cpu and not _compiler():
        return "--engine compile needs a C++ compiler, such as g++; install one, or use torch."
    if name == "compile" and not on_cpu and importlib.util.find_spec("triton") is None:
        return "--engine compile needs Triton on a GPU: pip install triton, or use torch."
    return ""


def _impossible(name: str, device: torch.device, precision: Precision) -> str:
    """Why what is installed cannot do it; empty where it can."""
    if name not in NAMES:
        return f"--engine {name!r} is not one; choose from auto, {', '.join(NAMES)}."
    if precision == "tf32" and device.type != "cuda":
        return "--precision tf32 needs an NVIDIA GPU; on a CPU use fp32 or bf16."
    if name == "openvino":
        if device.type != "cpu":
            return "--engine openvino runs on a CPU; use torch or compile, or --device cpu."
        from wsa.encode.inference.openvino import capable

        if not capable(precision):
            return f"OpenVINO has no {precision} on this CPU; use --engine torch or fp32."
    return ""


def offered(device: torch.device, precision: Precision) -> list[str]:
    """The engines that `auto` tries.

    `compile` is none of them on a CPU: compiling takes a minute there, in every process, and
    OpenVINO is faster. `left_out` says why an engine is none of them.

    Raises:
        UsageError: The device has no such arithmetic.
    """
    require("torch", device, precision)
    tried: list[str] = ["torch", "openvino" if device.type == "cpu" else "compile"]
    return [name for name in tried if not why_not(name, device, precision)]


def left_out(device: torch.device, precision: Precision) -> dict[str, str]:
    """Engines for this device that `auto` does not try, and why."""
    tried = offered(device, precision)
    reasons = {}
    if device.type == "cpu":
        reasons["compile"] = "on a CPU, compiling takes up to a minute in every process"
        reasons["openvino"] = why_not("openvino", device, precision)
    else:
        reasons["compile"] = why_not("compile", device, precision)
    return {name: why for name, why in reasons.items() if name not in tried}


@contextlib.contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """Exactly the precision asked for; cuDNN has TF32 on by default, so it is set either way."""
    dtype = _AUTOCAST.get(precision)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        if device.type != "cuda":
            yield
            return
        cuda: Any = torch.backends.cuda.matmul
        cudnn: Any = torch.backends.cudnn
        with _tf32:  # The flags belong to the process; no other thread may set them now.
            before = cuda.allow_tf32, cudnn.allow_tf32
            cuda.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
            try:
                yield
            finally:
                cuda.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one core, in this thread and in those that start meanwhile."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    found = [shutil.which(name) for name in ([named] if named else ["g++", "clang++", "cl"])]
    return next(filter(None, found), None)
