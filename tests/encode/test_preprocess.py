from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data.transforms_factory import create_transform

from wsa.encode.inference.preprocess import (
    _resize,
    area_products,
    grey,
    preprocess,
    shrink,
    two_passes,
)
from wsa.encode.models.registry import ALIASES
from wsa.encode.registration import probe_frames
from wsa.store.objects.model_spec import Geometry, Preprocessing

HALF = (0.5, 0.5, 0.5)
KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SAME = 0.01  # Of a grey level: what float32 adds when it normalises.
A_LEVEL = 1.01


def squash(side: int, interpolation: str = "bicubic", **options: Any) -> Preprocessing:
    return Preprocessing(
        "squash", side, side, interpolation, **{"mean": HALF, "std": HALF, **options}
    )


def of_alias(alias: str, geometry: Geometry = "squash") -> Preprocessing:
    config = timm.get_pretrained_cfg(ALIASES[alias])
    assert config is not None
    _, height, width = config.input_size
    crop = config.crop_pct if geometry == "crop" else 1.0
    how = (height, width, config.interpolation, config.mean, config.std)
    return Preprocessing(geometry, *how, crop=crop)


def grey_levels(found: torch.Tensor, how: Preprocessing) -> NDArray[np.float32]:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (how.mean, how.std))
    levels: NDArray[np.float32] = ((found * std + mean) * 255).permute(0, 2, 3, 1).numpy()
    return levels


@pytest.fixture(scope="module")
def screens(frames: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Frames of 210 and of 250 rows."""
    tall = next(part.frames for part in probe_frames.load_frames() if part.frames.shape[1] == 250)
    return [frames, tall]


def pillows(frame: NDArray[np.uint8], how: Preprocessing) -> NDArray[np.uint8]:
    """A frame as Pillow brings it to a model's input."""
    picture, size = Image.fromarray(frame), (how.width, how.height)
    kernel = KERNELS[how.interpolation]
    if how.geometry == "squash":
        # One direction after the other: Pillow 13 changes their order where the height shrinks
        # much more than the width, and with it what bicubic overshoots.
        return np.asarray(picture.resize((how.width, picture.height), kernel).resize(size, kernel))
    return np.asarray(ImageOps.pad(picture, size, kernel, color=0))


@pytest.mark.parametrize("geometry", ["squash", "pad"])
@pytest.mark.parametrize("alias", ALIASES)
def test_the_whole_screen_is_as_pillow_resizes_it(
    alias: str, geometry: Geometry, screens: list[NDArray[np.uint8]]
) -> None:
    how = of_alias(alias, geometry)
    for shown in screens:
        found = grey_levels(preprocess(torch.from_numpy(shown), how), how)
        for frame, ours in zip(shown, found, strict=True):
            assert np.abs(ours - pillows(frame, how)).max() < SAME


@pytest.mark.parametrize("alias", ALIASES)
def test_a_crop_is_timms_own_evaluation(alias: str, screens: list[NDArray[np.uint8]]) -> None:
    how = of_alias(alias, "crop")
    config = timm.get_pretrained_cfg(ALIASES[alias])
    assert config is not None
    theirs: Any = create_transform(
        input_size=config.input_size,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )
    for shown in screens:
        found = grey_levels(preprocess(torch.from_numpy(shown), how), how)
        wanted = grey_levels(torch.stack([theirs(Image.fromarray(f)) for f in shown]), how)
        assert np.abs(found - wanted).max() < SAME


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(84, 84), (105, 80), (64, 128), (320, 200)])
@pytest.mark.parametrize("geometry", ["squash", "pad"])
def test_inputs_of_any_size_are_as_pillow_makes_them(
    geometry: Geometry, size: tuple[int, int], interpolation: str, screens: list[Any]
) -> None:
    how = Preprocessing(geometry, *size, interpolation, HALF, HALF)
    for shown in screens:
        found = grey_levels(preprocess(torch.from_numpy(shown[:2]), how), how)
        for frame, ours in zip(shown, found, strict=False):
            assert np.abs(ours - pillows(frame, how)).max() < SAME


def test_a_crop_that_is_no_square_fills_it_and_keeps_the_aspect(
    frames: NDArray[np.uint8],
) -> None:
    how = Preprocessing("crop", 60, 90, "bilinear", HALF, HALF, crop=0.9)
    found = grey_levels(preprocess(torch.from_numpy(frames[:1]), how), how)[0]
    # 60 x 90 of a screen resized to 131 x 100, from which 210 x 160 is not far.
    whole = np.asarray(Image.fromarray(frames[0]).resize((100, 131), KERNELS["bilinear"]))
    assert np.abs(found - whole[36:96, 5:95]).max() < SAME


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@settings(max_examples=settings().max_examples // 4)
@given(
    st.integers(16, 300),
    st.integers(16, 300),
    st.sampled_from([(210, 160), (250, 160), (84, 84), (30, 20)]),
    st.integers(0, 9),
)
def test_on_a_gpu_the_levels_are_those_of_a_cpu(
    interpolation: str, height: int, width: int, shape: tuple[int, int], seed: int
) -> None:
    """Two matrix products are what a GPU runs; they are exact, so a CPU can judge them."""
    rng = np.random.default_rng(seed)
    # Black and white, where a bicubic kernel overshoots most, and everything between.
    picture = rng.integers(0, 2, (2, 3, *shape), np.uint8) * 255
    picture[1] = rng.integers(0, 256, (3, *shape), np.uint8)
    pixels = torch.from_numpy(picture)
    found = two_passes(pixels, [height, width], interpolation)
    assert torch.equal(found, _resize(pixels, [height, width], interpolation))


# Grey, and the mean of what a pixel covers.


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_grey_is_opencvs_for_every_colour(seed: int) -> None:
    colours = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    found = grey(torch.from_numpy(colours).permute(2, 0, 1)[None])[0, 0].numpy()
    np.testing.assert_array_equal(found, cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY))


def test_grey_is_the_emulators_within_a_level() -> None:
    import ale_py
    from ale_py import roms

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(str(roms.get_rom_path("seaquest")))
    for action in [0] * 200 + [2, 5] * 20:
        ale.act(ale.getMinimalActionSet()[action])
    screen = torch.from_numpy(ale.getScreenRGB()).permute(2, 0, 1)[None]
    found = grey(screen)[0, 0].numpy().astype(int)
    assert len(np.unique(found)) > 5
    assert np.abs(found - ale.getScreenGrayscale().astype(int)).max() <= 1


@pytest.mark.parametrize("size", [(84, 84), (105, 80), (42, 32), (7, 5)])
def test_area_is_opencvs_within_a_level(size: tuple[int, int], screens: list[Any]) -> None:
    how = Preprocessing("squash", *size, "area", (0.0,), (1.0,), channels="grey")
    for shown in screens:
        found = preprocess(torch.from_numpy(shown), how)
        assert found.shape == (len(shown), 1, *size)
        for frame, ours in zip(shown, found, strict=True):
            luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            theirs = cv2.resize(luma, size[::-1], interpolation=cv2.INTER_AREA)
            assert np.abs(255 * ours[0].numpy() - theirs).max() < A_LEVEL


@pytest.mark.parametrize("size", [(84, 84), (105, 80), (42, 32), (7, 5), (300, 200), (210, 84)])
def test_a_cpu_shrinks_to_the_levels_that_a_gpu_does(
    size: tuple[int, int], screens: list[Any]
) -> None:
    how = Preprocessing("squash", *size, "area", (0.0,), (1.0,), channels="grey")
    noise = np.random.default_rng(0).integers(0, 256, (4, 250, 160, 3), np.uint8)
    black_and_white = noise // 128 * 255  # Means often lie between two levels.
    for shown in (*screens, noise, black_and_white):
        frames = torch.from_numpy(shown)
        wanted = area_products(grey(frames.permute(0, 3, 1, 2)), list(size))
        assert torch.equal(shrink(frames, how), wanted)


def test_area_is_the_exact_mean_of_what_is_covered() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 12, 8, 3), np.uint8)
    how = Preprocessing("squash", 3, 2, "area", (0.0,) * 3, (1.0,) * 3)
    wanted = frame[0].reshape(3, 4, 2, 4, 3).mean(axis=(1, 3))
    found = 255 * preprocess(torch.from_numpy(frame), how)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, wanted.round(), atol=1e-3)


@pytest.mark.parametrize(("std", "top"), [(1.0, 1.0), (1 / 255, 255.0)])
def test_a_scale_is_a_standard_deviation(std: float, top: float) -> None:
    white = torch.full((1, 210, 160, 3), 255, dtype=torch.uint8)
    how = Preprocessing("squash", 84, 84, "bilinear", (0.0,), (std,), channels="grey")
    torch.testing.assert_close(preprocess(white, how), torch.full((1, 1, 84, 84), top))


# What holds for all.


def test_every_level_is_normalised_as_the_model_wants() -> None:
    levels = np.arange(256, dtype=np.uint8)
    flat = np.broadcast_to(levels[:, None, None, None], (256, 7, 5, 3)).copy()
    mean, std = (0.48, 0.45, 0.40), (0.229, 0.224, 0.225)
    found = preprocess(torch.from_numpy(flat), squash(9, mean=mean, std=std)).numpy()
    wanted = (levels[:, None] / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(found, wanted[:, :, None, None] * np.ones((9, 9)), atol=1e-5)


@pytest.mark.parametrize("geometry", ["squash", "pad"])
@pytest.mark.parametrize("height", [210, 214, 230, 250])
def test_screens_of_any_height_are_whole(height: int, geometry: Geometry) -> None:
    frame = np.zeros((1, height, 160, 3), np.uint8)
    frame[0, :6], frame[0, -6:], frame[0, :, :6], frame[0, :, -6:] = 250, 250, 250, 250
    how = Preprocessing(geometry, 64, 64, "bicubic", HALF, HALF)
    found = grey_levels(preprocess(torch.from_numpy(frame), how), how)[0]
    assert found.shape == (64, 64, 3)
    shown = found[:, found.max(axis=(0, 2)) > 100]  # Without the bars beside it.
    assert shown.shape[1] == (64 if geometry == "squash" else round(160 * 64 / height))
    edges = [shown[0], shown[-1], shown[:, 0], shown[:, -1]]
    assert min(edge.min() for edge in edges) > 150 and shown[20:40, 15:25].max() < 1


@pytest.mark.parametrize("geometry", ["squash", "crop", "pad"])
@pytest.mark.parametrize("channels", ["rgb", "grey"])
@pytest.mark.parametrize("interpolation", ["bicubic", "area"])
def test_frames_do_not_see_each_other(
    geometry: Geometry, channels: Any, interpolation: str, frames: NDArray[np.uint8]
) -> None:
    depth = 1 if channels == "grey" else 3
    mean, std = (0.4,) * depth, (0.3,) * depth
    how = Preprocessing(geometry, 84, 84, interpolation, mean, std, 0.9, channels)
    together = preprocess(torch.from_numpy(frames), how)
    for at, frame in enumerate(frames):
        alone = preprocess(torch.from_numpy(frame[None]), how)
        assert torch.equal(alone[0], together[at])


def test_the_frames_are_left_as_they_were(frames: NDArray[np.uint8]) -> None:
    before = frames.copy()
    for geometry in ("squash", "crop", "pad"):
        preprocess(torch.from_numpy(frames), of_alias("vit", geometry))
    np.testing.assert_array_equal(frames, before)
