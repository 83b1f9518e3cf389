"""Check that a model still gives the same embeddings of the probe frames.

Cosine similarity is not a useful measure here: frames of one game are so similar that an error with
cosine 0.9999 can exceed the change from one step to the next. So wsa compares the error with that
change, over the pairs of consecutive probe frames:

    step-relative error = median |e - e_reference| / median |e_reference(t+1) - e_reference(t)|

Below 0.01, nothing can tell the two apart. Above 0.1 (`--max-step-error`), wsa refuses the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

MAX_STEP_ERROR = 0.1


def step_error(found: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the step-relative error of `found` against `reference`.

    Args:
        found: Embeddings, shape (2n, *shape); rows 2i and 2i + 1 are consecutive steps.
        reference: Reference embeddings of the same frames.

    Returns:
        The error; infinite if the shapes differ or a value is not finite.
    """
    if found.shape != reference.shape:
        return float("inf")
    flat_reference = reference.reshape(len(reference), -1).astype(np.float64)
    errors = np.linalg.norm(found.reshape(len(found), -1) - flat_reference, axis=1)
    steps = np.linalg.norm(flat_reference[1::2] - flat_reference[::2], axis=1)
    if not np.isfinite(errors).all():
        return float("inf")
    return float(np.median(errors) / max(np.median(steps), 1e-12))


def save(probe: NDArray[np.float32]) -> bytes:
    """Serialize probe vectors as safetensors."""
    return safetensors.numpy.save({"probe": probe})


def load(data: bytes) -> NDArray[np.float32]:
    """Load probe vectors that `save` serialized."""
    return safetensors.numpy.load(data)["probe"]
