from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from wsa.encode.models import ALIASES
from wsa.encode.preprocess import preprocess
from wsa.encode.spec import Preprocessing

HALF = (0.5, 0.5, 0.5)
KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def squash(side: int, interpolation: str = "bicubic", **options: Any) -> Preprocessing:
    return Preprocessing(
        "squash", side, side, interpolation, **{"mean": HALF, "std": HALF, **options}
    )


def of_alias(alias: str) -> Preprocessing:
    config = timm.get_pretrained_cfg(ALIASES[alias])
    assert config is not None
    return squash(config.input_size[1], config.interpolation, mean=config.mean, std=config.std)


def grey_levels(found: torch.Tensor, how: Preprocessing) -> NDArray[np.float32]:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (how.mean, how.std))
    levels: NDArray[np.float32] = ((found * std + mean) * 255).permute(0, 2, 3, 1).numpy()
    return levels


@pytest.mark.parametrize("how", [*map(of_alias, ALIASES), squash(160, "bilinear")])
def test_it_is_pillows_resize_of_the_whole_screen(
    how: Preprocessing, frames: NDArray[np.uint8]
) -> None:
    found = grey_levels(preprocess(torch.from_numpy(frames), how), how)
    for frame, ours in zip(frames, found, strict=True):
        size = (how.width, how.height)
        theirs = np.asarray(Image.fromarray(frame).resize(size, KERNELS[how.interpolation]))
        # The last bit of a level may differ between resizers, and float32 adds less than 0.01.
        assert np.abs(ours - theirs).max() < 1.01


def test_every_level_is_normalised_as_the_model_wants() -> None:
    levels = np.arange(256, dtype=np.uint8)
    flat = np.broadcast_to(levels[:, None, None, None], (256, 7, 5, 3)).copy()
    mean, std = (0.48, 0.45, 0.40), (0.229, 0.224, 0.225)
    found = preprocess(torch.from_numpy(flat), squash(9, mean=mean, std=std)).numpy()
    wanted = (levels[:, None] / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(found, wanted[:, :, None, None] * np.ones((9, 9)), atol=1e-5)


@pytest.mark.parametrize("height", [210, 214, 230, 250])
def test_screens_of_any_height_are_whole(height: int) -> None:
    frame = np.zeros((1, height, 160, 3), np.uint8)
    frame[0, :6], frame[0, -6:], frame[0, :, :6], frame[0, :, -6:] = 250, 250, 250, 250
    how = squash(64)
    found = grey_levels(preprocess(torch.from_numpy(frame), how), how)[0]
    assert found.shape == (64, 64, 3)
    edges = [found[0], found[-1], found[:, 0], found[:, -1]]
    assert min(edge.min() for edge in edges) > 200 and found[20:40, 20:40].max() < 1


def test_frames_do_not_see_each_other(frames: NDArray[np.uint8]) -> None:
    how = of_alias("lite0")
    together = preprocess(torch.from_numpy(frames), how)
    for at, frame in enumerate(frames):
        alone = preprocess(torch.from_numpy(frame[None]), how)
        assert torch.equal(alone[0], together[at])


def test_the_frames_are_left_as_they_were(frames: NDArray[np.uint8]) -> None:
    before = frames.copy()
    preprocess(torch.from_numpy(frames), of_alias("vit"))
    np.testing.assert_array_equal(frames, before)
