"""Inference engines: ways to run the same network, with different libraries and speeds.

An engine is made from a `Trunk`, a device and a precision, and is called with a batch of pixels.
Every engine guarantees that an output row depends on its frame alone, to the last bit. A library
may sum in another order for another batch size or number of threads (measured: EfficientNet-Lite0
in PyTorch differs between one and two threads, ViT-B between batches of one and eight). So on a CPU
PyTorch runs frame by frame, each on one core, and OpenVINO uses a batch size only after checking
that it changes no bit; on a GPU batches have a few fixed sizes that give the same bits. Engines
differ from each other in the last bits; `wsa.encode.registration.engine_choice` measures by how
much before using one.
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
from wsa.store.common.errors import MissingError, UsageError, WsaError
from wsa.store.objects.model_spec import Precision

NAMES = ("torch", "compile", "openvino")
GPU_BATCH = 256
# A few games at a time do not fill a large batch, and padding costs as much as frames.
SMALLER_BATCHES = (16, 32, 64, 128)

_tf32 = threading.Lock()
_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Engine(Protocol):
    """A network that is ready to run.

    Attributes:
        name: Name of the engine on the command line.
        batch: Number of frames it runs at once; on a GPU every call has exactly this many, or one
            of the other `equal_batches`.
    """

    name: str
    batch: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, c, h, w) to features (B, *shape), both float32 on the device."""
        ...


def make(
    name: str,
    trunk: Trunk,
    shape: tuple[int, int, int],
    device: torch.device,
    precision: Precision,
    threads: int | None = None,
) -> Engine:
    """Create an engine that `require` accepts.

    Args:
        shape: Channels, height and width of the input.
        threads: Number of CPU threads that call the engine at once; torch's number if None.
    """
    if name == "openvino":
        from wsa.encode.inference.openvino import OpenVINO

        return OpenVINO(trunk, shape, precision, threads)
    if name == "compile":
        return Compiled(trunk, shape, device, precision)
    return Eager(trunk, device, precision)


def equal_batches(
    engine: Engine, shape: tuple[int, int, int], device: torch.device
) -> tuple[int, ...]:
    """Return the sizes of batches that give the same bits as the engine's own, which is the last.

    One check is enough, because the order of summation follows from the shape and does not depend
    on the numbers. A compiled network has one shape.

    Args:
        engine: Engine on a GPU.
        shape: Channels, height and width of the input.
    """
    if engine.name != Eager.name:
        return (engine.batch,)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((engine.batch, *shape), generator=generator).to(device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    whole = engine(pixels)

    def equal(size: int) -> bool:
        return torch.equal(torch.cat([engine(part) for part in pixels.split(size)]), whole)

    return (*filter(equal, SMALLER_BATCHES), engine.batch)


class Eager:
    """PyTorch in eager mode."""

    name = "torch"

    def __init__(self, trunk: Trunk, device: torch.device, precision: Precision) -> None:
        self.batch = 1 if device.type == "cpu" else GPU_BATCH
        self._trunk: Any = trunk
        self._device = device
        self._precision: Precision = precision

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, c, h, w) to features (B, *shape)."""
        with torch.inference_mode(), arithmetic(self._device, self._precision):
            features = [self._trunk(part) for part in pixels.split(self.batch)]
            return torch.cat(features).float()


class Compiled(Eager):
    """PyTorch compiled for one batch shape: CUDA graphs on a GPU, C++ on a CPU."""

    name = "compile"

    def __init__(
        self,
        trunk: Trunk,
        shape: tuple[int, int, int],
        device: torch.device,
        precision: Precision,
    ) -> None:
        super().__init__(trunk, device, precision)
        # Only the thread that recorded a CUDA graph can replay it, so one thread serves all
        # callers. All threads use the device's default stream, so the order does not change.
        self._thread = ThreadPoolExecutor(1) if device.type != "cpu" else None
        self._trunk = (
            torch.compile(trunk, dynamic=False, mode="reduce-overhead")
            if self._thread
            else torch.compile(trunk, dynamic=False, options={"freezing": True})
        )
        with one_thread():  # Compile for one thread, on which frames run on a CPU.
            pixels = torch.zeros((self.batch, *shape), device=device)
            self(pixels.to(memory_format=torch.channels_last))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, c, h, w) to features (B, *shape)."""
        if self._thread is None:
            return super().__call__(pixels)
        return self._thread.submit(self._replay, pixels).result()

    def _replay(self, pixels: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return super().__call__(pixels).clone()  # The next replay overwrites this result.


def why_not(name: str, device: torch.device, precision: Precision) -> str:
    """Return why an engine cannot be used, and what would help; empty if it can be used."""
    return str(_refusal(name, device, precision) or "")


def require(name: str, device: torch.device, precision: Precision) -> None:
    """Refuse an engine that cannot be used.

    Raises:
        MissingError: If the engine is not installed.
        UsageError: If the engine is unknown or lacks this precision on this device.
    """
    if error := _refusal(name, device, precision):
        raise error


def _refusal(name: str, device: torch.device, precision: Precision) -> WsaError | None:
    """Return the error of `require`, first about what is not installed; None if there is none."""
    on_cpu = device.type == "cpu"
    lacking = wrong = ""
    if name == "openvino" and on_cpu and importlib.util.find_spec("openvino") is None:
        lacking = (
            "--engine openvino needs OpenVINO, which is not installed: pip install 'wsa[cpu]', or "
            "use --engine torch."
        )
    elif name == "compile" and on_cpu and not _has_compiler():
        lacking = "--engine compile needs a C++ compiler, such as g++; install one, or use torch."
    elif name == "compile" and not on_cpu and importlib.util.find_spec("triton") is None:
        lacking = "--engine compile needs Triton on a GPU: pip install triton, or use torch."
    elif name not in NAMES:
        wrong = f"--engine {name!r} is not one; choose from auto, {', '.join(NAMES)}."
    elif precision == "tf32" and device.type != "cuda":
        wrong = "--precision tf32 needs an NVIDIA GPU; on a CPU use fp32 or bf16."
    elif name == "openvino" and not on_cpu:
        wrong = "--engine openvino runs on a CPU; use torch or compile, or --device cpu."
    elif name == "openvino":
        from wsa.encode.inference.openvino import capable

        if not capable(precision):
            wrong = f"OpenVINO has no {precision} on this CPU; use --engine torch or fp32."
    if lacking:
        return MissingError("no-library", lacking)
    return UsageError(wrong) if wrong else None


def offered(device: torch.device, precision: Precision) -> list[str]:
    """Return the engines that `auto` tries; `left_out` says why the others are not among them.

    On a CPU `compile` is not tried: compiling takes a minute in every process, and OpenVINO is
    faster.

    Raises:
        UsageError: If the device lacks this precision.
    """
    require("torch", device, precision)
    tried: list[str] = ["torch", "openvino" if device.type == "cpu" else "compile"]
    return [name for name in tried if not why_not(name, device, precision)]


def left_out(device: torch.device, precision: Precision) -> dict[str, str]:
    """Return the engines for this device that `auto` does not try, each with the reason."""
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
    """Use exactly this precision. TF32 is set in any case, since cuDNN enables it by default."""
    dtype = _AUTOCAST.get(precision)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        if device.type != "cuda":
            yield
            return
        cuda: Any = torch.backends.cuda.matmul
        cudnn: Any = torch.backends.cudnn
        with _tf32:  # The flags are global, so other threads must not set them meanwhile.
            before = cuda.allow_tf32, cudnn.allow_tf32
            cuda.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
            try:
                yield
            finally:
                cuda.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one core, in this thread and in threads that start meanwhile."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _has_compiler() -> bool:
    named = os.environ.get("CXX")
    return any(map(shutil.which, [named] if named else ["g++", "clang++", "cl"]))
