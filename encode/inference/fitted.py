"""The reductions that are fitted on frames, by the name that an output gives them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from wsa.encode.inference import objects, palette, reduction
from wsa.encode.inference.reduction import Reduction


class FittedReduction(Protocol):
    """What the module of a fitted reduction has."""

    def fit(self, features: Tensor, numbers: int, /) -> Reduction:
        """Fit it on features (n, *shape) float32 to the number that an output names.

        Raises:
            UsageError: The features cannot give it.
        """
        ...

    def save(self, fitted: Any, /) -> bytes:
        """Safetensors bytes."""
        ...

    def load(self, data: bytes, /) -> Reduction:
        """Read what `save` wrote."""
        ...


FITTED: dict[str, FittedReduction] = {"pca": reduction, "palette": palette, "objects": objects}
