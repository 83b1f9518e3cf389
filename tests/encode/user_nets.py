"""Models as users write them: correct ones, and one with each fault.

`test_user_model.py` names them, for example as `user_nets:dense`.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wsa.encode.models.custom import Input, UserModel

GRAY = Input(84, 84, channels="gray", interpolation="area")
_calls = itertools.count()


def _seeded(make: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make()


class Trunk(nn.Module):
    """The convolutions of Mnih et al. 2015 for one frame, (B, 1, 84, 84) to (B, 64, 7, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
            nn.Conv2d(64, 64, 3, 1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


class Dense(Trunk):
    """(B, 64 x 7 x 7)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels).flatten(1)


class Tokens(Trunk):
    """Two tokens before 49 patches."""

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.layers(pixels).flatten(2).transpose(1, 2)
        return torch.cat([patches.mean(1, keepdim=True), 0 * patches[:, :1], patches], dim=1)


class Stacked(nn.Module):
    """Four gray frames as channels, (B, 4, 84, 84) to (B, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 16, 8, 4), nn.AdaptiveAvgPool2d(1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels).flatten(1)


class Named(nn.Module):
    """Parts with the names of TorchScript's own attributes."""

    schema: Tensor
    parts = ("code", "graph", "inlined_graph", "original_name", "training_data")

    def __init__(self) -> None:
        super().__init__()
        for name in self.parts:
            part = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())
            setattr(self, name, part)
        self.register_buffer("schema", torch.rand(1, 84, 84))

    def forward(self, pixels: Tensor) -> Tensor:
        for name in self.parts:
            pixels = pixels + getattr(self, name)(pixels)
        return (pixels * self.schema).flatten(1)


class Noisy(Dense):
    """Dropout that stays active in evaluation mode."""

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(pixels), 0.1, training=True)


class Mixed(Dense):
    """Subtracts the mean of the batch, like batch normalization in training mode."""

    def forward(self, pixels: Tensor) -> Tensor:
        features = super().forward(pixels)
        return features - features.mean(dim=0)


class Moving(Dense):
    """Accumulates features in a buffer."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3136))

    def forward(self, pixels: Tensor) -> Tensor:
        features = super().forward(pixels)
        self.seen.add_(features[0])
        return features


class Nan(Dense):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels).sqrt()


class Blind(Dense):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(torch.zeros_like(pixels))


class Raising(Dense):
    def forward(self, pixels: Tensor) -> Tensor:
        raise RuntimeError("no\nsuch kernel")


class Exiting(Dense):
    def forward(self, pixels: Tensor) -> Tensor:
        sys.exit(0)


class Training(Dense):
    """Always returns to training mode."""

    def train(self, mode: bool = True) -> Training:
        return super().train(True)


class Stateful(Dense):
    """Has a state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 1}


class Flat(Dense):
    """(B,)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels).mean(1)


class Deep(Trunk):
    """(B, 2, 3, 4, 4)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels)[:, :6, :4, :4].unflatten(1, (2, 3))


def _of(kind: type[nn.Module], **options: Any) -> Callable[[], UserModel]:
    return lambda: UserModel(_seeded(kind), GRAY, **options)


dense = _of(Dense, license="MIT")
spatial = _of(Trunk)
tokens = _of(Tokens, prefix_tokens=2)
stacked = _of(Stacked, window=4)
named = _of(Named)
noisy, mixed, moving, nan = _of(Noisy), _of(Mixed), _of(Moving), _of(Nan)
blind, raising, exiting, training = _of(Blind), _of(Raising), _of(Exiting), _of(Training)
flat, deep = _of(Flat), _of(Deep)


def scripted() -> UserModel:
    """A module as `torch.jit.load` returns it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated.
        return UserModel(torch.jit.script(_seeded(Dense).eval()), GRAY)


def unseeded() -> UserModel:
    """Other weights on each call."""
    module = _seeded(Dense).requires_grad_(False)
    next(module.parameters()).add_(next(_calls))
    return UserModel(module, GRAY)


def failing() -> UserModel:
    raise FileNotFoundError(2, "No such file", "/lab/weights.pt")


def giving_up() -> UserModel:
    sys.exit(0)


def wrong() -> nn.Module:
    return _seeded(Dense)


def half() -> UserModel:
    return UserModel(_seeded(Dense).bfloat16(), GRAY)


def with_state() -> UserModel:
    return UserModel(_seeded(Stateful), GRAY)


def no_module() -> UserModel:
    return UserModel("weights.pt", GRAY)  # type: ignore[arg-type]


def wrong_mean() -> UserModel:
    return UserModel(_seeded(Dense), Input(84, 84, channels="gray", mean=(0.5,) * 3))


not_callable = 7
