"""A user's module behind the interface of a timm model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsa.encode.models.custom import UserModel, find, reported
from wsa.store.common import user_code
from wsa.store.common.errors import ConflictError
from wsa.store.objects.model_spec import Preprocessing

# Other types have no digest.
_NUMPY_HAS = (torch.float16, torch.float32, torch.float64)


class UserNetwork(nn.Module):
    """A user's module behind the interface of a timm model, which the rest of wsa expects.

    Attributes:
        preprocessing, window, license: The values that the user declared.
        num_prefix_tokens, cls_token: The attributes of the same name of a timm model.
    """

    def __init__(self, declared: UserModel) -> None:
        super().__init__()
        self.module = declared.module
        self.preprocessing: Preprocessing = declared.input.preprocessing()
        self.window: int = declared.window
        self.license = declared.license
        self.num_prefix_tokens = declared.prefix_tokens
        self.cls_token = True if declared.prefix_tokens else None

    def forward_features(self, pixels: Tensor) -> Any:
        """Return the module's output."""
        return self.module(pixels)

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        """Return features (B, D), or the mean (B, C) of a map or of patch tokens."""
        if features.ndim == 4:
            return features.mean(dim=(2, 3))
        if features.ndim == 3:
            return features[:, self.num_prefix_tokens :].mean(dim=1)
        return features


def load(name: str) -> UserNetwork:
    """Import a user's module, call its callable, and freeze the returned model.

    Args:
        name: `module:callable`, typed by the user of this process.

    Raises:
        MissingError: If this machine has no such module or callable.
        ConflictError: If the callable raised, or returned anything but a valid `UserModel`.
    """
    make = find(name)
    with user_code.current_folder(), reported(name):  # The callable may import more modules.
        declared = make()
    try:
        network = UserNetwork(_checked(declared))
    except (TypeError, ValueError) as error:
        raise ConflictError(
            "other-weights", f"{name}: {error}. See docs/howto/own-model.md."
        ) from None
    return network.eval().requires_grad_(False)


def _checked(declared: Any) -> UserModel:
    """Return a valid `UserModel`; raise TypeError or ValueError for anything else."""
    if not isinstance(declared, UserModel):
        raise TypeError(
            f"it returned {type(declared).__name__}, not wsa.encode.models.custom.UserModel"
        )
    if not isinstance(declared.module, nn.Module):
        raise TypeError(f"its module is {type(declared.module).__name__}, not torch.nn.Module")
    if declared.window < 1 or declared.prefix_tokens < 0:
        raise ValueError("window must be 1 or more, and prefix_tokens 0 or more")
    for name, tensor in declared.module.state_dict().items():
        if not isinstance(tensor, Tensor):  # From `get_extra_state`.
            raise TypeError(f"its state {name} is {type(tensor).__name__}, not a tensor")
        if tensor.is_complex():
            raise ValueError("its weights are complex")
        if tensor.device != torch.device("cpu"):
            raise ValueError("its weights must be on the CPU; wsa moves them where they run")
        if tensor.is_floating_point() and tensor.dtype not in _NUMPY_HAS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"its weights {name} are {kind}; convert them with module.float()")
    return declared
