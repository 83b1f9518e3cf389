"""The one function from frames to embeddings, used for the store and for live play alike.

An `Encoder` is a frozen model on a device with its preprocessing, output and precision. It counts
every frame that goes through the network (`passes`), which is how wsa knows and proves what it
saved. A frame's embedding depends on that frame alone, to the last bit. A library may sum in
another order for another batch or another number of threads (measured: EfficientNet-Lite0 differs
with one and two threads, ViT-B with batches of one and eight), so on a CPU each frame runs alone on
one core, and several cores run several frames; on a GPU every batch is padded to exactly `batch`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.encode.basis import Reduction
from wsa.encode.engines import Eager, Engine, arithmetic
from wsa.encode.outputs import Trunk
from wsa.encode.preprocess import preprocess
from wsa.encode.spec import Output, Precision, Preprocessing
from wsa.store.errors import UsageError
from wsa.store.writer import FLOAT16_MAX

# Beside being exact, one frame at a time costs little on one core: per frame 19 ms against 29 in
# batches of 8 for EfficientNet-Lite0, 430 against 422 for ViT-B, 121 against 106 for ResNet-50.
CPU_BATCH = 1
GPU_BATCH = 256


def choose_device(device: str) -> str:
    """`auto` is the GPU where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


class Encoder:
    """A frozen model, ready to embed frames.

    Args:
        module: The network, as `wsa.encode.models.build` returns it.
        preprocessing: From screens to its input.
        output: What is kept of its last feature map.
        basis: The reduction, where the output asks for one.
        precision: Arithmetic of the forward pass.
        device: Where to run.

    Raises:
        UsageError: The device has no such arithmetic.

    Attributes:
        passes: Frames, or windows of frames, that went through this network.
        total_passes: Those that went through any network of this process.
    """

    total_passes: ClassVar[int] = 0
    _counting: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        output: Output,
        basis: Reduction | None = None,
        precision: Precision = "fp32",
        device: str | torch.device = "cpu",
    ) -> None:
        check_precision(precision, device)
        self.device = torch.device(device)
        self.module: Any = module.to(self.device).to(memory_format=torch.channels_last)
        self.engine: Engine = Eager(Trunk(self.module, output), self.device, precision)
        self.preprocessing = preprocessing
        self.output = output
        self.basis = basis.to(self.device) if basis else None
        self.precision = precision
        self.batch = CPU_BATCH if self.device.type == "cpu" else GPU_BATCH
        self.passes = 0

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed frames.

        Args:
            frames: (n, H, W, 3) uint8 RGB, or (n, w, H, W, 3) for a model that looks at w frames,
                oldest first; n at least 1.

        Returns:
            (n, *shape) float32.
        """
        return self._run(frames, lambda part: self._finish(self._features(part))).numpy()

    def features(self, frames: NDArray[np.uint8]) -> Tensor:
        """What the basis is fitted on: (n, *shape) float32, before any reduction."""
        return self._run(frames, lambda part: self._features(part).cpu())

    def _run(
        self, frames: NDArray[np.uint8], function: Callable[[NDArray[np.uint8]], Tensor]
    ) -> Tensor:
        """Apply `function` to batches, and count."""
        parts = [frames[at : at + self.batch] for at in range(0, len(frames), self.batch)]
        if self.device.type == "cpu":
            found = _on_all_cores(function, parts)
        else:
            found = [function(part) for part in parts]
        self.passes += len(frames)
        with Encoder._counting:
            Encoder.total_passes += len(frames)
        return torch.cat(found)

    def _features(self, frames: NDArray[np.uint8]) -> Tensor:
        """One batch (B, H, W, 3) or (B, w, H, W, 3) to (B, *shape), before any reduction."""
        part = torch.from_numpy(np.array(frames))  # A copy: torch takes no read-only arrays.
        if self.device.type != "cpu" and len(frames) < self.batch:
            part = torch.cat([part, part[-1:].expand(self.batch - len(part), *part.shape[1:])])
        return self.engine(preprocess(part.to(self.device), self.preprocessing))[: len(frames)]

    def _finish(self, features: Tensor) -> Tensor:
        """One batch, reduced where the output asks for it."""
        with torch.inference_mode(), arithmetic(self.device, "fp32"):
            return (self.basis(features) if self.basis is not None else features).cpu()


def check_precision(precision: Precision, device: str | torch.device) -> None:
    """Refuse arithmetic that a device does not have.

    Raises:
        UsageError: TF32 was asked for, and the device is no NVIDIA GPU.
    """
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise UsageError(
            "bad-option", "--precision tf32 needs an NVIDIA GPU; on a CPU use fp32 or bf16."
        )


def stored(embeddings: NDArray[np.float32]) -> NDArray[np.float16 | np.float32]:
    """Embeddings rounded as the store keeps them.

    Each row is rounded to half precision unless a number in it is too large for that (or is not a
    number). That depends on the row alone, so that a frame has the same embedding in whichever
    segment it stands, and live.

    Args:
        embeddings: (n, *shape) float32.

    Returns:
        (n, *shape) float16, or float32 where a row was not rounded.
    """
    with np.errstate(over="ignore"):
        half = embeddings.astype(np.float16)
    largest = np.abs(embeddings).reshape(len(embeddings), -1).max(axis=1, initial=0)
    fits = largest <= FLOAT16_MAX
    if fits.all():
        return half
    return np.where(fits.reshape(-1, *[1] * (embeddings.ndim - 1)), half, embeddings)


P = TypeVar("P")


def _on_all_cores(function: Callable[[P], Tensor], parts: Sequence[P]) -> list[Tensor]:
    """Apply `function` to each part on one core each, as many at once as torch may use threads."""
    threads = torch.get_num_threads()
    try:
        if min(threads, len(parts)) > 1:
            # The number of threads belongs to the thread that sets it.
            with ThreadPoolExecutor(
                min(threads, len(parts)), initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                return list(pool.map(function, parts))
        if threads > 1:
            torch.set_num_threads(1)
        return [function(part) for part in parts]
    finally:
        if threads > 1:  # What threads that start later begin with was changed in either case.
            torch.set_num_threads(threads)
