"""What users may set when they share, check and tidy a store.

Nothing heavy is imported here, so that help is quick.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wsa.encode.options import Names, StoreOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeOptions(StoreOptions):
    """Options of `wsa merge`."""

    url: Annotated[Positional[str], arg(metavar="URL")]
    """The other store: a folder or a URL."""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """Print what would be copied and what that saves, and stop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareOptions(MergeOptions):
    """What may be chosen of what is copied."""

    game: Names = ()
    """ALE games; all if none is named."""
    models: Names = ()
    """Aliases or keys; every model that has encoded one of the games if none is named."""
    no_frames: bool = False
    """Leave the frames: rows and embeddings are enough to train, but not to encode."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushOptions(ShareOptions):
    """Options of `wsa push`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PullOptions(ShareOptions):
    """Options of `wsa pull`."""


@dataclasses.dataclass(frozen=True)
class DuOptions(StoreOptions):
    """Options of `wsa du`."""

    by: Literal["game", "policy", "model", "author"] = "game"
    """What to sum over."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(StoreOptions):
    """Options of `wsa export`."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Folder to make, as breakout.zarr."""
    game: str
    """ALE game."""
    models: Names = ()
    """Aliases or keys; every model that has encoded the whole game if none is named."""
    frames: bool = False
    """Export the frames themselves too, as RGB."""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """Print what would be written and stop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions(StoreOptions):
    """Options of `wsa import`."""

    kind: Annotated[Positional[Literal["minari", "arrays"]], arg(metavar="KIND")]
    """minari: a dataset of Minari; arrays: an .npz file, a Zarr folder, or an export."""
    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """The dataset's id or folder; the file or folder of arrays."""
    game: str = ""
    """ALE game, where the data does not say it."""
    policy: str = ""
    """Who played, where the data does not say it."""
    protocol: Literal["", "classic", "v5"] = ""
    """It was played as 'wsa collect --protocol' plays."""
    frame_skip: int | None = None
    """Emulator frames in a step."""
    sticky: float | None = None
    """Probability that the emulator repeated the last action."""
    full_action_space: bool = False
    """Actions are numbers of all 18, not of the game's minimal set."""
    noop_max: int | None = None
    """Up to this many no-ops began an episode."""
    fire_reset: bool = False
    """FIRE was pressed at the beginning of an episode."""
    max_pool: bool = False
    """Screens are the maximum over the last two emulator frames."""
    max_episode_steps: int | None = None
    """Steps after which an episode was truncated."""
    segment_steps: int = 1024
    """Steps in a segment, the unit that is written, encoded and committed."""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """Check the data, print what would be written and stop."""


@dataclasses.dataclass(frozen=True)
class VerifyOptions(StoreOptions):
    """Options of `wsa verify`."""

    sample: str = "100%"
    """Share of the objects to read, chosen anew each time: 1% or 0.01."""
    repair: bool = False
    """Move what is left of damaged objects to damaged/, so that they can be made or fetched again."""


@dataclasses.dataclass(frozen=True)
class SweepOptions(StoreOptions):
    """Options of `wsa sweep`."""

    grace_hours: float = 24.0
    """How old a leftover must be. No commit may take longer than this."""
    yes: bool = False
    """Remove the leftovers; without it they are listed only."""
