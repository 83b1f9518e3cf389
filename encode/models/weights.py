"""Weights files as people have them: with prefixes and heads of what they were trained in.

A training framework saves a backbone below a prefix (`module.` of DistributedDataParallel, `model.`,
`backbone.`, `encoder.`, `student.`), and with the heads that it was trained with. Where all of an
architecture's tensors are there, under one prefix and of the right shapes, they are taken and the
rest is left out; where one lacks or does not fit, nothing is.
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

Tensors = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt")
_PREFIXES = ("module", "model", "backbone", "encoder", "student")
# What a torch archive has tensors under, beside optimizers and counts.
_WITHIN = ("state_dict", "model_state_dict", "model", "student", "module")
_HEAD = re.compile(r"head|classif|proj|predict|decoder|prototype|^fc$|^last_linear$")
_COUNTER = "num_batches_tracked"  # Changes no number, and not every file has it.
_SHOWN = 3

_log = logging.getLogger(__name__)


def read(file: Path) -> Tensors:
    """The tensors of a file.

    Raises:
        ValueError: It holds something else.
        Exception: safetensors and torch raise many kinds.
    """
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    found: Any = torch.load(file, map_location="cpu", weights_only=True)
    for name in _WITHIN:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError("it holds more than tensors by name; save model.state_dict() alone")
    return {str(name): tensor for name, tensor in found.items()}


def below_prefixes(tensors: Tensors) -> Iterator[tuple[str, Tensors]]:
    """The tensors; then those below each prefix that there is, under their names there."""
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
        tensors: All that it has, taken from the file where that has them.
        missing, unexpected, unlike: Names of tensors that the file lacks, that it has and the network does not, and
            that have another shape there; heads are none of these.
        heads: Names of heads that are left out.
    """

    tensors: Tensors
    missing: list[str]
    unexpected: list[str]
    unlike: list[str]
    heads: list[str]

    @property
    def whole(self) -> bool:
        """Whether everything but heads matches."""
        return not (self.missing or self.unexpected or self.unlike)

    def __str__(self) -> str:
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.unlike),
        )
        return "; ".join(f"{what}: {_some(names)}" for what, names in parts if names)


def fit(tensors: Tensors, wanted: Tensors, classifier: tuple[str, ...]) -> Fit:
    """Compare a file's tensors with an architecture's.

    Args:
        tensors: The file's.
        wanted: The architecture's.
        classifier: How the names of its classifier begin, which is dropped in the end.
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


@functools.cache  # A model is built by several steps of one command.
def say_taken(file: Path, prefix: str, left_out: tuple[str, ...]) -> None:
    """Say what of a file was taken."""
    below = f" below {prefix!r}" if prefix else ""
    rest = f"; left out {len(left_out)} others ({_some(left_out)})" if left_out else ""
    _log.info("%s: took the tensors%s%s", file, below, rest)


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:60] for name in names[:_SHOWN]) + more
