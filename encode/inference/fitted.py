"""Reductions that are fitted on frames, by their name in an output."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from wsa.encode.inference import objects, palette, reduction
from wsa.encode.inference.reduction import Reduction


class FittedReduction(Protocol):
    """Interface of a module with a fitted reduction."""

    def fit(self, features: Tensor, numbers: int, /) -> Reduction:
        """Fit the reduction.

        Args:
            features: Features (n, *shape) float32.
            numbers: Number in the output, such as 512 in `pca:512`.

        Raises:
            UsageError: If the features do not allow that number.
        """
        ...

    def save(self, fitted: Any, /) -> bytes:
        """Serialize a fit as safetensors bytes."""
        ...

    def load(self, data: bytes, /) -> Reduction:
        """Restore a fit from the bytes of `save`."""
        ...


FITTED: dict[str, FittedReduction] = {"pca": reduction, "palette": palette, "objects": objects}
