"""Preprocessing, compared with Pillow, timm, OpenCV, and exact arithmetic."""

from __future__ import annotations

from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from timm.data.transforms_factory import create_transform

from wsa.encode.inference.preprocess import (
    _resize,
    area_products,
    gray,
    preprocess,
    shrink,
    two_passes,
)
from wsa.encode.models.registry import ALIASES
from wsa.encode.registration import probe_frames
from wsa.store.objects.model_spec import GRAY, Preprocessing

HALF = (0.5, 0.5, 0.5)
KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SAME = 0.01  # Of a gray level: the error of normalization in float32.
ONE_LEVEL = 1.01


def squash(height, width, interpolation="bicubic", **options):
    options = {"mean": HALF, "std": HALF, **options}
    return Preprocessing("squash", height, width, interpolation, **options)


def preprocessing_of(alias, geometry: Any = "squash"):
    config = timm.get_pretrained_cfg(ALIASES[alias].timm_name)
    assert config is not None
    _, height, width = config.input_size
    crop = config.crop_pct if geometry == "crop" else 1.0
    how = (height, width, config.interpolation, config.mean, config.std)
    return Preprocessing(geometry, *how, crop=crop)


def gray_levels(result, how):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (how.mean, how.std))
    levels = ((result * std + mean) * 255).permute(0, 2, 3, 1).numpy()
    return levels


@pytest.fixture(scope="module")
def screens(frames):
    """Frames of 210 and of 250 rows."""
    tall = next(part.frames for part in probe_frames.load_frames() if part.frames.shape[1] == 250)
    return [frames, tall]


def resize_with_pillow(frame, how):
    """Resize a frame to a model's input with Pillow."""
    picture, size = Image.fromarray(frame), (how.width, how.height)
    kernel = KERNELS[how.interpolation]
    if how.geometry == "squash":
        # One direction after the other: Pillow 13 changes their order if the height shrinks much more
        # than the width, which changes how bicubic overshoots.
        return np.asarray(picture.resize((how.width, picture.height), kernel).resize(size, kernel))
    return np.asarray(ImageOps.pad(picture, size, kernel, color=0))


SIZES = [(84, 84), (105, 80), (64, 128), (320, 200)]
INPUTS = [preprocessing_of(alias) for alias in ALIASES]
INPUTS += [squash(*size, name) for size in SIZES for name in KERNELS]


@pytest.mark.parametrize("geometry", ["squash", "pad"])
@pytest.mark.parametrize("how", INPUTS)
def test_squash_and_pad_equal_pillow(how, geometry, screens):
    how = msgspec.structs.replace(how, geometry=geometry)
    for frames in screens:
        levels = gray_levels(preprocess(torch.from_numpy(frames[:4]), how), how)
        for frame, pixels in zip(frames, levels, strict=False):
            assert np.abs(pixels - resize_with_pillow(frame, how)).max() < SAME


@pytest.mark.parametrize("alias", ALIASES)
def test_crop_equals_the_evaluation_transform_of_timm(alias, screens):
    how = preprocessing_of(alias, "crop")
    config = timm.get_pretrained_cfg(ALIASES[alias].timm_name)
    assert config is not None
    transform: Any = create_transform(
        input_size=config.input_size,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )
    for screen_frames in screens:
        result = gray_levels(preprocess(torch.from_numpy(screen_frames), how), how)
        expected = gray_levels(
            torch.stack([transform(Image.fromarray(f)) for f in screen_frames]), how
        )
        assert np.abs(result - expected).max() < SAME


def test_a_crop_that_is_not_square_keeps_the_aspect_ratio(frames):
    how = Preprocessing("crop", 60, 90, "bilinear", HALF, HALF, crop=0.9)
    result = gray_levels(preprocess(torch.from_numpy(frames[:1]), how), how)[0]
    # 60 x 90 of a screen resized to 131 x 100, from which 210 x 160 is not far.
    whole = np.asarray(Image.fromarray(frames[0]).resize((100, 131), KERNELS["bilinear"]))
    assert np.abs(result - whole[36:96, 5:95]).max() < SAME


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@settings(max_examples=settings().max_examples // 4)
@given(
    st.integers(16, 300),
    st.integers(16, 300),
    st.sampled_from([(210, 160), (250, 160), (84, 84), (30, 20)]),
    st.integers(0, 9),
)
def test_resizing_on_a_gpu_gives_the_levels_of_a_cpu(interpolation, height, width, shape, seed):
    """A GPU runs two matrix products. They are exact, so a CPU can compute them too."""
    rng = np.random.default_rng(seed)
    # Black and white, where a bicubic kernel overshoots most, and all levels.
    picture = rng.integers(0, 2, (2, 3, *shape), np.uint8) * 255
    picture[1] = rng.integers(0, 256, (3, *shape), np.uint8)
    pixels = torch.from_numpy(picture)
    result = two_passes(pixels, [height, width], interpolation)
    assert torch.equal(result, _resize(pixels, [height, width], interpolation))


# Gray, and the mean of the area that a pixel covers.


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_gray_equals_opencv_for_every_color(seed):
    colors = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    result = gray(torch.from_numpy(colors).permute(2, 0, 1)[None])[0, 0].numpy()
    np.testing.assert_array_equal(result, cv2.cvtColor(colors, cv2.COLOR_RGB2GRAY))


@pytest.mark.parametrize("size", [(84, 84), (105, 80), (42, 32), (7, 5)])
def test_area_equals_opencv_within_one_level(size, screens):
    how = Preprocessing("squash", size[0], size[1], "area", (0.0,), (1.0,), channels=GRAY)
    for screen_frames in screens:
        result = preprocess(torch.from_numpy(screen_frames), how)
        assert result.shape == (len(screen_frames), 1, *size)
        for frame, pixels in zip(screen_frames, result, strict=True):
            luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            expected = cv2.resize(luma, size[::-1], interpolation=cv2.INTER_AREA)
            assert np.abs(255 * pixels[0].numpy() - expected).max() < ONE_LEVEL


@pytest.mark.parametrize("size", [(84, 84), (105, 80), (42, 32), (7, 5), (300, 200), (210, 84)])
def test_area_on_a_cpu_gives_the_levels_of_a_gpu(size, screens):
    how = Preprocessing("squash", size[0], size[1], "area", (0.0,), (1.0,), channels=GRAY)
    noise = np.random.default_rng(0).integers(0, 256, (4, 250, 160, 3), np.uint8)
    black_and_white = noise // 128 * 255  # Means often lie between two levels.
    for screen_frames in (*screens, noise, black_and_white):
        frames = torch.from_numpy(screen_frames)
        expected = area_products(gray(frames.permute(0, 3, 1, 2)), list(size))
        assert torch.equal(shrink(frames, how), expected)


def test_area_is_the_exact_mean_of_the_covered_pixels():
    frame = np.random.default_rng(0).integers(0, 256, (1, 12, 8, 3), np.uint8)
    how = Preprocessing("squash", 3, 2, "area", (0.0,) * 3, (1.0,) * 3)
    expected = frame[0].reshape(3, 4, 2, 4, 3).mean(axis=(1, 3))
    result = 255 * preprocess(torch.from_numpy(frame), how)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(result, expected.round(), atol=1e-3)


# All geometries.


def test_every_level_is_normalized_with_mean_and_std():
    levels = np.arange(256, dtype=np.uint8)
    flat = np.broadcast_to(levels[:, None, None, None], (256, 7, 5, 3)).copy()
    mean, std = (0.48, 0.45, 0.40), (0.229, 0.224, 0.225)
    result = preprocess(torch.from_numpy(flat), squash(9, 9, mean=mean, std=std)).numpy()
    expected = (levels[:, None] / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(result, expected[:, :, None, None] * np.ones((9, 9)), atol=1e-5)


@pytest.mark.parametrize("geometry", ["squash", "pad"])
@pytest.mark.parametrize("height", [210, 214, 230, 250])
def test_screens_of_any_height_are_shown_completely(height, geometry):
    frame = np.zeros((1, height, 160, 3), np.uint8)
    frame[0, :6], frame[0, -6:], frame[0, :, :6], frame[0, :, -6:] = 250, 250, 250, 250
    how = Preprocessing(geometry, 64, 64, "bicubic", HALF, HALF)
    result = gray_levels(preprocess(torch.from_numpy(frame), how), how)[0]
    assert result.shape == (64, 64, 3)
    visible = result[:, result.max(axis=(0, 2)) > 100]  # Without the bars at the sides.
    assert visible.shape[1] == (64 if geometry == "squash" else round(160 * 64 / height))
    edges = [visible[0], visible[-1], visible[:, 0], visible[:, -1]]
    assert min(edge.min() for edge in edges) > 150 and visible[20:40, 15:25].max() < 1


@pytest.mark.parametrize("geometry", ["squash", "crop", "pad"])
@pytest.mark.parametrize("channels", ["rgb", GRAY])
@pytest.mark.parametrize("interpolation", ["bicubic", "area"])
def test_preprocessing_does_not_depend_on_other_frames(geometry, channels, interpolation, frames):
    depth = 1 if channels == GRAY else 3
    mean, std = (0.4,) * depth, (0.3,) * depth
    how = Preprocessing(geometry, 84, 84, interpolation, mean, std, 0.9, channels)
    together = preprocess(torch.from_numpy(frames), how)
    for at, frame in enumerate(frames):
        alone = preprocess(torch.from_numpy(frame[None]), how)
        assert torch.equal(alone[0], together[at])


def test_preprocessing_leaves_its_input_unchanged(frames):
    before = frames.copy()
    for geometry in ("squash", "crop", "pad"):
        preprocess(torch.from_numpy(frames), preprocessing_of("vit", geometry))
    np.testing.assert_array_equal(frames, before)
