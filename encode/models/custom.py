"""A user's own model: any callable of any module, named as `module:callable`.

The callable takes nothing and returns a `UserModel`: a frozen network and what it wants to see.
Importing a module runs it, so the one rule is: a module is imported only where the name was typed
by the person who started this process. A `Request` says it in its source, `user:module:callable`, which is
made from the command line alone; what a store says of where a model came from is shown and never
imported (`wsa.encode.registration.identity.request_of`).
"""

from __future__ import annotations

import dataclasses
import socket
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from wsa.store.common import user_code
from wsa.store.common.errors import ConflictError, WsaError
from wsa.store.objects.model_spec import Geometry, Preprocessing


@dataclasses.dataclass(frozen=True)
class Input:
    """The input that a model expects.

    Attributes:
        height, width: Size in pixels.
        channels: `rgb`, or `grey` for one channel of luma (ITU-R BT.601, like OpenCV's).
        mean, std: Per channel, for pixels from 0 to 1; if empty, pixels stay in that range. For
            pixels from 0 to 255, use a std of 1/255.
        interpolation: `bilinear` or `bicubic`, with antialiasing, or `area` like OpenCV's INTER_AREA.
        geometry: `squash`, `crop` or `pad`; see `wsa.store.objects.model_spec.Preprocessing`.
        crop: Share of the shorter side that `crop` keeps.
    """

    height: int
    width: int
    channels: Literal["rgb", "grey"] = "rgb"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: Literal["bilinear", "bicubic", "area"] = "bilinear"
    geometry: Geometry = "squash"
    crop: float = 1.0

    def preprocessing(self) -> Preprocessing:
        """The same as part of a model's spec.

        Raises:
            ValueError: A value is impossible.
        """
        depth = {"rgb": 3, "grey": 1}[self.channels]
        mean, std = self.mean or (0.0,) * depth, self.std or (1.0,) * depth
        if not (len(mean) == len(std) == depth):
            raise ValueError(f"mean and std must have {depth} numbers for {self.channels}")
        if min(self.height, self.width) < 1 or min(std) <= 0 or not 0 < self.crop <= 1:
            raise ValueError(
                "height, width and std must be above 0, and crop above 0 and at most 1"
            )
        if self.interpolation not in ("bilinear", "bicubic", "area"):
            raise ValueError(f"interpolation {self.interpolation!r} is not one")
        if self.geometry not in ("squash", "crop", "pad"):
            raise ValueError(f"geometry {self.geometry!r} is not one")
        return Preprocessing(
            geometry=self.geometry,
            height=self.height,
            width=self.width,
            interpolation=self.interpolation,
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
            crop=float(self.crop),
            channels=self.channels,
        )


@dataclasses.dataclass(frozen=True)
class UserModel:
    """Your own frozen network.

    Attributes:
        module: Called with (B, window x channels, height, width) float32, the oldest frame first;
            returns (B, D), a map (B, C, H, W), or tokens (B, T, C), whose patches are in rows.
        input: The input that it expects.
        window: Number of consecutive frames that it sees.
        prefix_tokens: Number of tokens before the patches; the first of them is the class token.
        licence: License of the weights.
    """

    module: nn.Module
    input: Input
    window: int = 1
    prefix_tokens: int = 0
    licence: str = "not stated"


class MakesModel(Protocol):
    """What `module:callable` names: it returns the same weights whenever and wherever it is called."""

    def __call__(self) -> UserModel:
        """The model, loaded and on the CPU."""
        ...


class UserNetwork(nn.Module):
    """A user's module with the face of timm's, as the rest of wsa expects it.

    Attributes:
        preprocessing, window, licence: As the user declared them.
        num_prefix_tokens, cls_token: As timm's models have them.
    """

    def __init__(self, declared: UserModel) -> None:
        super().__init__()
        self.module = declared.module
        self.preprocessing: Preprocessing = declared.input.preprocessing()
        self.window: int = declared.window
        self.licence = declared.licence
        self.num_prefix_tokens = declared.prefix_tokens
        self.cls_token = True if declared.prefix_tokens else None

    def forward_features(self, pixels: Tensor) -> Any:
        """What the module returns."""
        return self.module(pixels)

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        """Its features, or their mean over all places."""
        if features.ndim == 4:
            return features.mean(dim=(2, 3))
        if features.ndim == 3:
            return features[:, self.num_prefix_tokens :].mean(dim=1)
        return features


def is_name(text: str) -> bool:
    """Whether `text` is spelled `module:callable`."""
    return user_code.is_name(text) and not text.startswith("timm:")


def load(name: str) -> UserNetwork:
    """Import a user's module, call what it names, and freeze what comes back.

    Args:
        name: `module:callable`, typed by the user of this process.

    Raises:
        MissingError: No such module or callable here.
        ConflictError: It raised, or returned something else than a `UserModel`.
    """
    with user_code.current_folder():  # What it calls may import more.
        try:
            make: MakesModel = user_code.find(name, "no-weights", _where())
            declared = make()
        except WsaError:
            raise
        except Exception as error:
            raise _raised(name, error) from error
    try:
        network = UserNetwork(_checked(declared))
    except (TypeError, ValueError) as error:
        raise ConflictError(
            "other-weights", f"{name}: {error}. See docs/howto/own-model.md."
        ) from None
    return network.eval().requires_grad_(False)


def _checked(declared: Any) -> UserModel:
    """Raises TypeError or ValueError where it is no `UserModel` that can be."""
    if not isinstance(declared, UserModel):
        raise TypeError(
            f"it returned {type(declared).__name__}, not wsa.encode.models.custom.UserModel"
        )
    if not isinstance(declared.module, nn.Module):
        raise TypeError(f"its module is {type(declared.module).__name__}, not torch.nn.Module")
    if declared.window < 1 or declared.prefix_tokens < 0:
        raise ValueError("window must be 1 or more, and prefix_tokens 0 or more")
    if any(tensor.is_complex() for tensor in declared.module.state_dict().values()):
        raise ValueError("its weights are complex")
    if any(
        tensor.device != torch.device("cpu") for tensor in declared.module.state_dict().values()
    ):
        raise ValueError("its weights must be on the CPU; wsa moves them where they run")
    return declared


def _raised(name: str, error: Exception) -> ConflictError:
    why = " ".join(str(error).split())[:300]
    return ConflictError(
        "other-weights",
        f"{name} raised {type(error).__name__} in {_where()} ({why}). Fix it; 'wsa models "
        f"check {name}' tries it alone.",
    )


def _where() -> str:
    """This process, in words."""
    from distributed import get_worker

    host = socket.gethostname()
    try:
        return f"the worker {get_worker().address} on {host}"
    except ValueError:
        return host
