"""Options of `wsa learn` and `wsa eval`.

The dataclasses define the command line: tyro derives flags, types, defaults, and help from them.
The flags depend on the algorithm, so `learn_options` first looks for `--algo`, `--online`, and
`--fusion`. The part that defines a run is a `RunRequest`, which `wsa.learn.runs.setup.configure`
takes; a bench makes one for each of its runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec
from tyro.conf import Positional, arg
from tyro.extras import literal_type_from_choices

from wsa.encode.configs import Engine
from wsa.learn.configs.algorithms import (
    OFFLINE,
    ONLINE,
    AlgorithmConfig,
    CQLConfig,
    EvaluationConfig,
    OnlineConfig,
    algorithms,
    load_algorithm,
    with_option,
)
from wsa.learn.configs.evaluation import EPISODES, EPSILON, EVAL_SEED, NUM_ENVS
from wsa.learn.configs.fusions import (
    FUSIONS,
    PIXELS,
    PRESETS,
    FusionConfig,
    check_own_or,
    is_read,
    preset_switches,
)
from wsa.learn.configs.network import FrameStack, NetworkConfig, PixelNetworkConfig, pixel_network
from wsa.learn.configs.rl_presets import RL_PRESETS, rl_defaults
from wsa.store.common import user_code
from wsa.store.common.errors import UsageError
from wsa.store.common.ranges import COUNT, OPTIONAL_COUNT, SEED, SHARE, check_ranges
from wsa.store.configs import (
    FileName,
    Game,
    LocalPath,
    Names,
    OptionalInt,
    Pairs,
    StoreOptions,
    Switch,
    Text,
    own_or,
)

NEEDS_LESS_MEMORY = "Use a smaller --hidden, --batch-size, or --num-envs, or fewer models."

_HEADS = (NetworkConfig().hidden, NetworkConfig().head_activation)
PRESET_OPTIONS = ("fusion_preset", "rl_preset")
Device = Literal["auto", "cpu", "cuda"]
_ALGORITHMS, _FUSIONS = list(dict.fromkeys([*OFFLINE, *ONLINE])), [*FUSIONS, PIXELS]
_check_algorithm = partial(check_own_or, "--algo", choices=_ALGORITHMS, own="module:Config")
_check_fusion = partial(check_own_or, "--fusion", choices=_FUSIONS, own="module:Class")
Algorithm = Annotated[str, own_or(_ALGORITHMS, "MODULE:CONFIG", _check_algorithm)]
FusionName = Annotated[str, own_or(_FUSIONS, "MODULE:CLASS", _check_fusion)]
if TYPE_CHECKING:
    Preset: TypeAlias = str
    RLPreset: TypeAlias = str
else:
    Preset = literal_type_from_choices(list(PRESETS))
    RLPreset = literal_type_from_choices(list(RL_PRESETS))


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What a run learns from."""

    protocol: Text = ""
    """Protocol of the game."""


@dataclasses.dataclass(frozen=True)
class StoredDataOptions(DataOptions):
    """Which stored data a run learns from."""

    protocol: Text = ""
    """Protocol of the data, if the store has data of the game under several."""
    encoded_only: Switch = False
    """Leave out segments that not all of the models have encoded yet."""


@dataclasses.dataclass(frozen=True)
class PlayOptions(DataOptions):
    """How the game is played, and whether it is recorded."""

    protocol: Text = ""
    """classic or v5. If not given: classic, or with --init that run's protocol."""
    max_episode_steps: int = 27_000
    """Steps after which an episode is truncated."""
    record: Switch = False
    """Store what is played, with its embeddings."""
    parameters: int = 0
    """With --fusion nature: approximate number of parameters, without the LSTM of --recurrent; 0 for CleanRL's widths."""


@dataclasses.dataclass(frozen=True)
class LiveOptions:
    """How models run while games are played."""

    engine: Engine = "auto"
    """Inference engine; auto uses the one that filled the store, if it is available here."""
    weights: Pairs = ()
    """Weights files of models that the store does not have, or whose files have moved."""
    threads: Annotated[OptionalInt, COUNT] = None
    """Number of cores that run models in parallel. If not given: all that this process may use; in a bench, one."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class OnlineLiveOptions(LiveOptions):
    """How models run while games are played."""

    encoder: Text = ""
    """tcp://HOST:PORT of a Dask scheduler whose workers embed frames that the store lacks."""
    output: Text = ""
    """Output of models that the store does not have yet; that of 'wsa encode' if not given."""


@dataclasses.dataclass(frozen=True)
class RunModelsOptions(LiveOptions):
    """How the network and the models of a trained run are executed."""

    device: Device = "auto"
    """Where the network and the models run."""


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Start from a trained run."""

    init: Text = ""
    """Folder of a run; start from its final network, models, and network options."""
    add: Names = ()
    """With --init: models to add, with fresh adapters."""
    drop: Names = ()
    """With --init: models to drop."""


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Where the run is stored and tracked, and what it continues."""

    run_dir: LocalPath = ""
    """Folder of the run; runs/GAME__EXP_NAME__SEED__TIME if not given. An existing run continues."""
    exp_name: FileName = ""
    """Part of the run's name; the name of the fusion if not given."""
    resume: Text = ""
    """Folder of a run to continue unchanged; you can change only --store and options for how it runs."""
    trust: Names = ()
    """Your own fusion or algorithm, as module:name, that the run of --resume or --init names."""
    track: Switch = False
    """Also send metrics and options to Weights & Biases; with WANDB_MODE=offline, they stay on this machine."""
    wandb_project_name: str = "wsa"
    """With --track: the project."""
    wandb_entity: Text = ""
    """With --track: the team; yours if not given."""


@dataclasses.dataclass(frozen=True)
class MethodOptions:
    """The fusion's context, decoders, the authors' settings, and the number of parameters."""

    context: Text = ""
    """Context of WSA's scorer: a model's embedding of the newest frame, or 'mean' of the fused models.
    If not given: mean; or ae, if --models is not given either and ae is among the models taken."""
    decode: Names = ()
    """Models whose stored code the network decodes with their own frozen decoder: vos, into 20 masks of 84 x 84."""
    fusion_preset: Preset = "default"
    """Fusion options as in the authors' thesis, or as in their published code."""
    rl_preset: RLPreset = "default"
    """Defaults for algorithm and heads as in the authors' thesis (PPO, DQN) or published code (recurrent PPO).
    Options that you give override them."""
    match_parameters: Annotated[int, OPTIONAL_COUNT] = 0
    """Choose the width that brings the network and its head closest to this many trainable parameters.
    The width is --fusion-size; for cnn and mix, --fusion-channels; for lin and res, --hidden. 0 keeps the width as given."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class Training(StoreOptions):
    """Options that all runs of a bench share."""

    online: Switch = False
    """Train while the agent plays, with --algo ppo or dqn."""
    algo: Algorithm = "cql"
    """Offline cql, dqn, bc; online ppo, dqn."""
    method: MethodOptions = MethodOptions()
    data: DataOptions = StoredDataOptions()
    network: Annotated[FrameStack, arg(name="models and fusion")] = NetworkConfig()
    algorithm: AlgorithmConfig = CQLConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    live: Annotated[LiveOptions, arg(name="live models")] = LiveOptions()


@dataclasses.dataclass(frozen=True)
class Choice:
    """Options in which the runs of a bench differ."""

    game: Game = "Seaquest"
    """ALE game."""
    models: Names = ()
    """Aliases or keys; if not given, palette and objects, or else all that have encoded the game."""
    fusion: FusionName = "wsa"
    """The paper's seven fusions, controls, or your own; nature: pixels, no fusion."""
    seed: Annotated[int, SEED] = 1
    """Seed for initialization and sampling."""


@dataclasses.dataclass(frozen=True)
class RunRequest(Training, Choice):
    """The options that define a run."""

    start: Annotated[WarmStart, arg(name="warm start")] = WarmStart()

    @property
    def network_config(self) -> NetworkConfig:
        """Configuration of the network, with the fusion that `fusion` names."""
        if not isinstance(self.network, NetworkConfig):
            return pixel_network(self.network.frame_stack)
        fusion = msgspec.structs.replace(self.network.fusion, name=self.fusion)
        return msgspec.structs.replace(self.network, fusion=fusion)


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
    """Where and how networks are trained."""

    device: Device = "auto"
    """Where to train."""
    compile: Switch = False
    """Use torch.compile: takes minutes at the start, then makes updates faster."""


@dataclasses.dataclass(frozen=True)
class LearnOptions(RunRequest):
    """Options of `wsa learn`."""

    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be done, then stop."""
    output: OutputOptions = OutputOptions()
    compute: ComputeOptions = ComputeOptions()


@dataclasses.dataclass(frozen=True)
class EvalPlayOptions:
    """How the games are played."""

    epsilon: Annotated[float, SHARE] = EPSILON
    """Probability of a random action; otherwise, the action with the highest value or probability."""
    seed: Annotated[int, SEED] = EVAL_SEED
    """Environment i has the seed SEED + i; separate from training's."""
    num_envs: Annotated[int, COUNT] = NUM_ENVS
    """Number of parallel environments."""
    again: Switch = False
    """Play even if the same games were played before; otherwise, print their result again."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class EvalRunOptions:
    """What is read from the run, and where the results go."""

    checkpoint: Literal["final", "best"] = "final"
    """The latest network, or the one with the best validation score (learn --save-best)."""
    out: LocalPath = ""
    """Folder for the results, for a read-only run; the run's own if not given."""
    trust: Names = ()
    """Your own fusion or algorithm, as module:name, that the run names."""


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Options of `wsa eval`."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder of a run that 'wsa learn' made."""
    episodes: Annotated[int, COUNT] = EPISODES
    """Full games; a random policy plays as many."""
    video: Switch = False
    """Record the first environment's games, with fusion weights."""
    without: Names = ()
    """Models to leave out. They do not run; the fusion, and a mean as context, use only the others."""
    only: Names = ()
    """Models to keep; all others are left out."""
    variant: Annotated[Text, arg(metavar="SPEC")] = ""
    """Change the game, such as mode=12+noise=0.1 or look:invert; see docs/howto/variants.md."""
    store: Text = ""
    """Location of the run's store, if it has moved. WSA_STORE is used only if that store is gone."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print how many games would be played, then stop."""
    json: Switch = False
    """Print the result as JSON."""
    play: EvalPlayOptions = EvalPlayOptions()
    run_options: Annotated[EvalRunOptions, arg(name="run")] = EvalRunOptions()
    live: Annotated[RunModelsOptions, arg(name="live models")] = RunModelsOptions()

    def __post_init__(self) -> None:
        check_ranges(self)


def learn_options(arguments: Sequence[str]) -> LearnOptions:
    """Return the options that a command line may set, with their defaults.

    Raises:
        UsageError: If an option belongs to another algorithm, or to another kind of run.
    """
    if _given(arguments, "resume"):
        _check_resumed(arguments)
        return LearnOptions(store="", live=OnlineLiveOptions())
    fusions = values_of(arguments, "fusion", "wsa")
    return LearnOptions(**training_defaults(arguments, "--fusion", fusions))


# Options that may go with --resume: where things are and how they run may change.
_OF_RESUMED = {
    "resume",
    "store",
    "json",
    "help",
    "trust",
    "dry_run",
    "engine",
    "weights",
    "threads",
    "encoder",
} | {field.name for field in dataclasses.fields(ComputeOptions)}


def _check_resumed(arguments: Sequence[str]) -> None:
    """Reject options that a resumed run would ignore.

    Raises:
        UsageError: If there is one.
    """
    for field in _fields(arguments):
        if field not in _OF_RESUMED:
            raise UsageError(
                f"--{field.replace('_', '-')} cannot be given with --resume: the run continues "
                "as it was started. Leave it out. To train longer, repeat the command in the run's "
                "command.txt with --run-dir and more --updates or --total-timesteps."
            )


def training_defaults(
    arguments: Sequence[str], flag: str, fusions: Sequence[str]
) -> dict[str, Any]:
    """Return the defaults of `Training` for the algorithm and fusions that a command line names.

    Args:
        arguments: Words of the command line.
        flag: Flag that names the fusions.
        fusions: Fusions that it names.

    Raises:
        UsageError: If an option belongs to another algorithm, or to another kind of run.
    """
    helping = bool({"-h", "--help"} & set(arguments))
    online = _given(arguments, "online")
    (algo,) = values_of(arguments, "algo", "")[-1:]
    if helping and (algo in ONLINE.keys() - OFFLINE.keys() or set(fusions) == {PIXELS}):
        online = True
    if online and not algo and not helping:
        raise UsageError("--online needs --algo ppo or --algo dqn.")
    algo = algo or ("ppo" if online else "cql")
    (preset,) = values_of(arguments, "fusion-preset", "default")[-1:]
    (rl_preset,) = values_of(arguments, "rl-preset", "default")[-1:]
    pixels = set(fusions) == {PIXELS}
    known: Mapping[str, type[AlgorithmConfig]] = algorithms(online)
    if user_code.is_name(algo):
        known = {algo: own_algorithm(algo, online)}
    if not helping and algo not in known and algo in {**OFFLINE, **ONLINE}:
        if online:
            raise UsageError(f"--online --algo {algo}: choose from {', '.join(ONLINE)}.")
        raise UsageError(
            f"--algo {algo} needs --online. Add it, or choose from {', '.join(OFFLINE)}."
        )
    if PIXELS in fusions and not online and not helping:
        raise UsageError(
            f"{flag} {PIXELS} needs --online, since stored data has no pixels to learn from. Add it, "
            "or choose another."
        )
    config = known.get(algo, CQLConfig)  # Any other name is rejected when the options are parsed.
    presets = (
        preset if preset in PRESETS else "default",  # Another is rejected when options are parsed.
        rl_preset if rl_preset in RL_PRESETS and not helping else "default",
    )
    # A grid has several fusions. Each takes from WSA's defaults what it has.
    name = fusions[0] if flag == "--fusion" else "wsa"
    defaults = preset_defaults(config, *presets, fusion=PIXELS if pixels else name)
    if online:
        defaults |= {"data": PlayOptions(), "live": OnlineLiveOptions()}
    for field in () if helping else _fields(arguments):
        for why in _idle(field, config, algo, online, flag if pixels else ""):
            raise UsageError(f"--{field.replace('_', '-')} {why}")
        switch = _SWITCH_OF.get(field)
        if switch and not pixels and not is_read(switch, fusions):
            raise UsageError(
                f"--{field.replace('_', '-')} has no effect with {flag} {','.join(fusions)}. Leave "
                "it out."
            )
    return defaults


def preset_defaults(
    algorithm: type[AlgorithmConfig], fusion_preset: str, rl_preset: str, fusion: str
) -> dict[str, Any]:
    """Return the defaults of an algorithm and its network under the two presets.

    Raises:
        UsageError: If the authors did not train with this algorithm.
    """
    rl = rl_defaults(rl_preset, algorithm)
    network: FrameStack
    if fusion == PIXELS:
        stack = {k: v for k, v in rl.network.items() if k in FrameStack.__struct_fields__}
        network = PixelNetworkConfig(**stack)
    else:
        switches = preset_switches(fusion_preset, fusion) | rl.fusion
        network = NetworkConfig(FusionConfig(**switches), **rl.network)
    return {"algorithm": algorithm(**rl.learner), "network": network}


def own_algorithm(name: str, online: bool) -> type[AlgorithmConfig]:
    """Return the hyperparameter class of a user's own algorithm, typed as `--algo module:Config`.

    Raises:
        UsageError: If it is for the other kind of run.
        MissingError: If it cannot be imported.
        ConflictError: If it is not such a class, or its tag is not its name.
    """
    user_code.type_in([name])
    config = load_algorithm(name)
    if issubclass(config, OnlineConfig) != online:
        raise UsageError(
            f"--algo {name} learns {'from stored data' if online else 'online'}. "
            f"{'Leave out' if online else 'Add'} --online."
        )
    return config


def check_combination(training: Training) -> None:
    """Reject options that would have no effect together with the others.

    Raises:
        UsageError: If there is one.
    """
    _check_algorithm(training.algo)
    playing = training.online or training.evaluation.eval_frequency
    for field in dataclasses.fields(training.live):
        if not playing and getattr(training.live, field.name) != field.default:
            raise UsageError(
                f"--{field.name} is for models that run while games are played, and this run plays "
                "none. Leave it out, or add --online or --eval-frequency."
            )
    evaluation = training.evaluation
    if evaluation != EvaluationConfig() and not evaluation.eval_frequency:
        raise UsageError(
            "--eval-episodes is an option of --eval-frequency. Leave it out, or add that."
        )
    algorithm: Any = training.algorithm
    if getattr(algorithm, "vf_clip_coef", 0) and not algorithm.clip_vloss:
        raise UsageError(
            "--vf-clip-coef has no effect without --clip-vloss. Add that, or leave it out."
        )
    if getattr(training.algorithm, "recurrent", False) and (
        isinstance(training.network, NetworkConfig)
        and (training.network.hidden, training.network.head_activation) != _HEADS
    ):
        raise UsageError(
            "--hidden and --head-activation have no meaning with --recurrent, whose heads are one "
            "linear map each. Leave them out, and --rl-preset thesis, whose heads are not."
        )


def flat_options(training: Training) -> dict[str, Any]:
    """Return the options that define a run, by flag; without where and how its models run."""
    found: dict[str, Any] = {
        "online": training.online,
        "algo": training.algo,
        **dataclasses.asdict(training.method),
        **dataclasses.asdict(training.data),
    }
    if isinstance(training.live, OnlineLiveOptions):
        found["output"] = training.live.output
    network = network_options(training.network)
    network.pop("fusion", None)  # Not shared by the runs of a grid.
    for part in (training.algorithm, training.evaluation):
        found |= {name: getattr(part, name) for name in part.__struct_fields__}
    return found | network


def network_options(network: FrameStack) -> dict[str, Any]:
    """Return the options of a network, by flag."""
    found = {name: getattr(network, name) for name in network.__struct_fields__}
    if isinstance(network, NetworkConfig):
        fusion = network.fusion
        found |= {_FLAGS.get(f, f): getattr(fusion, f) for f in fusion.__struct_fields__}
    return found


def _idle(
    field: str, config: type[AlgorithmConfig], algo: str, online: bool, pixels: str
) -> Iterator[str]:
    """Yield the reason why an option would have no effect on a run, if there is one.

    Args:
        field: Name of the option.
        config, algo, online: The algorithm.
        pixels: Flag that chose a network on pixels; "" for another network.
    """
    takers = [] if field in config.__struct_fields__ else list(with_option(field))
    here = [f"--algo {name}" for name, other in takers if other == online]
    there = [f"--algo {name}" for name, other in takers if other != online]
    if takers:
        where = " and ".join(here or there)
        if not here:
            where += " without --online" if online else " with --online"
        this = f"--algo {algo} {'with' if online else 'without'} --online"
        yield f"is an option of {where}; this run is {this}. Leave it out."
    if not online and field in _names(PlayOptions, OnlineLiveOptions) - _names(
        StoredDataOptions, LiveOptions
    ):
        yield "is an option of --online. Leave it out, or add --online."
    if online and field in _names(StoredDataOptions) - _names(PlayOptions):
        yield "is for runs that learn from stored data. Leave it out, or leave out --online."
    if pixels and field in _SWITCHES:
        yield f"is an option of fusions; {pixels} {PIXELS} has no models. Leave it out."


def _names(*kinds: type) -> set[str]:
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


_FLAGS = {
    "name": "fusion",
    "size": "fusion_size",
    "layers": "fusion_layers",
    "channels": "fusion_channels",
    "init": "weight_init",
}
_SWITCH_OF = {_FLAGS.get(f, f): f for f in FusionConfig.__struct_fields__ if f != "name"}
# Options of a fusion and of the heads above it, which a network on pixels does not have.
_SWITCHES = {
    "decode",
    "fusion_preset",
    "normalize",
    "clip_embeddings",
    "hidden",
    "head_activation",
    "weight_entropy_coef",
    "load_balance_coef",
} | _SWITCH_OF.keys()


def _fields(arguments: Sequence[str]) -> list[str]:
    """Return the names of the options on a command line, spelled as fields."""
    flags = [word[2:].split("=")[0] for word in arguments if word.startswith("--")]
    return [flag.replace("-", "_").removeprefix("no_") for flag in flags]


def _given(arguments: Sequence[str], flag: str) -> bool:
    return any(word.split("=")[0] == f"--{flag}" for word in arguments)


def values_of(arguments: Sequence[str], flag: str, default: str) -> list[str]:
    """Return the comma-separated values of a flag on a command line; the last flag counts."""
    found = default
    for at, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.startswith("--") and name[2:].replace("_", "-") == flag:
            found = value if equals else "".join(arguments[at + 1 : at + 2])
    return found.split(",")
