"""Save and load a learner's complete state in one safetensors file, written atomically.

Tensors hold weights and optimizer state. The file's metadata holds the rest as JSON: the step, the
optimizer's options (its learning rate may have changed), the states of samplers, and a checksum over
everything. On a CPU, a run resumed from a checkpoint continues exactly as if it had not stopped; of a
GPU, the random generators are not saved.

A damaged checkpoint is never skipped: to use an older one, remove it yourself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.store.common import atomic_files, hashing
from wsa.store.common.errors import DamagedError, MissingError

BEST = "best"  # Name of the checkpoint with the best validation score.
KEPT = 2  # Number of checkpoints that a run keeps.
# Options of an optimizer that say how it computes, which depends on the machine.
_HOW = ("foreach", "fused", "capturable", "differentiable")


def save(
    folder: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
    extra: dict[str, Any] | None = None,
    name: str = "",
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """Write `<folder>/<step>.safetensors`, and remove all older checkpoints but the newest.

    Also removes what interrupted writes left behind.

    Args:
        folder: The run's `checkpoints/`.
        step: Step of the checkpoint.
        modules: Networks by name.
        optimizer: Optimizer whose state and options to save, if any.
        extra: Other state, as JSON values.
        name: File name instead of the step. A run never resumes from a named checkpoint.
        arrays: Other state, as arrays; saved as `arrays.<name>`.
    """
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    saved = optimizer.state_dict() if optimizer else {"state": {}, "param_groups": []}
    for index, state in saved["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).cpu().contiguous()
    for key, array in (arrays or {}).items():
        tensors[f"arrays.{key}"] = torch.from_numpy(np.ascontiguousarray(array).copy())
    tensors["torch_random_state"] = torch.get_rng_state()
    options = [
        {
            name: value
            for name, value in group.items()
            if isinstance(value, int | float | tuple) and name not in _HOW
        }
        for group in saved["param_groups"]
    ]
    metadata = {
        "step": str(step), "extra": json.dumps(extra or {}), "optimizer": json.dumps(options),
    }  # fmt: skip
    metadata["check"] = _check(metadata, tensors)
    path = folder / f"{name or f'{step:09d}'}.safetensors"
    for leftover in (*folder.glob(".[0-9]*.safetensors.*"), *folder.glob(f".{BEST}.safetensors.*")):
        leftover.unlink(missing_ok=True)
    atomic_files.replace(path, _sorted(safetensors.torch.save(tensors, metadata)))
    if not name:  # Keep the previous one, in case this one is damaged.
        others = [other for other in all_of(folder) if other != path]
        for old in others[: max(0, len(others) + 1 - KEPT)]:
            old.unlink(missing_ok=True)
    return path


def _sorted(file: bytes) -> bytes:
    """Sort the metadata of a safetensors file, so that equal states give equal files.

    safetensors writes them in an order that differs from call to call.
    """
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # The format aligns the tensors at 8 bytes.
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(file)[8 + size :]))


def latest(folder: Path) -> Path:
    """Return the path of a run's newest checkpoint, readable or not.

    Raises:
        MissingError: If there is none.
    """
    checkpoints = all_of(folder)
    if not checkpoints:
        raise MissingError(
            "no-run",
            f"{folder} has no checkpoint. Give the folder of a run that 'wsa learn' made, for "
            "example runs/Seaquest__wsa__1__1700000000.",
        )
    return checkpoints[-1]


def digest(path: Path) -> str:
    """Return the first 12 hex digits of a checkpoint's checksum, by which reports name it."""
    return hashing.checksum(path.read_bytes())[:12]


def find(folder: Path, which: Literal["final", "best"]) -> Path:
    """Return the path of a run's newest checkpoint, or of that with the best validation score.

    Raises:
        MissingError: If there is none, or the run did not keep the best.
    """
    if which == "final":
        return latest(folder)
    path = folder / f"{BEST}.safetensors"
    if not path.exists():
        raise MissingError(
            "no-run",
            f"{folder} has no {path.name}: a run keeps one with 'wsa learn --save-best'. "
            "--checkpoint final is always there.",
        )
    return path


def all_of(folder: Path) -> list[Path]:
    """Return the paths of a run's checkpoints, oldest first."""
    checkpoints = (path for path in folder.glob("*.safetensors") if path.stem.isdecimal())
    return sorted(checkpoints, key=lambda path: int(path.stem))


def newest_step(folder: Path) -> int:
    """Return the step of a run's newest checkpoint; 0 if there is none."""
    return max((int(path.stem) for path in all_of(folder)), default=0)


def load(
    path: Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
    arrays: dict[str, NDArray[Any]] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Load a checkpoint into networks and, to resume training, an optimizer and torch's generator.

    Args:
        path: The checkpoint.
        modules: Networks by name.
        optimizer: Optimizer to restore; with it, torch's global generator is restored too.
        arrays: Filled with the saved arrays, if given.

    Returns:
        The step, and `extra` as it was saved.

    Raises:
        DamagedError: If the file was changed since it was saved, or does not fit the networks. The
            networks and the optimizer may be partly overwritten then.
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
            groups = optimizer.state_dict()["param_groups"]
            # A file from an older wsa has no options.
            options = json.loads(metadata.get("optimizer", "null")) or [{} for _ in groups]
            for group, own in zip(groups, options, strict=True):
                group |= {n: tuple(v) if isinstance(v, list) else v for n, v in own.items()}
            optimizer.load_state_dict({"state": state, "param_groups": groups})
            for parameter, moments in optimizer.state.items():
                # Fused optimizers assume that their state has the parameter's memory layout.
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
    """Return a checkpoint's tensors by name, and its metadata.

    Raises:
        MissingError: If the file no longer exists.
        DamagedError: If the file was changed since it was saved.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check = metadata.pop("check")
        if _check(metadata, tensors) != check:
            raise ValueError("its bytes are not those that were saved")
        # An older wsa spelled this name in the British way.
        old, new = "torso.normalisers.", "torso.normalizers."
        return {name.replace(old, new): tensor for name, tensor in tensors.items()}, metadata
    except FileNotFoundError:
        raise MissingError(
            "no-run",
            f"{path} is gone: a run in training keeps only its {KEPT} newest checkpoints. Run the "
            "same command again; a run that was to begin from it needs another --run-dir.",
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
    start = len(prefix) + 1
    return {k[start:]: v for k, v in tensors.items() if k.startswith(prefix + ".")}
