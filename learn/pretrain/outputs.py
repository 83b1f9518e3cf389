"""What a trained encoder leaves: weights that `wsa encode` takes, and pictures for its trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.encode.models.paper.base import Trainee
from wsa.learn.pretrain.data import Looks, scale
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
    write_curves(folder / "curves.png", folder / "metrics.jsonl")
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
    write_panels(folder / "seen.png", [torch.cat(column) for column in zip(*shown, strict=True)])


_ZOOM = 2
_INK, _RULE = (40, 40, 40), (215, 215, 215)
_LINES = ((190, 110, 30), (40, 60, 210), (60, 150, 60), (150, 60, 150))  # BGR
_WIDTH, _HEIGHT, _MARGIN = 720, 360, 56


def write_panels(path: Path, panels: Sequence[Tensor]) -> None:
    """Write pictures of the same looks side by side, a line for each look.

    Args:
        path: A .png file.
        panels: Pictures (B, 3, h, w) in [0, 1], as `wsa.encode.models.paper.base.Trainee.show` gives them.
    """
    rows = torch.cat(list(panels), dim=3).permute(0, 2, 3, 1)  # (B, h, panels * w, 3)
    levels = (rows * 255).round().to(torch.uint8).cpu().numpy().reshape(-1, rows.shape[2], 3)
    large = levels.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
    _write(path, large[..., ::-1])


def write_curves(path: Path, metrics: Path) -> None:
    """Draw the losses of a run over its steps, on a logarithmic scale where they allow it.

    Args:
        path: A .png file.
        metrics: The run's `metrics.jsonl`.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    curves = {
        name: [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        for name in ("losses/train", "losses/validation")
    }
    _write(path, _plot({name: points for name, points in curves.items() if points}))


def _plot(curves: dict[str, list[tuple[int, float]]]) -> NDArray[Any]:
    picture = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    steps = [step for points in curves.values() for step, _ in points]
    values = [value for points in curves.values() for _, value in points]
    if not values:
        return picture
    logarithmic = min(values) > 0
    least, most = min(values), max(values)

    def place(step: float, value: float) -> tuple[int, int]:
        if logarithmic:
            up = math.log(value / least) / max(math.log(most / least), 1e-9)
        else:
            up = (value - least) / max(most - least, 1e-12)
        across = (step - min(steps)) / max(max(steps) - min(steps), 1)
        return (
            round(_MARGIN + across * (_WIDTH - 2 * _MARGIN)),
            round(_HEIGHT - _MARGIN - up * (_HEIGHT - 2 * _MARGIN)),
        )

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = least * (most / least) ** share if logarithmic else least + share * (most - least)
        (left, at), (right, _) = place(min(steps), value), (_WIDTH - _MARGIN, 0)
        cv2.line(picture, (left, at), (right, at), _RULE, 1)
        _say(picture, f"{value:.3g}", (4, at + 4))
    for step in (min(steps), max(steps)):
        _say(picture, f"{step:,}", (place(step, least)[0] - 20, _HEIGHT - _MARGIN + 20))
    _say(picture, "gradient steps", (_WIDTH // 2 - 50, _HEIGHT - 14))
    for i, (name, points) in enumerate(curves.items()):
        corners = np.array([place(*point) for point in points], np.int32)
        cv2.polylines(picture, [corners], False, _LINES[i], 2, cv2.LINE_AA)
        at = _MARGIN + 140 * i
        cv2.line(picture, (at, 24), (at + 24, 24), _LINES[i], 2)
        _say(picture, name.removeprefix("losses/"), (at + 30, 28))
    return picture


def _say(picture: NDArray[Any], text: str, at: tuple[int, int]) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, _INK, 1, cv2.LINE_AA)


def _write(path: Path, picture: NDArray[Any]) -> None:
    _, data = cv2.imencode(".png", np.ascontiguousarray(picture))
    atomic_files.replace(path, data.tobytes())
