"""Options of the commands that collect, import, export and look at data."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wsa.store.common.ranges import COUNT
from wsa.store.configs import (
    Game,
    LocalPath,
    Names,
    OptionalFloat,
    OptionalInt,
    Pairs,
    StoreOptions,
    Switch,
    Text,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(StoreOptions):
    """Options of `wsa export`."""

    path: Annotated[Positional[LocalPath], arg(metavar="PATH")]
    """Folder to create, such as breakout.zarr."""
    game: Game
    """ALE game."""
    models: Names = ()
    """Aliases or keys; every model that has encoded the whole game if not given."""
    frames: Switch = False
    """Export the frames themselves too, as RGB."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be written, then stop."""


@dataclasses.dataclass(frozen=True)
class StatedProtocol:
    """How the game was played, as far as the data do not say so."""

    protocol: Annotated[
        Literal["", "classic", "v5"], arg(metavar="{classic,v5}", help_behavior_hint="")
    ] = ""
    """Protocol of the play, as in 'wsa collect --protocol'."""
    frame_skip: OptionalInt = None
    """Emulator frames per step."""
    sticky: OptionalFloat = None
    """Probability that the emulator repeated the last action."""
    full_action_space: Switch = False
    """Actions are indices into all 18 actions, not into the game's minimal set."""
    noop_max: OptionalInt = None
    """Maximum number of no-ops at the beginning of an episode."""
    fire_reset: Switch = False
    """FIRE was pressed at the beginning of an episode."""
    max_pool: Switch = False
    """Screens are the maximum over the last two emulator frames."""
    max_episode_steps: OptionalInt = None
    """Steps after which an episode was truncated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions(StoreOptions):
    """Options of `wsa import`."""

    kind: Annotated[Positional[Literal["minari", "arrays"]], arg(metavar="KIND")]
    """minari: a Minari dataset; arrays: an .npz file, a Zarr folder, or an export."""
    source: Annotated[Positional[LocalPath], arg(metavar="SOURCE")]
    """The dataset's id or folder; the file or folder of arrays."""
    game: Game = ""
    """ALE game, if the data do not name it."""
    policy: Text = ""
    """Name of the policy that played, if the data do not name it."""
    segment_steps: int = 1024
    """Steps per segment, the unit of writing and encoding."""
    rules: Annotated[StatedProtocol, arg(name="protocol")] = StatedProtocol()
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Check the data, print what would be written, then stop."""


@dataclasses.dataclass(frozen=True)
class Play:
    """What to play."""

    game: Game = "Seaquest"
    """ALE game."""
    steps: int = 100_000
    """Total number of agent steps; the emulator plays four frames per step."""
    num_envs: int = 8
    """Number of parallel environments."""
    policy: str = "random"
    """Policy that plays: random, the folder of a run, or your own as module:callable."""
    seed: int = 1
    """Environment i has the seed SEED + i."""


@dataclasses.dataclass(frozen=True)
class RunPolicyOptions:
    """With --policy RUN: how the run plays."""

    eps: float = 0.0
    """Probability of a random action."""
    weights: Pairs = ()
    """Safetensors files of the run's models, if they have moved."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the run's models run."""
    trust: Names = ()
    """Your own fusion or algorithm, as module:name, that the run names."""


@dataclasses.dataclass(frozen=True)
class ProtocolOptions:
    """How the game is played, and how it is stored."""

    protocol: Literal["classic", "v5"] = "classic"
    """classic: no sticky actions, up to 30 no-ops, FIRE at a reset, minimal actions.
    v5: sticky actions 0.25, all 18 actions. A version in the name of --game does not choose it."""
    sticky: OptionalFloat = None
    """Overrides the protocol's sticky-action probability."""
    max_episode_steps: int = 27_000
    """Steps after which an episode is truncated."""
    segment_steps: int = 1024
    """Steps per segment, the unit of writing and encoding."""


@dataclasses.dataclass(frozen=True)
class CollectOptions(StoreOptions, Play):
    """Options of `wsa collect`."""

    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be done, then stop."""
    run_policy: Annotated[RunPolicyOptions, arg(name="run's policy")] = RunPolicyOptions()
    rules: Annotated[ProtocolOptions, arg(name="protocol")] = ProtocolOptions()


@dataclasses.dataclass(frozen=True)
class ListOptions(StoreOptions):
    """Options of `wsa list`."""

    games: Switch = False
    """List all ALE games, collected or not."""


@dataclasses.dataclass(frozen=True)
class ShowOptions(StoreOptions):
    """Options of `wsa show`."""

    what: Annotated[Positional[Game], arg(metavar="WHAT")] = "Seaquest"
    """ALE game, segment id, or model key."""
    html: LocalPath = ""
    """For a game: write one page that needs no network, with frames, returns, and similar frames by each model."""
    probe: Text = ""
    """With --html: a file with the output of 'wsa probe --json', which the page shows too."""


@dataclasses.dataclass(frozen=True)
class DoctorOptions(StoreOptions):
    """Options of `wsa doctor`."""


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Options of `wsa demo`."""

    folder: LocalPath = ".demo"
    """Folder for its store, cache, and run; the same command reuses them."""
    game: Game = "Seaquest"
    """ALE game."""
    steps: Annotated[int, COUNT] = 600
    """Agent steps to collect."""
    updates: Annotated[int, COUNT] = 500
    """Gradient steps."""
    episodes: Annotated[int, COUNT] = 2
    """Number of full games to play."""
