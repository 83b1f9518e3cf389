"""A learner's whole state in one safetensors file, written whole or not at all.

Tensors hold weights and optimiser state; the file's metadata holds the rest as JSON: step, random
states, where the draws stand, and a checksum over all of it. A run continued from a checkpoint goes
on exactly as if it had not stopped.

A damaged checkpoint is never skipped: to use an older one, remove it yourself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.store.common import atomic_files, hashing
from wsa.store.common.errors import DamagedError, MissingError

BEST = "best"  # The name of the checkpoint that did best on held-out episodes.
KEPT = 2  # Checkpoints of a run.


def save(
    folder: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
    extra: dict[str, Any] | None = None,
    name: str = "",
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """Write `<folder>/<step>.safetensors`; of others the newest is kept, and nothing half written.

    Args:
        folder: The run's `checkpoints/`.
        step: Updates made.
        modules: Networks by name.
        optimizer: Its state is saved too.
        extra: Anything else that JSON can hold.
        name: The file's, in place of the step; such a one is never continued from.
        arrays: Anything else, as `arrays.<name>`.
    """
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    moved = optimizer.state_dict()["state"] if optimizer else {}
    for index, state in moved.items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).cpu().contiguous()
    for key, array in (arrays or {}).items():
        tensors[f"arrays.{key}"] = torch.from_numpy(np.ascontiguousarray(array).copy())
    tensors["torch_random_state"] = torch.get_rng_state()
    metadata = {"step": str(step), "extra": json.dumps(extra or {})}
    metadata["check"] = _check(metadata, tensors)
    path = folder / f"{name or f'{step:09d}'}.safetensors"
    for left in (*folder.glob(".[0-9]*.safetensors.*"), *folder.glob(f".{BEST}.safetensors.*")):
        left.unlink(missing_ok=True)
    atomic_files.replace(path, safetensors.torch.save(tensors, metadata))
    if not name:  # The one before stays, in case this one is damaged.
        others = [other for other in all_of(folder) if other != path]
        for old in others[: max(0, len(others) + 1 - KEPT)]:
            old.unlink(missing_ok=True)
    return path


def latest(folder: Path) -> Path:
    """The newest checkpoint of a run, whether or not it can be read.

    Raises:
        MissingError: There is none.
    """
    found = all_of(folder)
    if not found:
        raise MissingError(
            "no-run",
            f"{folder} has no checkpoint. Give the folder of a run that 'wsa learn' made, for "
            "example runs/Seaquest__wsa__1__1700000000.",
        )
    return found[-1]


def digest(folder: Path) -> str:
    """12 hex digits of a run's newest checkpoint.

    Raises:
        MissingError: There is none.
    """
    return hashing.checksum(latest(folder).read_bytes())[:12]


def best(folder: Path) -> Path:
    """The network of a run that did best on held-out episodes.

    Raises:
        MissingError: The run kept none.
    """
    path = folder / f"{BEST}.safetensors"
    if not path.exists():
        raise MissingError(
            "no-run",
            f"{folder} has no {path.name}: a run keeps one with 'wsa learn --save-best'. "
            "--checkpoint final is always there.",
        )
    return path


def all_of(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    found = (path for path in folder.glob("*.safetensors") if path.stem.isdecimal())
    return sorted(found, key=lambda path: int(path.stem))


def load(
    path: Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
    arrays: dict[str, NDArray[Any]] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Read a checkpoint into networks, and into the optimiser and torch's generator if given.

    Args:
        path: The checkpoint.
        modules: Networks by name.
        optimizer: Given by who continues to train.
        arrays: Filled with the arrays that were saved.

    Returns:
        The step, and `extra` as it was saved.

    Raises:
        DamagedError: The file is not what was saved, or does not fit the networks; these and the
            optimiser may have been changed.
    """
    tensors, metadata = read(path)
    try:
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, name))
        if optimizer is not None:
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, "optimizer").items():
                index, _, field = key.partition(".")
                state.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            for parameter, moments in optimizer.state.items():
                # In the parameter's own layout, which fused optimisers take for granted.
                for field, value in moments.items():
                    if value.shape == parameter.shape:
                        moments[field] = torch.empty_like(parameter).copy_(value)
            torch.set_rng_state(tensors["torch_random_state"])
        if arrays is not None:
            arrays.update({k: v.numpy() for k, v in _below(tensors, "arrays").items()})
        return int(metadata["step"]), json.loads(metadata["extra"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A checkpoint's tensors by name, and its metadata.

    Raises:
        MissingError: There is no such file any more.
        DamagedError: The file is not what was saved.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check = metadata.pop("check")
        if _check(metadata, tensors) != check:
            raise ValueError("its bytes are not those that were saved")
        return tensors, metadata
    except FileNotFoundError:
        raise MissingError(
            "no-run",
            f"{path} is gone: a run that goes on keeps its {KEPT} newest checkpoints. Run the same "
            "command again; a run that was to begin from it needs another --run-dir.",
        ) from None
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DamagedError:
    others = [other.name for other in all_of(path.parent) if other != path]
    return DamagedError(
        "bad-bytes",
        f"{path} cannot be read as a checkpoint of this run ({error}). No file was changed. "
        + (
            f"Remove it and run the same command again: {others[-1]} is then the newest."
            if others
            else "The run has no other: remove it, and the command in "
            f"{path.parent.parent / 'command.txt'} starts the run again."
        ),
    )


def _check(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return hashing.identity([metadata, hashing.tensors_digest(arrays)])


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    cut = len(prefix) + 1
    return {k[cut:]: v for k, v in tensors.items() if k.startswith(prefix + ".")}
