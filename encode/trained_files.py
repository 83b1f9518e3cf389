"""What a trained encoder leaves: weights that `wsa encode` takes, and pictures for its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from wsa.encode import pictures
from wsa.encode.models.paper.base import Trainee
from wsa.encode.pretrain_data import Looks, scale
from wsa.store.common import atomic_files, hashing

_PICTURED = 6


def write_encoders(folder: Path, network: Trainee, half: bool) -> dict[str, dict[str, Any]]:
    """Write each frozen part as `<alias>.safetensors`; what the manifest says of them."""
    files = {}
    for alias, module in network.frozen().items():
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in module.state_dict().items()
            if not name.endswith("num_batches_tracked")  # It changes no number that is returned.
        }
        if half:
            tensors = {name: tensor.half() for name, tensor in tensors.items()}
        data = safetensors.torch.save(tensors)
        atomic_files.replace(folder / f"{alias}.safetensors", data)
        files[alias] = {
            "bytes": len(data),
            "blake3": hashing.checksum(data),
            "dtype": "float16" if half else "float32",
            "sees": module.sees.preprocessing(),
            "window": module.window,
            "parameters": sum(p.numel() for p in module.parameters()),
        }
    return files


def write_pictures(folder: Path, network: Trainee, looks: Looks, device: str) -> None:
    """Draw the losses, and what the network makes of some frames that were held out."""
    pictures.write_curves(folder / "curves.png", folder / "metrics.jsonl")
    generator = np.random.default_rng(0)
    network.eval()
    shown = []
    # Looks of one game go through the network together, since some networks compare them.
    for rows in list(looks.held_out.values())[:_PICTURED]:
        most = max(1, _PICTURED // len(looks.held_out))
        some = rows[np.linspace(0, len(rows) - 1, max(most, 2)).astype(np.int64)]
        with torch.inference_mode():
            panels = network.show(scale(looks.take(some, generator), device))
        shown.append([panel[:most] for panel in panels])
    pictures.write_panels(
        folder / "seen.png", [torch.cat(column) for column in zip(*shown, strict=True)]
    )
