"""Whether a model still is what it was: its embeddings of a fixed strip of real frames.

The measure of an error is the game, not the cosine: frames of one game are so alike that an error
with cosine 0.9999 can exceed what changes from one step to the next. So

    step-relative error = median |e - e_reference| / median |e_reference(t+1) - e_reference(t)|

over the strip's pairs of consecutive frames. Below 0.01 nothing can tell the two apart; above 0.1
(`--max-step-error`) wsa refuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

MAX_STEP_ERROR = 0.1


def step_error(found: NDArray[Any], reference: NDArray[Any]) -> float:
    """Step-relative error of `found` against `reference`.

    Args:
        found: (2n, *shape), rows 2i and 2i + 1 being consecutive steps.
        reference: The same rows by the reference.
    """
    if found.shape != reference.shape:
        return float("inf")
    wanted = reference.reshape(len(reference), -1).astype(np.float64)
    errors = np.linalg.norm(found.reshape(len(found), -1) - wanted, axis=1)
    steps = np.linalg.norm(wanted[1::2] - wanted[::2], axis=1)
    if not np.isfinite(errors).all():
        return float("inf")
    return float(np.median(errors) / max(np.median(steps), 1e-12))


def save(probe: NDArray[np.float32]) -> bytes:
    """Safetensors bytes of probe vectors."""
    return safetensors.numpy.save({"probe": probe})


def load(data: bytes) -> NDArray[np.float32]:
    """Read what `save` wrote."""
    return safetensors.numpy.load(data)["probe"]
