"""Compute embeddings from frames, with the same function for the store and for live play.

An `Encoder` is a frozen model on a device with its preprocessing, output and precision, run by an
engine. It counts every frame that goes through the network (`passes`), which shows how many passes
wsa saved. A frame's embedding depends on that frame alone, to the last bit: the engine guarantees
it (`wsa.encode.inference.engines`), and preprocessing and reduction treat all frames alike. On a
CPU each core processes some frames from screen to embedding; on a GPU every batch is padded to a
size that is known to give the same bits. Several threads may call an encoder.
"""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.encode.inference import engines
from wsa.encode.inference.engines import Engine, arithmetic, one_thread
from wsa.encode.inference.levels import ScreenReduction
from wsa.encode.inference.preprocess import normalize, preprocess, shrink
from wsa.encode.inference.reduction import ROWS, Reduction
from wsa.encode.inference.segment_inputs import SegmentFrames
from wsa.encode.inference.trunk import Trunk
from wsa.store.common.errors import MissingError
from wsa.store.objects.model_spec import Output, Precision, Preprocessing
from wsa.store.objects.writer import FLOAT16_MAX

IN_FLIGHT = 2


def run_on_gpu(
    function: Callable[[Tensor], Tensor],
    frames: NDArray[np.uint8],
    batches: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Apply `function` to batches of the largest size; the last is padded to the next size.

    Args:
        function: Function from (batch, ...) uint8 to (batch, ...), both on the device.
        frames: Frames (n, ...) uint8, n at least 1.
        batches: Sizes of batches, ascending.

    Returns:
        The results (n, ...) on the CPU.
    """
    batch = next((size for size in batches if size >= len(frames)), batches[-1])
    shape = (batch, *frames.shape[1:])
    pinned = [torch.empty(shape, dtype=torch.uint8).pin_memory() for _ in range(IN_FLIGHT)]
    on_device = [torch.empty(shape, dtype=torch.uint8, device=device) for _ in range(IN_FLIGHT)]
    cuda: Any = torch.cuda
    free = [cuda.Event() for _ in range(IN_FLIGHT)]
    copies, computing = cuda.Stream(device), cuda.current_stream(device)
    copies.wait_stream(computing)  # Earlier work may still read the memory of these buffers.
    results = []
    for at in range(0, len(frames), batch):
        slot = at // batch % IN_FLIGHT
        part = frames[at : at + batch]
        size = next(size for size in batches if size >= len(part))
        free[slot].synchronize()  # Returns at once for an event not yet recorded.
        pinned[slot].numpy()[: len(part)] = part
        pinned[slot].numpy()[len(part) : size] = part[-1:]
        with cuda.stream(copies):
            on_device[slot][:size].copy_(pinned[slot][:size], non_blocking=True)
        computing.wait_stream(copies)
        results.append(function(on_device[slot][:size])[: len(part)])
        free[slot].record(computing)
    return torch.cat(results).cpu()


def choose_device(device: str) -> str:
    """Resolve `auto` to the GPU if there is one, else to the CPU.

    Raises:
        MissingError: If a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise MissingError(
            "no-gpu",
            f"--device cuda: PyTorch {torch.__version__} finds no GPU on {socket.gethostname()}. Run "
            "'nvidia-smi' there to see whether its driver does; or use --device cpu.",
        )
    if device != "auto":
        return device
    return "cuda" if has_gpu else "cpu"


class Encoder:
    """A frozen model, ready to embed frames.

    Args:
        module: Network, as `wsa.encode.models.networks.build` returns it.
        preprocessing: How screens become the input.
        output: How to extract the embedding from the last features.
        basis: Reduction; None if the output has none.
        engine: Name of the engine that runs the network.
        threads: Number of CPU threads that call the engine at once; torch's number if None.

    Raises:
        MissingError: If the engine is not installed.
        UsageError: If the engine lacks this precision on this device.

    Attributes:
        passes: Number of frames, or windows of frames, that went through this network.
        total_passes: The same number for all networks of this process.
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
        engine: str = "torch",
        threads: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        engines.require(engine, self.device, precision)  # Refuse before moving the module.
        self.module: Any = module.to(self.device).to(memory_format=torch.channels_last)
        channels = len(preprocessing.mean) * getattr(module, "window", 1)
        shape = channels, preprocessing.height, preprocessing.width
        trunk = Trunk(self.module, output).eval()
        self.engine: Engine = engines.make(engine, trunk, shape, self.device, precision, threads)
        on_gpu = self.device.type != "cpu"
        self._batches = engines.equal_batches(self.engine, shape, self.device) if on_gpu else ()
        self.preprocessing = preprocessing
        self.output = output
        self.basis = basis.to(self.device) if basis else None
        self.precision = precision
        self.passes = 0

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed frames.

        Args:
            frames: Frames (n, H, W, 3) uint8 RGB, or (n, w, H, W, 3) for a model with a window of
                w, oldest first; n at least 1.

        Returns:
            Embeddings (n, *shape) float32.
        """
        if self._reads_screens:
            return self.embed_shrunk(self.shrink(frames))
        return self._run(frames, lambda part: self.reduce(self._features(part))).numpy()

    @property
    def runs_network(self) -> bool:
        """Whether there is a network; a reduction of screens needs none, and has an identity."""
        return not isinstance(self.basis, ScreenReduction)

    @property
    def _reads_screens(self) -> bool:
        """Whether the reduction can read screens directly."""
        return not self.runs_network and self.device.type == "cpu"

    @property
    def in_parts(self) -> bool:
        """Whether it helps to split frames over several threads.

        A GPU takes all frames at once. Threads that only read screens wait for each other, since
        each holds the interpreter's lock.
        """
        return self.device.type == "cpu" and not self._reads_screens

    @property
    def waits(self) -> bool:
        """Whether a calling thread only waits for a GPU and uses no core."""
        return self.device.type != "cpu"

    @property
    def alike(self) -> Preprocessing:
        """The part of the preprocessing that decides how `shrink` resizes screens."""
        return self.preprocessing.alike

    def shrinks(self, screen: Sequence[int]) -> bool:
        """Return whether to cache the resized screens of H x W: only small gray ones, on a CPU."""
        how = self.preprocessing
        small = how.height * how.width <= math.prod(screen)
        return self.device.type == "cpu" and how.gray and small

    def shrink(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize screens to the model's input, on the CPU.

        `embed_shrunk` takes the result, which models and windows that share a screen can reuse.

        Args:
            frames: Screens (n, H, W, 3) uint8 RGB; for a gray model also gray screens (n, H, W).

        Returns:
            Levels (n, channels, h, w) uint8.
        """
        how = self.preprocessing
        levels: NDArray[np.uint8] = _on_cores(lambda part: shrink(part, how), frames).numpy()
        return levels

    def embed_shrunk(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed the levels of `shrink`; the result equals that of the screens to the bit.

        Args:
            levels: Levels (n, channels, h, w) uint8, or (n, w, channels, h, w), oldest first.

        Returns:
            Embeddings (n, *shape) float32.
        """
        return self._run(levels, self._embed_levels).numpy()

    def embed_inputs(
        self, segment: SegmentFrames, window: int, chosen: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Embed chosen inputs of a segment.

        On a CPU gray screens are resized once for all models and windows; otherwise a window of
        four would resize each screen four times. Color screens would take too much memory.

        Args:
            window: Number of frames in an input.
            chosen: Indices (n,) of frames, or of rows if `window` > 1; n at least 1.

        Returns:
            Embeddings (n, *shape) float32.
        """
        if self.shrinks(segment.pictures.shape[1:3]):
            levels = segment.levels(window, chosen, self.preprocessing, self.shrink)
            return np.concatenate([self.embed_shrunk(some) for some in levels])
        return np.concatenate([self(some) for some in segment.inputs(window, chosen)])

    def _embed_levels(self, levels: Tensor) -> Tensor:
        """Embed levels (B, channels, h, w) or (B, w, channels, h, w) as (B, *shape)."""
        if isinstance(self.basis, ScreenReduction) and self._reads_screens:
            return self.basis.of_screens(levels[:, 0].numpy())
        return self.reduce(self.engine(normalize(levels, self.preprocessing)))

    def features(self, frames: NDArray[np.uint8]) -> Tensor:
        """Return features (n, *shape) float32, before any reduction; a basis is fitted on them."""
        return self._run(frames, self._features)

    def reduce(self, features: Tensor) -> Tensor:
        """Reduce one batch on the device; return it unchanged if there is no reduction."""
        with torch.inference_mode(), arithmetic(self.device, "fp32"):
            return features if self.basis is None else self.basis(features)

    def _features(self, frames: Tensor) -> Tensor:
        """Compute features (B, *shape) of frames (B, H, W, 3) or (B, w, H, W, 3) on the device."""
        return self.engine(preprocess(frames, self.preprocessing))

    def _run(self, frames: NDArray[np.uint8], function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `function` to batches and count the passes."""
        if self.device.type == "cpu":
            results = _on_cores(function, frames)
        else:
            results = run_on_gpu(function, frames, self._batches, self.device)
        with Encoder._counting:
            self.passes += len(frames)
            Encoder.total_passes += len(frames)
        return results


def stored(embeddings: NDArray[np.float32]) -> NDArray[np.float16 | np.float32]:
    """Round embeddings as the store does.

    A row is rounded to half precision unless a number in it is too large for that, or is NaN. This
    depends on the row alone, so that a frame has the same embedding in every segment and live.

    Args:
        embeddings: Embeddings (n, *shape) float32.

    Returns:
        Embeddings (n, *shape) float16, or float32 if any row was not rounded.
    """
    with np.errstate(over="ignore"):
        half = embeddings.astype(np.float16)
    largest = np.abs(embeddings).reshape(len(embeddings), -1).max(axis=1, initial=0)
    fits = largest <= FLOAT16_MAX
    if fits.all():
        return half
    return np.where(fits.reshape(-1, *[1] * (embeddings.ndim - 1)), half, embeddings)


def _on_cores(function: Callable[[Tensor], Tensor], frames: NDArray[np.uint8]) -> Tensor:
    """Apply `function` to parts of the frames, one core each, on as many cores as torch may use."""
    # Small parts keep a frame's intermediate results in the core's cache.
    size = max(1, min(ROWS, -(-len(frames) // torch.get_num_threads())))
    parts = [frames[at : at + size] for at in range(0, len(frames), size)]

    def run(part: NDArray[np.uint8]) -> Tensor:
        # Torch accepts neither read-only arrays nor negative strides, not even in an axis of length
        # one, which numpy calls contiguous.
        part = np.require(part, requirements=["C", "W"])
        return function(torch.from_numpy(part if min(part.strides) > 0 else part.copy()))

    threads = min(torch.get_num_threads(), len(parts))
    with one_thread():
        if threads == 1:
            done = [run(part) for part in parts]
            return done[0] if len(done) == 1 else torch.cat(done)
        # torch.set_num_threads applies to the calling thread alone.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat([*pool.map(run, parts)])
