"""The command line of `wsa study`: which study, of what, and where its report goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from wsa.learn.configs.fusions import check_choice
from wsa.learn.configs.learn import Device
from wsa.store.common.ranges import COUNT


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Options of every study."""

    kind: Annotated[Positional[str], arg(metavar="KIND")] = ""
    """scale: what is left of trained runs with fewer of their models. wsa study KIND --help shows the options
    of each."""
    study_dir: str = "study"
    """Folder of the tables and of index.html, which shows every study that is there."""
    json: bool = False
    """Print the result as JSON, for scripts."""


@dataclasses.dataclass(frozen=True)
class ScaleOptions(StudyOptions):
    """Options of `wsa study scale`."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN")] = ()
    """Folders of runs that 'wsa learn' made."""
    after: Literal["cached"] = "cached"
    """cached: every set of a run's models on stored states that it did not learn from, with no pass and no
    game."""
    states: Annotated[int, COUNT] = 4096
    """With cached: states to look at."""
    device: Device = "auto"
    """Where networks run."""


KINDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "scale": lambda arguments: ScaleOptions(),
}


def study_options(arguments: Sequence[str]) -> Any:
    """The options that a command line may set, with their defaults: those of the study it names.

    Raises:
        UsageError: There is no such study.
    """
    kind = next(iter(arguments), "")
    if kind in ("", "-h", "--help"):
        return StudyOptions()
    check_choice("KIND", kind, list(KINDS))
    return KINDS[kind](arguments)
