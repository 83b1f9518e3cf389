"""A learner's whole state in one safetensors file, written whole or not at all.

Tensors hold weights and optimiser state; the file's metadata holds the rest as JSON: step, random
states, where the draws stand. A run continued from a checkpoint goes on exactly as if it had not
stopped.
"""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wsa.store import publish
from wsa.store.errors import DamagedError, MissingError


class StopRequest:
    """While entered, Ctrl-C and SIGTERM ask to stop after the update at hand; a second one stops.

    Attributes:
        asked: Whether to save and stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def save(
    folder: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Any],
) -> Path:
    """Write `<folder>/<step>.safetensors`.

    Args:
        folder: The run's `checkpoints/`.
        step: Updates made.
        modules: Networks by name.
        optimizer: Its state is saved too.
        extra: Anything else that JSON can hold.
    """
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).cpu().contiguous()
    tensors["torch_random_state"] = torch.get_rng_state()
    metadata = {"step": str(step), "extra": json.dumps(extra)}
    path = folder / f"{step:09d}.safetensors"
    publish.replace(path, safetensors.torch.save(tensors, metadata))
    return path


def latest(folder: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        MissingError: There is none.
    """
    found = sorted(folder.glob("[0-9]*.safetensors"))
    if not found:
        raise MissingError(
            "no-run",
            f"{folder} has no checkpoint. Give the folder of a run that 'wsa learn' made, for "
            "example runs/Seaquest__wsa__1__1700000000.",
        )
    return found[-1]


def load(
    path: Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[int, dict[str, Any]]:
    """Read a checkpoint into networks, and into the optimiser and torch's generator if given.

    Returns:
        The step, and `extra` as it was saved.

    Raises:
        DamagedError: The file cannot be read or does not fit the networks.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, name))
        if optimizer is not None:
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, "optimizer").items():
                index, _, field = key.partition(".")
                state.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            torch.set_rng_state(tensors["torch_random_state"])
        return int(metadata["step"]), json.loads(metadata["extra"])
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise DamagedError(
            "bad-bytes",
            f"{path} cannot be read as a checkpoint of this run ({error}). Remove it: the run "
            "continues from the one before.",
        ) from None


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    cut = len(prefix) + 1
    return {k[cut:]: v for k, v in tensors.items() if k.startswith(prefix + ".")}
