"""Options of the commands that encode.

The dataclasses are the command line: tyro derives flags, types, defaults and help from them. This
module imports nothing heavy, so that `--help` is quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wsa.encode.jobs.slurm import SlurmOptions
from wsa.store.common import names
from wsa.store.common.errors import UsageError
from wsa.store.common.ranges import COUNT, OPTIONAL_COUNT, Range, check_ranges
from wsa.store.configs import (
    Games,
    LocalPath,
    Names,
    OptionalInt,
    Pairs,
    StoreOptions,
    Switch,
    Text,
)

Engine = Literal["auto", "torch", "compile", "openvino"]


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """With check: how the model runs, and what is kept of its output."""

    output: Text = ""
    """Output to check: pooled (the default), cls, grid:N, or map. palette and objects have their own."""
    geometry: Literal["squash", "crop", "pad"] = "squash"
    """How a screen becomes the model's input."""
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32"
    """Precision of the arithmetic."""
    weights: Pairs = ()
    """Weights files and modules, as 'wsa encode --weights' takes them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""


@dataclasses.dataclass(frozen=True)
class ModelsOptions(StoreOptions):
    """Options of `wsa models`."""

    action: Positional[Literal["list", "check"]] = "list"
    """list: show the models; check: test one model before you fill a store with it."""
    name: Annotated[Positional[Text], arg(metavar="NAME")] = ""
    """The model to check, as 'wsa encode --models' takes it."""
    check: CheckOptions = CheckOptions()


@dataclasses.dataclass(frozen=True)
class Work:
    """What to encode."""

    models: Names = ("palette", "objects")
    """Aliases ('wsa models' lists them), timm:NAME, MODULE:CALLABLE, or keys."""
    game: Games = ()
    """ALE games; all in the store if not given."""


@dataclasses.dataclass(frozen=True)
class EmbeddingOptions:
    """How models run, and what is kept of their output.
    In --models, NAME:random has untrained weights, NAME@OUTPUT has its own output, and mine=timm:NAME has your own weights."""

    output: Text = ""
    """Embedding to keep: pooled, cls, grid:N, or map; reduced with +pca:K, +pca:K@GAME, or +rp:K.
    If not given: grid:7+pca:512; the paper's encoders keep everything; palette and objects have their own."""
    geometry: Literal["squash", "crop", "pad"] = "squash"
    """How a screen becomes the model's input: stretched whole, cropped as by timm, or padded whole."""
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32"
    """Precision of the arithmetic. Less than fp32 is rejected if its error exceeds --max-step-error."""
    engine: Engine = "auto"
    """Inference engine: auto, the fastest accurate one; PyTorch; compiled PyTorch; or OpenVINO."""
    max_step_error: Annotated[float, Range(0)] = 0.1
    """Largest allowed error, as a share of the change from one step of a game to the next."""
    weights: Pairs = ()
    """Weights files (.safetensors, .pth, .pt) for machines without a hub, such as vit=path.safetensors.
    For your own models in a store: their modules, such as mine=module:callable."""
    license: Annotated[Pairs, arg(metavar="ALIAS=LICENSE,...")] = ()
    """License of your own weights, such as mine=MIT."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """Which processes do the work."""

    scheduler: str = "local"
    """local: worker processes on this machine; inproc: this process; slurm; or tcp://HOST:PORT of a Dask scheduler."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto uses a GPU if a worker has one."""
    tries: Annotated[int, COUNT] = 3
    """Number of attempts before a segment is skipped."""
    report: LocalPath = ""
    """Folder for the report (summary.md and run.json); a new one in WSA_CACHE if not given."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class ServiceOptions:
    """With --watch: a service that keeps the store encoded."""

    poll: Annotated[float, Range(0.1, 86400)] = 30.0
    """Seconds between checks of the store while there is nothing to do."""
    beat: Annotated[float, Range(0.1, 600)] = 15.0
    """Seconds between heartbeats, which 'wsa status' shows."""
    metrics_port: Annotated[OptionalInt, Range(0, 65535)] = None
    """Serve the page of 'wsa status --serve', and counters for Prometheus, on this port."""
    metrics_host: str = "127.0.0.1"
    """Address for --metrics-port."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class EncodeOptions(StoreOptions, Work):
    """Options of `wsa encode`."""

    workers: Annotated[int, OPTIONAL_COUNT] = 0
    """Number of local worker processes, or of SLURM jobs; 0 for one per core or GPU."""
    watch: Switch = False
    """Keep running: encode new frames as they arrive. It even waits for the store to exist."""
    dry_run: Annotated[Switch, arg(aliases=["-n"])] = False
    """Print what would be done, how large it would be, and how long it would take, then stop."""
    embedding: Annotated[EmbeddingOptions, arg(name="model")] = EmbeddingOptions()
    worker: WorkerOptions = WorkerOptions()
    service: ServiceOptions = ServiceOptions()
    slurm: Annotated[SlurmOptions, arg(name="SLURM")] = dataclasses.field(
        default_factory=SlurmOptions
    )


def weights_files(given: Sequence[str]) -> dict[str, str]:
    """Parse the pairs of `--weights` into a dict from alias to file, as `pairs` does."""
    return pairs("--weights", given, "ALIAS=FILE, such as vit=path.safetensors")


def require_used(weights: Mapping[str, str], models: Iterable[str]) -> None:
    """Refuse `--weights` that none of the models uses.

    Args:
        weights: Files by name, as `weights_files` returns them.
        models: Those that take weights: as typed, their aliases, or their keys.

    Raises:
        UsageError: If a name is none of theirs.
    """
    own = [model.partition("@")[0].partition("=")[0] for model in models]
    own = [names.key_alias(name) if names.is_model_key(name) else name for name in own]
    for name in weights.keys() - set(own):
        what = f"Name one of {', '.join(dict.fromkeys(own))}." if own else "Leave it out."
        raise UsageError(f"--weights {name}={weights[name]}: none of the models uses it. {what}")


def pairs(
    flag: str, given: Sequence[str], form: str = "ALIAS=VALUE, such as mine=MIT"
) -> dict[str, str]:
    """Parse an option's pairs into a dict.

    Raises:
        UsageError: If a pair has no '=', or a name has two values.
    """
    parsed: dict[str, str] = {}
    for pair in given:
        name, separator, value = pair.partition("=")
        if not separator:
            raise UsageError(f"{flag} {pair}: write {form}.")
        if parsed.setdefault(name, value) != value:
            raise UsageError(f"{flag} gives {name} twice: {parsed[name]} and {value}. Give one.")
    return parsed


# Options that a model's key fixes.
OF_KEY = ("output", "geometry", "precision")


def refuse(given: object, fields: Iterable[str], why: str) -> None:
    """Refuse options that would change nothing.

    Args:
        given: Options, each with a default in its class.
        fields: Names of the options to refuse.
        why: Reason, for the message.

    Raises:
        UsageError: If one of them differs from its default.
    """
    for field in fields:
        if getattr(given, field) != getattr(type(given), field):
            flag = field.replace("_", "-")
            raise UsageError(f"--{flag} has no effect: {why}. Leave it out.")


@dataclasses.dataclass(frozen=True)
class StatusOptions(StoreOptions):
    """Options of `wsa status`."""

    serve: Annotated[
        tuple[int, ...] | None, Range(0, 65535), arg(metavar="[PORT]", help_behavior_hint="")
    ] = None
    """Serve a live page on this port, or on any free one, until Ctrl-C."""
    host: str = "127.0.0.1"
    """Address for --serve."""
