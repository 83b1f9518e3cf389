"""What users may set when they encode, and the kinds of value that all commands share.

The dataclasses are the command line: tyro makes flags, types, defaults and help of them. Nothing
heavy is imported here, so that help is quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wsa.encode.jobs.slurm import SlurmOptions
from wsa.store.common.errors import UsageError
from wsa.store.common.ranges import COUNT, OPTIONAL_COUNT, Range
from wsa.store.configs import Games, Names, Pairs, StoreOptions

Engine = Literal["auto", "torch", "compile", "openvino"]


@dataclasses.dataclass(frozen=True)
class ModelsOptions(StoreOptions):
    """Options of `wsa models`."""

    action: Positional[Literal["list", "check"]] = "list"
    """list: what there is; check: try one model before a store is filled with it."""
    name: Annotated[Positional[str], arg(metavar="NAME")] = ""
    """The model to check, as 'wsa encode --models' takes it."""
    output: str = ""
    """Output to check: pooled, cls, grid:N or map. If not given, pooled. Palette and objects have their own."""
    geometry: Literal["squash", "crop", "pad"] = "squash"
    """From a screen to the model's input."""
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32"
    """Arithmetic."""
    weights: Pairs = ()
    """Weights files and modules, as 'wsa encode --weights' takes them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""


@dataclasses.dataclass(frozen=True)
class EncodeOptions(SlurmOptions, StoreOptions):
    """Options of `wsa encode`."""

    models: Names = ("palette", "objects")
    """Aliases ('wsa models' lists them; the paper's own, palette and objects come with wsa), timm:NAME, either
    with :random for untrained weights, your own as MODULE:CALLABLE, or keys. mine=timm:NAME gives weights of
    your own a name of your own; NAME@OUTPUT an output of its own to a model."""
    game: Games = ()
    """ALE games; all in the store if none is named."""
    output: str = ""
    """What is kept: pooled, cls, grid:N or map; reduced with +pca:K, +pca:K@GAME or +rp:K. If not given,
    grid:7+pca:512; of the paper's own encoders everything. Palette and objects keep outputs of their own."""
    geometry: Literal["squash", "crop", "pad"] = "squash"
    """From a screen to a model's input: all of it stretched, timm's own crop, or all of it in its aspect."""
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32"
    """Arithmetic. Less than fp32 is refused where it errs by more than --max-step-error."""
    engine: Engine = "auto"
    """What runs models: the fastest that is right, PyTorch, PyTorch compiled, or OpenVINO."""
    max_step_error: Annotated[float, Range(0)] = 0.1
    """Largest error, as a share of what changes from one step of a game to the next."""
    weights: Pairs = ()
    """Weights files (.safetensors, .pth, .pt) for machines without a hub, as vit=path.safetensors; of your
    own models in a store the modules, as mine=module:callable."""
    license: Pairs = ()
    """Licence of weights that you give, as mine=MIT."""
    scheduler: str = "local"
    """local: worker processes here; inproc: this process; slurm; or tcp://HOST:PORT of a Dask scheduler."""
    workers: Annotated[int, OPTIONAL_COUNT] = 0
    """Worker processes of the local scheduler; 0 is one a core, or one a GPU. Jobs of SLURM."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto is the GPU where a worker has one."""
    tries: Annotated[int, COUNT] = 3
    """How often a segment is tried before it is set aside and the rest done."""
    report: str = ""
    """Folder for the report, summary.md and run.json; a new one in WSA_CACHE if not given."""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """Print what would be done, its size and its time, and stop."""
    watch: bool = False
    """Go on for ever: encode what comes, and wait for more. It may wait for the store itself."""
    poll: Annotated[float, Range(0.1, 86400)] = 30.0
    """With --watch: seconds between two looks at the store while there is nothing to do."""
    beat: Annotated[float, Range(0.1, 600)] = 15.0
    """With --watch: seconds between two signs of life, which 'wsa status' shows."""
    metrics_port: Annotated[int, Range(0, 65535)] | None = None
    """With --watch: serve counters for Prometheus on this port."""
    metrics_host: str = "127.0.0.1"
    """Address that --metrics-port is served on."""


def weights_files(given: Sequence[str]) -> dict[str, str]:
    """`--weights` as a dict from alias to file.

    Raises:
        UsageError: A pair has no '='.
    """
    for pair in given:
        if "=" not in pair:
            raise UsageError(
                "bad-option", f"--weights {pair}: write ALIAS=FILE, as vit=path.safetensors."
            )
    return pairs("--weights", given)


def pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    """Pairs of an option as a dict.

    Raises:
        UsageError: A pair has no '='.
    """
    for pair in given:
        if "=" not in pair:
            raise UsageError("bad-option", f"{flag} {pair}: write ALIAS=VALUE, as mine=MIT.")
    return dict(pair.split("=", 1) for pair in given)


@dataclasses.dataclass(frozen=True)
class StatusOptions(StoreOptions):
    """Options of `wsa status`."""
