"""The paper's own encoders as frozen models: `ae`, `sr`, `oke`, `okk`, `vos`.

They are models like any other, with the network, the input and the window that wsa itself says.
Their weights are those that come with wsa (`weights/`, made as docs/howto/pretrain.md says), or those
of a file that `wsa pretrain` made. What is kept of them by default is everything: maps as
they are, and of `vos` the code that its masks are decoded from, `--output map` for the masks
themselves. `grid:N` and reductions are there as for any model, where they are asked for.
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wsa.encode.models.custom import UserModel, UserNetwork
from wsa.encode.models.paper.base import Frozen
from wsa.store.common.errors import ConflictError, UsageError

PREFIX = "wsa:"
LICENCE = "Apache-2.0, trained by wsa"
CONTEXT = "ae"  # Gives the context of the paper's fusion, and is not fused.

# The module and class of each network, and what is kept of what it gives.
NETWORKS = {
    "ae": ("autoencoder:ContextEncoder", "map"),
    "sr": ("marginals:MarginalEncoder", "pooled"),
    "oke": ("transporter:FeatureEncoder", "map"),
    "okk": ("transporter:KeypointEncoder", "map"),
    "vos": ("segmentation:ObjectMasks", "pooled"),
}


# Other networks that had an alias, or may be trained for it: of a file, the one that fits is built.
OTHER_NETWORKS = {"sr": ("stdim:StateEncoder",)}


class PaperNetwork(UserNetwork):
    """One of the paper's encoders, with the face of timm's."""

    def decode(self, features: Tensor) -> Tensor | None:
        """The maps (B, C, H, W) that a code (B, D) stands for; None where it stands for itself."""
        masks = getattr(self.module, "masks", None)
        return None if masks is None else masks(features)


def is_paper_model(timm_name: str) -> bool:
    """Whether a request's or a spec's architecture is spelled as one of these."""
    return timm_name.startswith(PREFIX)


def network(alias: str, seed: int = 0, where: str = "") -> Frozen:
    """The network of an alias, with random weights that are the same every time for a seed.

    Args:
        alias: A key of `NETWORKS`.
        seed: Of the weights.
        where: Its module and class, of an alias that has had several; the newest if not given.
    """
    module, _, name = (where or NETWORKS[alias][0]).partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # Not the GPUs', which may be training.
        made: Frozen = getattr(importlib.import_module(f"wsa.encode.models.paper.{module}"), name)()
    return made


def networks(alias: str) -> tuple[str, ...]:
    """Module and class of each network that has an alias, as `network` takes them; its own first."""
    return NETWORKS[alias][0], *OTHER_NETWORKS.get(alias, ())


def shipped(alias: str) -> Path:
    """The weights that come with wsa."""
    return Path(__file__).with_name("weights") / f"{alias}.safetensors"


def build(timm_name: str, source: str, seed: int = 0, where: str = "") -> PaperNetwork:
    """Build one of these, frozen, on the CPU.

    Args:
        timm_name: `wsa:<alias>`, out of a request or a store.
        source: `random`, `file:<path>`, or `package` for the weights that come with wsa.
        seed: Seed for random weights; a store has those of seed 0 only.
        where: As `network` has it; a file says itself which network it is of.

    Raises:
        UsageError: There is no such encoder.
        ConflictError: The file does not hold this network's weights.
    """
    alias = timm_name.removeprefix(PREFIX)
    if alias not in NETWORKS:
        raise UsageError("unknown-model", f"wsa has no encoder {alias!r} of its own. Update wsa.")
    made = network(alias, seed, where)
    if source == "package":
        _load(made, alias, shipped(alias))
    elif source.startswith("file:"):
        made = _of_file(alias, Path(source.removeprefix("file:")))
    declared = UserModel(made, made.sees, made.window, licence=licence(source))
    return PaperNetwork(declared).eval().requires_grad_(False)


def licence(source: str) -> str:
    """Licence of the weights of one of these."""
    stated = {"random": "none: random weights", "package": LICENCE}
    return stated.get(source, "as stated by its trainer")


def open_decoder(alias: str, file: Path | None = None) -> nn.Module:
    """What turns a stored code into the maps it stands for, at use.

    Args:
        alias: `vos`.
        file: The weights file that the codes were made with; those that come with wsa if none.

    Returns:
        A frozen module from codes (B, 512) to masks (B, 20, 84, 84), float32.

    Raises:
        ConflictError: The file does not hold this network's weights.
    """
    made: Any = build(PREFIX + alias, f"file:{file or shipped(alias)}").module
    decoder: nn.Module = made.decoder
    return decoder


def _of_file(alias: str, file: Path) -> Frozen:
    """The network whose weights a file holds: the alias's own, or another that it stands for.

    Raises:
        ConflictError: The file holds none of them.
    """
    for where in OTHER_NETWORKS.get(alias, ()):
        made = network(alias, where=where)
        with contextlib.suppress(ConflictError):
            _load(made, alias, file)
            return made
    made = network(alias)
    _load(made, alias, file)
    return made


def _load(made: nn.Module, alias: str, file: Path) -> None:
    """Load a file that holds exactly this network's tensors, in single or half precision."""
    try:
        if file.suffix != ".safetensors":
            raise ValueError("it is no .safetensors file")
        tensors = {n: t.float() for n, t in safetensors.torch.load_file(file).items()}
        # Batch norm's count of training batches changes no number, and is not in the file.
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
