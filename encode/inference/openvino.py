"""The OpenVINO engine: up to three times as fast as PyTorch on a CPU, and as exact.

PyTorch's network is converted once and compiled for batches of `BATCH` frames and of one frame,
each batch on one core. Batches are faster for most networks. A check after compilation tells
whether batches change any bit of the result; if so, the network runs frame by frame. One check is
enough, because the order of summation is compiled for a shape and does not depend on the numbers.
"""

from __future__ import annotations

import functools
import sys
import warnings
from typing import Any

# OpenVINO's converter reports every network to Intel, from subprocesses that inherit our signal
# handlers. If it cannot import its telemetry, it uses a stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino
import torch
from torch import Tensor, nn

from wsa.encode.inference.trunk import Trunk
from wsa.store.common import user_code
from wsa.store.common.errors import ConflictError
from wsa.store.objects.model_spec import Precision

# Frames a second in batches of 1, 4, 8, 16, one core: EfficientNet-Lite0 146, 144, 140, 134;
# ResNet-50 19.0, 20.0, 20.4, 20.0 (bf16: 89, 103, 108, 111); ViT-S 16.2, 17.1, 17.2, 17.1.
BATCH = 4
_TYPES: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVINO:
    """A network compiled by OpenVINO.

    Args:
        shape: Channels, height and width of the input.
        precision: Arithmetic of the forward pass, for which `capable` is true.
        threads: Number of threads that call the engine at once; torch's number if None.
    """

    name = "openvino"

    def __init__(
        self,
        trunk: Trunk,
        shape: tuple[int, int, int],
        precision: Precision,
        threads: int | None = None,
    ) -> None:
        threads = threads or torch.get_num_threads()
        pixels = torch.rand((BATCH, *shape), generator=torch.Generator().manual_seed(0))
        self.batch = 1
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # Tracing warns of every size that it hard-codes.
                model = _convert(trunk, pixels[:1])
            self._alone = _Requests(_compile(model, (1, *shape), precision, threads))
            alone = self(pixels)
        except user_code.ERRORS as error:  # Conversion raises many kinds.
            why = " ".join(str(error).split())[:300]
            raise ConflictError(
                "model-failed", f"OpenVINO cannot run this model ({why}). Use --engine torch."
            ) from None
        try:
            self._together = _Requests(_compile(model, tuple(pixels.shape), precision, threads))
            together = self._together(pixels)
        except RuntimeError:  # The network supports only one frame at a time.
            return
        self.batch = BATCH if torch.equal(alone, together) else 1

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, c, h, w) to features (B, *shape)."""
        whole = len(pixels) // BATCH * BATCH if self.batch == BATCH else 0
        features = [self._together(pixels[at : at + BATCH]) for at in range(0, whole, BATCH)]
        features += [self._alone(pixels[at : at + 1]) for at in range(whole, len(pixels))]
        return torch.cat(features)


class _Requests:
    """A compiled network for any number of threads: each call takes a free inference request."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._free: list[Any] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        try:
            request = self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        # Faster than passing an array, which OpenVINO would examine in Python each time.
        request.input_tensors[0].data[:] = pixels.permute(0, 2, 3, 1).numpy()
        features = torch.from_numpy(request.infer(share_outputs=True)[0].copy())
        self._free.append(request)
        return features


def capable(precision: Precision) -> bool:
    """Return whether OpenVINO has this precision on this CPU; if not, it falls back silently."""
    return precision.upper() in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def _core() -> Any:
    return openvino.Core()


class _Constants(nn.Module):
    """Wrapper without submodules, whose trace contains the network's weights as constants.

    TorchScript adds attributes (`code`, `graph`) to every submodule, which would hide a network's
    own attributes of these names from OpenVINO's converter.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self._hidden = [trunk]  # The list keeps torch from registering it as a submodule.

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the network's features."""
        features: Tensor = self._hidden[0](pixels)
        return features


def _convert(trunk: Trunk, pixels: Tensor) -> Any:
    """Convert a network to an OpenVINO model that takes pixels in memory order, channels last."""
    network: Any = trunk
    # A part that is already TorchScript can only be traced as a submodule.
    if not any(isinstance(part, torch.jit.ScriptModule) for part in trunk.modules()):
        network = torch.jit.trace(_Constants(trunk), pixels, check_trace=False)
    model = openvino.convert_model(network, example_input=pixels)
    steps = openvino.preprocess.PrePostProcessor(model)
    steps.input().tensor().set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    return steps.build()


def _compile(model: Any, shape: tuple[int, ...], precision: Precision, threads: int) -> Any:
    count, channels, height, width = shape
    model.reshape({model.inputs[0]: [count, height, width, channels]})
    return _core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": _TYPES[precision],
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            # With pinning, every worker process would use the same core.
            "ENABLE_CPU_PINNING": False,
        },
    )
