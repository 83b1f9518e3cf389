"""What runs a network: the same function of pixels, at the speed of the machine.

An engine is made of a `Trunk`, a device and a precision, and is called with a batch of pixels.
Engines may differ in the last bits of a number; how far one is from eager fp32 is measured before
it is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from wsa.encode.outputs import Trunk
from wsa.encode.spec import Precision

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Engine(Protocol):
    """A network ready to run; `name` is what users call the engine."""

    name: str

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, c, h, w) float32 on the device to (B, *shape) float32 there."""
        ...


class Eager:
    """PyTorch as it is."""

    name = "torch"

    def __init__(self, trunk: Trunk, device: torch.device, precision: Precision) -> None:
        self._trunk = trunk
        self._device = device
        self._precision: Precision = precision

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, c, h, w) to (B, *shape)."""
        with torch.inference_mode(), arithmetic(self._device, self._precision):
            found: Tensor = self._trunk(pixels)
        return found.float()


@contextlib.contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """Exactly the precision asked for; cuDNN has TF32 on by default, so it is set either way."""
    tf32 = precision == "tf32"
    dtype = _AUTOCAST.get(precision)
    cuda: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    cuda.allow_tf32, cudnn.allow_tf32 = tf32, tf32
    try:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32 = before
