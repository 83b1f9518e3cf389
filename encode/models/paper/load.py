"""Load the paper's own encoders as frozen models: `ae`, `sr`, `oke`, `okk`, `vos`.

They are models like any other; wsa defines their network, input and window. Their weights come with
wsa (`weights/`, made as docs/howto/pretrain.md says) or from a file that `wsa pretrain` wrote. By
default their output is kept whole: maps unreduced, and for `vos` the code from which its masks are
decoded (`--output map` gives the masks). `grid:N` and reductions work as for any model.
"""

from __future__ import annotations

import contextlib
import pkgutil
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wsa.encode.models.custom import UserModel
from wsa.encode.models.paper.base import Frozen
from wsa.encode.models.paper.catalog import NETWORKS, OTHER_NETWORKS, PREFIX, license
from wsa.encode.models.user_network import UserNetwork
from wsa.store.common.errors import ConflictError, UsageError


class PaperNetwork(UserNetwork):
    """One of the paper's encoders behind the interface of a timm model."""

    def decode(self, features: Tensor) -> Tensor | None:
        """Decode codes (B, D) into maps (B, C, H, W); None for an encoder without a decoder."""
        masks = getattr(self.module, "masks", None)
        return None if masks is None else masks(features)


def network(alias: str, seed: int = 0, where: str = "") -> Frozen:
    """Create the network of an alias with random weights, which the seed alone determines.

    Args:
        alias: A key of `NETWORKS`.
        seed: Seed of the weights.
        where: Module and class, for an alias that has several; the alias's own if empty.
    """
    make = pkgutil.resolve_name(f"wsa.encode.models.paper.{where or NETWORKS[alias][0]}")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs, which may be training.
        torch.default_generator.manual_seed(seed)
        made: Frozen = make()
    return made


def networks(alias: str) -> tuple[str, ...]:
    """Return the `where` of each network under an alias, for `network`; the alias's own first."""
    return NETWORKS[alias][0], *OTHER_NETWORKS.get(alias, ())


def shipped(alias: str) -> Path:
    """Return the path of the weights that come with wsa."""
    return Path(__file__).with_name("weights") / f"{alias}.safetensors"


def build(timm_name: str, source: str, seed: int = 0, where: str = "") -> PaperNetwork:
    """Build one of the paper's encoders, frozen, on the CPU.

    Args:
        timm_name: `wsa:<alias>`, from a request or a store.
        source: `random`, `file:<path>`, or `package` for the weights that come with wsa.
        seed: Seed of random weights; models in a store always have seed 0.
        where: Module and class, as for `network`. With a file its tensors decide instead.

    Raises:
        UsageError: If there is no such encoder.
        ConflictError: If the file does not hold the weights of this encoder.
    """
    alias = timm_name.removeprefix(PREFIX)
    if alias not in NETWORKS:
        raise UsageError(
            f"wsa has no encoder {alias!r} of its own. Update wsa.", kind="unknown-model"
        )
    made = network(alias, seed, where)
    if source == "package":
        _load(made, alias, shipped(alias))
    elif source.startswith("file:"):
        made = _build_from_file(alias, Path(source.removeprefix("file:")))
    declared = UserModel(made, made.sees, made.window, license=license(source))
    return PaperNetwork(declared).eval().requires_grad_(False)


def open_decoder(alias: str, file: Path | None = None) -> nn.Module:
    """Return the decoder from stored codes to maps.

    Args:
        alias: `vos`.
        file: Weights file that the codes were made with; None for the weights that come with wsa.

    Returns:
        A frozen module from codes (B, 512) to masks (B, 20, 84, 84), float32.

    Raises:
        ConflictError: If the file does not hold the weights of this encoder.
    """
    built = build(PREFIX + alias, f"file:{file or shipped(alias)}")
    return built.get_submodule("module.decoder")


def _build_from_file(alias: str, file: Path) -> Frozen:
    """Build the network whose weights a file holds, among those under the alias."""
    for where in OTHER_NETWORKS.get(alias, ()):
        made = network(alias, where=where)
        with contextlib.suppress(ConflictError):
            _load(made, alias, file)
            return made
    made = network(alias)
    _load(made, alias, file)
    return made


def _load(made: nn.Module, alias: str, file: Path) -> None:
    """Load a file with exactly this network's tensors, in single or half precision."""
    try:
        if file.suffix != ".safetensors":
            raise ValueError("it is not a .safetensors file")
        tensors = {n: t.float() for n, t in safetensors.torch.load_file(file).items()}
        # The file lacks batch norm's counter of training batches, which inference does not use.
        for name, tensor in made.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensors[name] = tensor
        made.load_state_dict(tensors)
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        why = " ".join(str(error).split())
        raise ConflictError(
            "other-weights",
            f"{file} does not hold the weights of {alias} ({why[:200]}). Give the {alias}"
            ".safetensors that 'wsa pretrain' wrote.",
        ) from None
