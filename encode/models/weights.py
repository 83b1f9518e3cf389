"""Read weights files that carry the name prefixes and heads of a training framework.

A framework saves a backbone below a prefix (`module.` for DistributedDataParallel, `model.`,
`backbone.`, `encoder.`, `student.`), together with the heads it was trained with. If a file has all
of an architecture's tensors, below one prefix and with the right shapes, wsa takes these and leaves
out the rest. If one is missing or does not fit, wsa takes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from wsa.store.common import terminal

Tensors = dict[str, Tensor]

_PREFIXES = ("module", "model", "backbone", "encoder", "student")
# Entries that hold the tensors of a torch archive, which may also hold optimizers and counters.
_WITHIN = ("state_dict", "model_state_dict", "model", "student", "module")
_HEAD = re.compile(r"head|classif|proj|predict|decoder|prototype|^fc$|^last_linear$")
_COUNTER = "num_batches_tracked"  # Does not affect inference, and not every file has it.
_SHOWN = 3

_log = logging.getLogger(__name__)


def read(file: Path) -> Tensors:
    """Read the tensors of a file, by name.

    Raises:
        ValueError: If the file holds anything but tensors by name.
        Exception: If the file cannot be read; safetensors and torch raise many kinds.
    """
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's own message is to read the file unsafely.
        raise ValueError(
            "it is damaged, or holds more than tensors; save model.state_dict() alone"
        ) from error
    for name in _WITHIN:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError("it holds more than tensors by name; save model.state_dict() alone")
    return {str(name): tensor for name, tensor in content.items()}


def below_prefixes(tensors: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Yield the tensors, then the tensors below each known prefix, with the prefix removed."""
    yield "", tensors
    prefixes: dict[str, None] = {}
    for name in tensors:
        prefix = ""
        for part in name.split(".")[:-1]:
            if part not in _PREFIXES:
                break
            prefix += f"{part}."
            prefixes[prefix] = None
    for prefix in prefixes:
        yield (
            prefix,
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)},
        )


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a file's tensors fit an architecture.

    Attributes:
        tensors: All tensors of the architecture, from the file where it has them.
        missing: Names of tensors that the file lacks, without the classifier's.
        unexpected: Names of tensors that the architecture lacks, without heads.
        unlike: Names of tensors whose shapes differ, without the classifier's.
        heads: Names of the file's heads, which are left out.
    """

    tensors: Tensors
    missing: list[str]
    unexpected: list[str]
    unlike: list[str]
    heads: list[str]

    @property
    def whole(self) -> bool:
        """Whether everything except heads matches."""
        return not (self.missing or self.unexpected or self.unlike)

    def __str__(self) -> str:
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.unlike),
        )
        return "; ".join(f"{what}: {_shortened(names)}" for what, names in parts if names)


def fit(tensors: Tensors, wanted: Tensors, classifier: tuple[str, ...]) -> Fit:
    """Compare a file's tensors with an architecture's.

    Args:
        classifier: Prefixes of the names in the architecture's classifier, which is dropped later.
    """
    found: Tensors = {}
    missing: list[str] = []
    unlike: list[str] = []
    for name, own in wanted.items():
        given = tensors.get(name)
        if given is not None and given.shape == own.shape:
            found[name] = given
        elif name.startswith(classifier) or name.endswith(_COUNTER):
            found[name] = own
        else:
            (missing if given is None else unlike).append(name)
    more = [name for name in tensors if name not in wanted]
    heads = [name for name in more if _HEAD.search(name.split(".")[0])]
    unexpected = [name for name in more if name not in heads]
    return Fit(found, missing, unexpected, unlike, heads)


@functools.cache  # One command may build a model several times.
def say_taken(file: Path, prefix: str, left_out: tuple[str, ...]) -> None:
    """Log which tensors of a file were taken."""
    below = f" below {prefix!r}" if prefix else ""
    rest = (
        f"; left out {terminal.plural(len(left_out), 'other')} ({_shortened(left_out)})"
        if left_out
        else ""
    )
    _log.info("%s: took the tensors%s%s", file, below, rest)


def _shortened(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:60] for name in names[:_SHOWN]) + more
