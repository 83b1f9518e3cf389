"""Frames on their way to a GPU: two batches in flight, so that copying and computing overlap.

A batch is gathered in pinned memory, copied by a stream of its own, and computed by the caller's;
the host waits only for the batch before the last one, whose place it needs. Nothing is fetched back
before the last batch has been asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    placed = [torch.empty(shape, dtype=torch.uint8, device=device) for _ in range(IN_FLIGHT)]
    free = [cuda.Event() for _ in range(IN_FLIGHT)]
    copies, computing = cuda.Stream(device), cuda.current_stream(device)
    copies.wait_stream(computing)  # What lay where the batches go may still be read.
    found = []
    for at in range(0, len(frames), batch):
        place = at // batch % IN_FLIGHT
        part = frames[at : at + batch]
        free[place].synchronize()  # At once for the first ones: nothing has been recorded.
        pinned[place].numpy()[: len(part)] = part
        pinned[place].numpy()[len(part) :] = part[-1:]
        with cuda.stream(copies):
            placed[place].copy_(pinned[place], non_blocking=True)
        computing.wait_stream(copies)
        found.append(function(placed[place])[: len(part)])
        free[place].record(computing)
    return torch.cat(found).cpu()
