"""Find a user's own model, named as `module:callable`.

The callable takes no arguments and returns a `UserModel`: a network and the input it expects.
Importing a module runs its code, so wsa imports a module only if the user who started this process
typed its name. Such a `Request` has the source `user:module:callable`, which is built from the
command line alone. The origin that a store records for a model is shown but never imported
(`wsa.encode.registration.identity.request_of`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, Protocol

from wsa.store.common import user_code
from wsa.store.common.errors import ConflictError, WsaError
from wsa.store.objects.model_spec import GRAY, Geometry, Preprocessing

if TYPE_CHECKING:
    from torch import nn


@dataclasses.dataclass(frozen=True)
class Input:
    """The input that a model expects.

    Attributes:
        height, width: Size in pixels.
        channels: `rgb`, or `gray` for one channel of luma (ITU-R BT.601, like OpenCV's).
        mean, std: Normalization per channel, for pixels from 0 to 1; if empty, pixels stay in that
            range. For pixels from 0 to 255, use a std of 1/255.
        interpolation: `bilinear` or `bicubic`, with antialiasing, or `area` like OpenCV's INTER_AREA.
        geometry: `squash`, `crop` or `pad`; see `wsa.store.objects.model_spec.Preprocessing`.
        crop: Fraction of the shorter side that `crop` keeps.
    """

    height: int
    width: int
    channels: Literal["rgb", "gray", "grey"] = "rgb"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: Literal["bilinear", "bicubic", "area"] = "bilinear"
    geometry: Geometry = "squash"
    crop: float = 1.0

    def preprocessing(self) -> Preprocessing:
        """Return this input as the preprocessing of a model's spec.

        Raises:
            ValueError: If a value is out of range or unknown.
        """
        if self.channels not in ("rgb", "gray", GRAY):  # Earlier modules say "grey".
            raise ValueError(f"channels {self.channels!r} is unknown: use rgb or gray")
        depth = 3 if self.channels == "rgb" else 1
        mean, std = self.mean or (0.0,) * depth, self.std or (1.0,) * depth
        if not (len(mean) == len(std) == depth):
            raise ValueError(f"mean and std must have {depth} numbers for {self.channels}")
        if min(self.height, self.width) < 1 or min(std) <= 0 or not 0 < self.crop <= 1:
            raise ValueError(
                "height, width, and std must be above 0, and crop above 0 and at most 1"
            )
        if self.interpolation not in ("bilinear", "bicubic", "area"):
            raise ValueError(f"interpolation {self.interpolation!r} is unknown")
        if self.geometry not in ("squash", "crop", "pad"):
            raise ValueError(f"geometry {self.geometry!r} is unknown")
        return Preprocessing(
            geometry=self.geometry,
            height=self.height,
            width=self.width,
            interpolation=self.interpolation,
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
            crop=float(self.crop),
            channels="rgb" if depth == 3 else GRAY,
        )


@dataclasses.dataclass(frozen=True)
class UserModel:
    """Your own frozen network.

    Attributes:
        module: Network from float32 pixels (B, window x channels, height, width), oldest frame
            first, to features (B, D), a map (B, C, H, W), or tokens (B, T, C) with the patches in
            row-major order.
        input: The input that the network expects.
        window: Number of consecutive frames per input.
        prefix_tokens: Number of tokens before the patches; the first of them is the class token.
        license: License of the weights.
    """

    module: nn.Module
    input: Input
    window: int = 1
    prefix_tokens: int = 0
    license: str = "not stated"


class MakesModel(Protocol):
    """Type of the callable: it returns the same weights on every call and every machine."""

    def __call__(self) -> UserModel:
        """Return the model, with its weights, on the CPU."""
        ...


def is_name(text: str) -> bool:
    """Whether `text` is spelled `module:callable`."""
    return user_code.is_name(text) and not text.startswith("timm:")


def find(name: str) -> MakesModel:
    """Import a user's module and return its callable, without calling it.

    Args:
        name: `module:callable`, typed by the user of this process.

    Raises:
        MissingError: If this machine has no such module or callable.
        ConflictError: If the module raised.
    """
    with reported(name):
        make: MakesModel = user_code.find(name, "no-weights", _process_name())
    return make


def find_before_workers(names: Iterable[str], scheduler: str) -> None:
    """Find the callables before workers start, which would report a misspelled one only later.

    A scheduler at an address has workers already, and the modules need to be there alone.

    Args:
        names: Sources of models' weights; only those spelled `module:callable` are imported.
        scheduler: `local`, `inproc`, `slurm`, or the address of a scheduler.

    Raises:
        MissingError: If this machine has no such module or callable.
        ConflictError: If a module raised.
    """
    if "://" in scheduler:
        return
    for name in names:
        if is_name(name):
            find(name)


@contextlib.contextmanager
def reported(name: str) -> Iterator[None]:
    """Report any error that a user's module or callable raises as a `ConflictError`."""
    try:
        yield
    except WsaError:
        raise
    except user_code.ERRORS as error:
        why = " ".join(str(error).split())[:300]
        raise ConflictError(
            "other-weights",
            f"{name} raised {type(error).__name__} in {_process_name()} ({why}). Fix it; 'wsa models "
            f"check {name}' tries it alone.",
        ) from error


def _process_name() -> str:
    """Name this process for a message: its Dask worker and host, or the host alone."""
    from distributed import get_worker

    host = socket.gethostname()
    try:
        return f"the worker {get_worker().address} on {host}"
    except ValueError:
        return host
