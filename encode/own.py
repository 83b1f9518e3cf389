"""The paper's own encoders as frozen models: `ae`, `sr`, `oke`, `okk`, `vos`.

They are models like any other, with the network, the input and the window that wsa itself says, and
weights from a file that `wsa pretrain` made. What is kept of them by default is everything: maps as
they are, and of `vos` the code that its masks are decoded from, `--output map` for the masks
themselves. `grid:N` and reductions are there as for any model, where they are asked for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wsa.encode.trainee import Frozen
from wsa.encode.user_model import UserModel, UserNetwork
from wsa.store.errors import ConflictError, MissingError, UsageError

PREFIX = "wsa:"
# Where weights come from if no file is given: from nowhere.
UNTRAINED = "pretrain"

# The trainee that each is a part of, the module and class of its network, and what is kept of it.
NETWORKS = {
    "ae": ("ae", "autoencoder:ContextEncoder", "map"),
    "sr": ("stdim", "stdim:StateEncoder", "pooled"),
    "oke": ("transporter", "transporter:FeatureEncoder", "map"),
    "okk": ("transporter", "transporter:KeypointEncoder", "map"),
    "vos": ("segmentation", "segmentation:ObjectMasks", "pooled"),
}


class OwnNetwork(UserNetwork):
    """One of the paper's encoders, with the face of timm's."""

    def decode(self, features: Tensor) -> Tensor | None:
        """The maps (B, C, H, W) that a code (B, D) stands for; None where it stands for itself."""
        masks = getattr(self.module, "masks", None)
        return None if masks is None else masks(features)


def is_own(timm_name: str) -> bool:
    """Whether a request's or a spec's architecture is spelled as one of these."""
    return timm_name.startswith(PREFIX)


def network(alias: str) -> Frozen:
    """The network of an alias, with random weights that are the same every time."""
    module, _, name = NETWORKS[alias][1].partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Frozen = getattr(importlib.import_module(f"wsa.encode.{module}"), name)()
    return made


def build(timm_name: str, source: str) -> OwnNetwork:
    """Build one of these, frozen, on the CPU.

    Args:
        timm_name: `wsa:<alias>`, out of a request or a store.
        source: `random`, `file:<path>`, or `pretrain` where no weights were given.

    Raises:
        UsageError: There is no such encoder.
        MissingError: No weights were given.
        ConflictError: The file does not hold this network's weights.
    """
    alias = timm_name.removeprefix(PREFIX)
    if alias not in NETWORKS:
        raise UsageError("unknown-model", f"wsa has no encoder {alias!r} of its own. Update wsa.")
    if source == UNTRAINED:
        trainee = NETWORKS[alias][0]
        raise MissingError(
            "no-weights",
            f"{alias} has no weights of its own: it is trained on the games that it is for. Train "
            f"it, wsa pretrain --encoder {trainee} --games Pong --run-dir runs/pong, and give what "
            f"comes of it, --weights {alias}=runs/pong/{trainee}/{alias}.safetensors; or ask for "
            f"untrained weights as {alias}:random.",
        )
    made = network(alias)
    if source.startswith("file:"):
        _load(made, alias, Path(source.removeprefix("file:")))
    licence = "none: random weights" if source == "random" else "as whoever trained it says"
    declared = UserModel(made, made.sees, made.window, licence=licence)
    return OwnNetwork(declared).eval().requires_grad_(False)


def open_decoder(alias: str, file: Path) -> nn.Module:
    """What turns a stored code into the maps it stands for, at use.

    Args:
        alias: `vos`.
        file: The weights file that the codes were made with.

    Returns:
        A frozen module from codes (B, 512) to masks (B, 20, 84, 84), float32.

    Raises:
        ConflictError: The file does not hold this network's weights.
    """
    made: Any = build(PREFIX + alias, f"file:{file}").module
    decoder: nn.Module = made.decoder
    return decoder


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
