"""Options of the commands that collect, import, export and look at data."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wsa.store.configs import Game, Names, Pairs, StoreOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(StoreOptions):
    """Options of `wsa export`."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Folder to make, as breakout.zarr."""
    game: Game
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
    game: Game = ""
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
class CollectOptions(StoreOptions):
    """Options of `wsa collect`."""

    game: Game = "Seaquest"
    """ALE game."""
    steps: int = 100_000
    """Agent steps in all; an emulator plays four frames in each."""
    num_envs: int = 8
    """Environments side by side."""
    policy: str = "random"
    """Who plays: random, the folder of a run whose network does, or your own as module:callable."""
    eps: float = 0.0
    """Of a run's network: probability of a random action."""
    weights: Pairs = ()
    """Safetensors files of the run's models, where this machine keeps them elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the run's models run."""
    trust: Names = ()
    """Your own fusion or algorithm, as module:name, that the run names."""
    seed: int = 1
    """Environment i is seeded with seed + i."""
    protocol: Literal["classic", "v5"] = "classic"
    """classic: no sticky actions, up to 30 no-ops, FIRE at a reset, minimal actions; v5: sticky
    actions 0.25, all 18 actions."""
    sticky: float | None = None
    """Overrides the protocol's sticky-action probability."""
    max_episode_steps: int = 27_000
    """Steps after which an episode is truncated."""
    segment_steps: int = 1024
    """Steps in a segment, the unit that is written, encoded and committed."""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """Print what would be done and stop."""


@dataclasses.dataclass(frozen=True)
class ListOptions(StoreOptions):
    """Options of `wsa list`."""

    games: bool = False
    """List all ALE games instead, whether collected or not."""


@dataclasses.dataclass(frozen=True)
class ShowOptions(StoreOptions):
    """Options of `wsa show`."""

    what: Annotated[Positional[Game], arg(metavar="WHAT")] = "Seaquest"
    """ALE game, segment's id, or model key."""


@dataclasses.dataclass(frozen=True)
class DoctorOptions(StoreOptions):
    """Options of `wsa doctor`."""


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Options of `wsa demo`."""

    folder: str = ".demo"
    """Where its store, cache and run are kept; the same command again reuses them."""
    game: Game = "Seaquest"
    """ALE game."""
    steps: int = 600
    """Agent steps to collect."""
    updates: int = 500
    """Gradient steps."""
    episodes: int = 2
    """Games to play."""
