"""Outputs of a training: weights that `wsa encode` loads, and pictures for inspection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from wsa.learn.pretrain.data import Examples, scale
from wsa.learn.pretrain.trainee import Trainee
from wsa.learn.training import charts, metrics
from wsa.store.common import atomic_files, hashing

_MAX_EXAMPLES = 6
_ZOOM = 2


def write_encoders(folder: Path, network: Trainee, half: bool) -> dict[str, dict[str, Any]]:
    """Write each frozen part as `<alias>.safetensors`; return its entries of the manifest."""
    files = {}
    for alias, module in network.frozen().items():
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in module.state_dict().items()
            if not name.endswith("num_batches_tracked")  # It does not affect any output.
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


def write_pictures(folder: Path, network: Trainee, examples: Examples, device: str) -> None:
    """Draw the losses, and the network's view of some held-out frames."""
    write_curves(folder / "curves.png", folder)
    generator = np.random.default_rng(0)
    network.eval()
    pictures = []
    # Examples of one game go through the network together, because some networks compare them.
    for rows in list(examples.held_out.values())[:_MAX_EXAMPLES]:
        count = max(1, _MAX_EXAMPLES // len(examples.held_out))
        chosen = rows[np.linspace(0, len(rows) - 1, max(count, 2)).astype(np.int64)]
        with torch.inference_mode():
            panels = network.show(scale(examples.take(chosen, generator), device))
        pictures.append([panel[:count] for panel in panels])
    write_panels(folder / "seen.png", [torch.cat(column) for column in zip(*pictures, strict=True)])


def write_panels(path: Path, panels: Sequence[Tensor]) -> None:
    """Write pictures side by side, one row for each example.

    Args:
        path: A .png file.
        panels: Pictures (B, 3, h, w) in [0, 1], from `Trainee.show`.
    """
    rows = torch.cat(list(panels), dim=3).permute(0, 2, 3, 1)  # (B, h, panels * w, 3)
    levels = (rows * 255).round().to(torch.uint8).cpu().numpy().reshape(-1, rows.shape[2], 3)
    large = levels.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
    _, data = cv2.imencode(".png", np.ascontiguousarray(large[..., ::-1]))
    atomic_files.replace(path, data.tobytes())


def write_curves(path: Path, folder: Path) -> None:
    """Draw the losses of a run over its steps, on a logarithmic scale if all are positive."""
    logged = list(metrics.read(folder))
    lines = []
    for style, name in enumerate(("train", "validation")):
        points = [
            (m["step"], loss) for m in logged if (loss := m.get(f"losses/{name}")) is not None
        ]
        if points:
            steps, losses = zip(*points, strict=True)
            lines.append(charts.Line(name, steps, losses, style))
    positive = bool(lines) and all(np.min(line.y) > 0 for line in lines)
    picture = charts.draw("Losses", "gradient steps", "loss", lines, logarithmic=positive)
    atomic_files.replace(path, picture)
