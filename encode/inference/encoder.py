"""The one function from frames to embeddings, used for the store and for live play alike.

An `Encoder` is a frozen model on a device with its preprocessing, output and precision, run by an
engine. It counts every frame that goes through the network (`passes`), which is how wsa knows and
proves what it saved. A frame's embedding depends on that frame alone, to the last bit: that is what
an engine promises (`wsa.encode.inference.engines`), and frames are preprocessed and reduced one like another.
On a CPU each core takes some frames, whole from screen to embedding; on a GPU every batch is padded
to the engine's. An encoder may be called from several threads.
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
from wsa.encode.inference.preprocess import normalise, preprocess, shrink
from wsa.encode.inference.reduction import ROWS, Reduction
from wsa.encode.inference.trunk import Trunk
from wsa.store.common.errors import MissingError
from wsa.store.objects.model_spec import Output, Precision, Preprocessing
from wsa.store.objects.writer import FLOAT16_MAX

IN_FLIGHT = 2


def run_on_gpu(
    function: Callable[[Tensor], Tensor],
    frames: NDArray[np.uint8],
    batch: int,
    device: torch.device,
    cuda: Any = torch.cuda,
) -> Tensor:
    """Apply `function` to batches of exactly `batch` frames, the last one filled up.

    Args:
        function: From (batch, ...) uint8 on the device to (batch, ...) there.
        frames: (n, ...) uint8, n at least 1.
        batch: Frames at once.
        device: The GPU.
        cuda: `torch.cuda`, or what stands for it.

    Returns:
        (n, ...) on the CPU.
    """
    shape = (batch, *frames.shape[1:])
    pinned = [torch.empty(shape, dtype=torch.uint8).pin_memory() for _ in range(IN_FLIGHT)]
    on_device = [torch.empty(shape, dtype=torch.uint8, device=device) for _ in range(IN_FLIGHT)]
    free = [cuda.Event() for _ in range(IN_FLIGHT)]
    copies, computing = cuda.Stream(device), cuda.current_stream(device)
    copies.wait_stream(computing)  # What lay where the batches go may still be read.
    found = []
    for at in range(0, len(frames), batch):
        slot = at // batch % IN_FLIGHT
        part = frames[at : at + batch]
        free[slot].synchronize()  # At once for the first ones: nothing has been recorded.
        pinned[slot].numpy()[: len(part)] = part
        pinned[slot].numpy()[len(part) :] = part[-1:]
        with cuda.stream(copies):
            on_device[slot].copy_(pinned[slot], non_blocking=True)
        computing.wait_stream(copies)
        found.append(function(on_device[slot])[: len(part)])
        free[slot].record(computing)
    return torch.cat(found).cpu()


def choose_device(device: str) -> str:
    """`auto` is the GPU where there is one.

    Raises:
        MissingError: A GPU is asked for where there is none.
    """
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise MissingError(
            "no-gpu",
            f"--device cuda: PyTorch {torch.__version__} finds no GPU on {socket.gethostname()}. Run "
            "'nvidia-smi' there to see whether its driver does; or use --device cpu.",
        )
    if device != "auto":
        return device
    return "cuda" if there else "cpu"


class Encoder:
    """A frozen model, ready to embed frames.

    Args:
        module: The network, as `wsa.encode.models.registry.build` returns it.
        preprocessing: From screens to its input.
        output: What is kept of its last feature map.
        basis: The reduction, where the output asks for one.
        precision: Arithmetic of the forward pass.
        device: Where to run.
        engine: What runs the network.
        threads: Threads of a CPU that call it at once; as many as torch uses if not given.

    Raises:
        MissingError: The engine is not installed.
        UsageError: It has no such arithmetic there.

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
        engine: str = "torch",
        threads: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        engines.require(engine, self.device, precision)  # Before the module is moved anywhere.
        self.module: Any = module.to(self.device).to(memory_format=torch.channels_last)
        channels = len(preprocessing.mean) * getattr(module, "window", 1)
        shape = channels, preprocessing.height, preprocessing.width
        trunk = Trunk(self.module, output).eval()
        self.engine: Engine = engines.make(engine, trunk, shape, self.device, precision, threads)
        self.preprocessing = preprocessing
        self.output = output
        self.basis = basis.to(self.device) if basis else None
        self.precision = precision
        self.passes = 0

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed frames.

        Args:
            frames: (n, H, W, 3) uint8 RGB, or (n, w, H, W, 3) for a model that looks at w frames,
                oldest first; n at least 1.

        Returns:
            (n, *shape) float32.
        """
        if self._reads_screens:
            return self.embed_shrunk(self.shrink(frames))
        return self._run(frames, lambda part: self.reduce(self._features(part))).numpy()

    @property
    def _reads_screens(self) -> bool:
        """Whether nothing but a reduction looks at the screens, for which a network hands them on."""
        return isinstance(self.basis, ScreenReduction) and self.device.type == "cpu"

    @property
    def in_parts(self) -> bool:
        """Whether frames may come in parts from several threads.

        A GPU takes them all at once; and threads that only read screens wait for each other, since
        each holds the interpreter's lock.
        """
        return self.device.type == "cpu" and not self._reads_screens

    @property
    def waits(self) -> bool:
        """Whether a thread that calls it takes no core, but waits for a GPU."""
        return self.device.type != "cpu"

    @property
    def alike(self) -> Preprocessing:
        """How screens are made small, for whichever models want them so."""
        return self.preprocessing.alike

    def shrinks(self, screen: Sequence[int]) -> bool:
        """Whether it is worth keeping what screens of H x W become: small grey ones, on a CPU."""
        how = self.preprocessing
        small = how.height * how.width <= math.prod(screen)
        return self.device.type == "cpu" and how.channels == "grey" and small

    def shrink(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Make screens (n, H, W, 3) as small as the model wants them: (n, channels, h, w) uint8.

        Where it sees grey also those that are grey already, (n, H, W). On the CPU. `embed_shrunk`
        goes on from there, as often as models and windows share a screen.
        """
        how = self.preprocessing
        levels: NDArray[np.uint8] = _on_cores(lambda part: shrink(part, how), frames).numpy()
        return levels

    def embed_shrunk(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed what `shrink` gave, to the bit as from the screens.

        Args:
            levels: (n, channels, h, w) uint8, or (n, w, channels, h, w), oldest first.

        Returns:
            (n, *shape) float32.
        """
        return self._run(levels, self._embed_levels).numpy()

    def _embed_levels(self, levels: Tensor) -> Tensor:
        """What `shrink` gave, (B, channels, h, w) or (B, w, channels, h, w), to (B, *shape)."""
        if isinstance(self.basis, ScreenReduction) and self._reads_screens:
            return self.basis.of_screens(levels[:, 0].numpy())
        return self.reduce(self.engine(normalise(levels, self.preprocessing)))

    def features(self, frames: NDArray[np.uint8]) -> Tensor:
        """What the basis is fitted on: (n, *shape) float32, before any reduction."""
        return self._run(frames, self._features)

    def reduce(self, features: Tensor) -> Tensor:
        """One batch on the device, reduced where the output asks for it."""
        with torch.inference_mode(), arithmetic(self.device, "fp32"):
            return features if self.basis is None else self.basis(features)

    def _features(self, frames: Tensor) -> Tensor:
        """(B, H, W, 3) or (B, w, H, W, 3) to (B, *shape), on the device."""
        return self.engine(preprocess(frames, self.preprocessing))

    def _run(self, frames: NDArray[np.uint8], function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `function` to batches, and count."""
        if self.device.type == "cpu":
            found = _on_cores(function, frames)
        else:
            found = run_on_gpu(function, frames, self.engine.batch, self.device)
        with Encoder._counting:
            self.passes += len(frames)
            Encoder.total_passes += len(frames)
        return found


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


def _on_cores(function: Callable[[Tensor], Tensor], frames: NDArray[np.uint8]) -> Tensor:
    """Apply `function` to frames on one core each, as many at once as torch may use threads."""
    # Few at once, so that what one frame becomes stays in the core's cache.
    size = max(1, min(ROWS, -(-len(frames) // torch.get_num_threads())))
    parts = [frames[at : at + size] for at in range(0, len(frames), size)]

    def run(part: NDArray[np.uint8]) -> Tensor:
        # Torch takes no read-only arrays and no negative strides.
        return function(torch.from_numpy(np.require(part, requirements=["C", "W"])))

    threads = min(torch.get_num_threads(), len(parts))
    with one_thread():
        if threads == 1:
            done = [run(part) for part in parts]
            return done[0] if len(done) == 1 else torch.cat(done)
        # The number of threads belongs to the thread that sets it.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat([*pool.map(run, parts)])
