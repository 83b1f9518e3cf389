"""Preprocess screens into a model's input, in whole batches, on the model's device.

timm's own evaluation transform (`crop`) resizes the shorter side and crops the center, which cuts
off a quarter of a 210 x 160 screen: the score, the ship, the paddle. By default the whole screen is
therefore stretched to the model's input (`squash`); `pad` keeps its aspect ratio and adds black
bars. Resizing uses the model's interpolation with antialiasing and equals Pillow's on uint8
exactly (first along the rows, then along the columns, as in every Pillow before 13). The result is
normalized with the model's mean and standard deviation.
"""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsa.encode.inference.engines import arithmetic
from wsa.store.objects.model_spec import Preprocessing

# ITU-R BT.601 luma in 15 bits, as OpenCV's RGB2GRAY computes it; ALE's own gray screens agree to
# within one level.
LUMA, LUMA_BITS = (9798, 19235, 3735), 15

HALF_BITS = 11  # Half of the 22 bits of Pillow's weights.


def preprocess(frames: Tensor, how: Preprocessing) -> Tensor:
    """Resize screens to a model's input and normalize them.

    Args:
        frames: Screens (B, H, W, 3) uint8 RGB, or (B, w, H, W, 3) for a model with a window of w.

    Returns:
        Pixels (B, channels, height, width) float32, channels last in memory; for windows
        (B, w x channels, height, width), the channels of the oldest frame first.
    """
    if frames.ndim == 5:
        return normalize(shrink(frames.flatten(0, 1), how).unflatten(0, frames.shape[:2]), how)
    return normalize(shrink(frames, how), how)


def shrink(frames: Tensor, how: Preprocessing) -> Tensor:
    """Resize screens to a model's input, without normalizing; each frame independently.

    Args:
        frames: Screens (B, H, W, 3) uint8 RGB; for a gray model also gray screens (B, H, W).

    Returns:
        Levels (B, channels, height, width) uint8.
    """
    if frames.ndim == 3:
        return _fit(frames.unsqueeze(1), how)
    pixels = frames.permute(0, 3, 1, 2)
    if how.gray:
        pixels = _gray_on_cpu(frames) if frames.device.type == "cpu" else gray(pixels)
    return _fit(pixels, how)


def normalize(levels: Tensor, how: Preprocessing) -> Tensor:
    """Normalize the levels of `shrink` into the pixels that `preprocess` returns.

    Args:
        levels: Levels (B, c, h, w) uint8, or (B, w, c, h, w) for windows.
    """
    if levels.ndim == 5:
        single = normalize(levels.flatten(0, 1), how)
        folded = single.reshape(len(levels), -1, how.height, how.width)
        return folded.contiguous(memory_format=torch.channels_last)
    scale, shift = _scale_and_shift(how, levels.device)
    lines = levels.permute(0, 2, 3, 1).flatten(2).to(torch.float32).mul_(scale).sub_(shift)
    result: Tensor = lines.unflatten(2, (how.width, -1)).permute(0, 3, 1, 2)
    return result


@functools.cache
def _scale_and_shift(how: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset of each value in a line of the screen, (width * c,).

    Whole lines at once are twice as fast as three channels per pixel.
    """
    mean, std = (torch.tensor(of, device=device) for of in (how.mean, how.std))
    return (1 / (255 * std)).repeat(how.width), (mean / std).repeat(how.width)


def gray(pixels: Tensor) -> Tensor:
    """Convert RGB (B, 3, H, W) uint8 to luma (B, 1, H, W) uint8, exactly as OpenCV does."""
    red, green, blue = (channel.to(torch.float32) for channel in pixels.unbind(1))
    # Whole numbers below 2^24 are exact in float32, which is faster than integers.
    luma = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return luma.add_(1 << LUMA_BITS - 1).mul_(2.0**-LUMA_BITS).to(torch.uint8).unsqueeze(1)


def _gray_on_cpu(frames: Tensor) -> Tensor:
    """Do the same as `gray` on the CPU in an eighth of its time: (B, H, W, 3) to (B, 1, H, W)."""
    luma = np.empty((len(frames), 1, *frames.shape[1:3]), np.uint8)
    for frame, own in zip(frames.numpy(), luma, strict=True):
        cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY, dst=own[0])
    return torch.from_numpy(luma)


def _fit(pixels: Tensor, how: Preprocessing) -> Tensor:
    """Squash, crop or pad pixels (B, c, H, W) uint8 to (B, c, height, width) uint8."""
    height, width = pixels.shape[-2:]
    size = [how.height, how.width]
    if how.geometry == "squash":
        return _resize(pixels, size, how.interpolation)
    if how.geometry == "crop":
        scale = max(
            math.floor(want / how.crop) / of for want, of in zip(size, (height, width), strict=True)
        )
        # Like torchvision's Resize: the shorter side exact, the longer one rounded down.
        large = [math.floor(of * scale + 1e-9) for of in (height, width)]
        top, left = (round((of - want) / 2) for of, want in zip(large, size, strict=True))
        resized = _resize(pixels, large, how.interpolation)
        return resized[..., top : top + how.height, left : left + how.width]
    scale = min(want / of for want, of in zip(size, (height, width), strict=True))
    small = [round(of * scale) for of in (height, width)]
    top, left = (round((want - of) / 2) for want, of in zip(size, small, strict=True))
    edges = [left, how.width - small[1] - left, top, how.height - small[0] - top]
    return torch.nn.functional.pad(_resize(pixels, small, how.interpolation), edges)


def _resize(pixels: Tensor, size: list[int], interpolation: str) -> Tensor:
    """Resize (B, c, H, W) uint8 to (B, c, *size) uint8, to the same levels on every device."""
    if interpolation == "area":
        return _area(pixels, size)
    if pixels.device.type == "cpu":
        return _pillow(pixels, size, interpolation)
    return two_passes(pixels, size, interpolation)


def _pillow(pixels: Tensor, size: list[int], interpolation: str) -> Tensor:
    """Resize with Pillow, first the width, then the height; Pillow 13 would choose the order.

    PyTorch's own uint8 kernel takes a fifth of the time (0.1 ms per frame instead of 0.6), but its
    weights have 15 bits instead of Pillow's 22, and its results differ by up to two levels.
    """
    kernel = Image.Resampling[interpolation.upper()]
    height, width = size
    resized = []
    for frame in pixels.permute(0, 2, 3, 1).squeeze(-1).numpy():
        picture = Image.fromarray(frame)
        picture = picture.resize((width, picture.height), kernel).resize((width, height), kernel)
        resized.append(np.asarray(picture).reshape(height, width, -1))
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def two_passes(pixels: Tensor, size: list[int], interpolation: str) -> Tensor:
    """Compute Pillow's resize, to the bit, as matrix products.

    On a GPU PyTorch would resize floats. Unlike Pillow it would not clip values below black and
    above white between the two passes, and its results would differ by up to 20 levels.
    """
    wide = _pass(pixels, size[1], interpolation)
    return _pass(wide.transpose(-1, -2), size[0], interpolation).transpose(-1, -2)


def _pass(pixels: Tensor, want: int, interpolation: str) -> Tensor:
    """Resize the last dimension: (..., W) uint8 to (..., want) uint8.

    The 22 bits of the weights are split over two float32 products of whole numbers, both exact.
    """
    if pixels.shape[-1] == want:
        return pixels
    parts = _weights(pixels.shape[-1], want, interpolation).to(pixels.device)
    with arithmetic(pixels.device, "fp32"):
        coarse, fine = ((pixels.float() @ part.T).to(torch.int32) for part in parts)
    sums = (coarse << HALF_BITS) + fine + (1 << 2 * HALF_BITS - 1)
    levels: Tensor = (sums >> 2 * HALF_BITS).clamp(0, 255).to(torch.uint8)
    return levels


@functools.cache
def _weights(of: int, want: int, interpolation: str) -> Tensor:
    """Return the weights of `of` pixels in `want` pixels: upper and lower bits, (2, want, of)."""
    scale = of / want
    stretch = max(scale, 1.0)
    reach = {"bilinear": 1.0, "bicubic": 2.0}[interpolation] * stretch
    centers = scale * (np.arange(want)[:, None] + 0.5)
    pixel = np.arange(of)
    first = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    inside = (pixel >= first) & (pixel < (centers + reach + 0.5).astype(np.int64))
    away = np.abs((pixel - centers + 0.5) / stretch)
    shares = np.where(inside, _KERNELS[interpolation](away), 0.0)
    shares /= shares.sum(axis=1, keepdims=True)
    whole = np.trunc(shares * 4.0**HALF_BITS + np.copysign(0.5, shares)).astype(np.int64)
    coarse = (whole + (1 << HALF_BITS - 1)) >> HALF_BITS  # Rounded, so that the rest is small.
    return torch.from_numpy(np.stack([coarse, whole - (coarse << HALF_BITS)])).float()


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - x, 0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evaluate Keys' kernel with a = -0.5, which Pillow's bicubic uses."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}


def _area(pixels: Tensor, size: list[int]) -> Tensor:
    """Average the area that each new pixel covers, like `cv2.INTER_AREA` when it shrinks.

    Overlaps are counted in whole units: a side of `of` pixels resized to `want` has of x want
    units. All sums are therefore whole numbers below 2^24, exact in float32 in any order. OpenCV's
    own sums are not exact: if a mean lies halfway between two levels, it may round to either.
    """
    if list(pixels.shape[-2:]) == size:
        return pixels
    if pixels.device.type != "cpu":
        return area_products(pixels, size)
    planes = pixels.flatten(0, 1).numpy()
    small = np.stack([_area_of(plane, size) for plane in planes])
    return torch.from_numpy(small.reshape(*pixels.shape[:2], *size))


def area_products(pixels: Tensor, size: list[int]) -> Tensor:
    """Compute `_area` as matrix products, for a GPU."""
    height, width = pixels.shape[-2:]
    rows, columns = (
        _overlaps(of, want).to(pixels.device)
        for of, want in zip((height, width), size, strict=True)
    )
    with arithmetic(pixels.device, "fp32"):
        sums = rows @ pixels.float() @ columns.T
    levels: Tensor = (sums / (height * width)).round().to(torch.uint8)
    return levels


def _area_of(plane: NDArray[np.uint8], size: list[int]) -> NDArray[np.uint8]:
    """Resize (H, W) uint8 to `size` as fast as OpenCV: few old pixels overlap a new one."""
    sums = _shares(plane.astype(np.float32), size[0])
    sums = _shares(np.asarray(cv2.transpose(sums), np.float32), size[1])
    sums /= np.float32(plane.size)
    return np.asarray(cv2.transpose(np.rint(sums, out=sums).astype(np.uint8)), np.uint8)


def _shares(rows: NDArray[np.float32], want: int) -> NDArray[np.float32]:
    """Sum old rows (of, n) into new rows (want, n), weighted by their overlap."""
    (at, units), *others = _covered(len(rows), want)
    sums = rows.take(at, 0)
    sums *= units
    for at, units in others:
        part = rows.take(at, 0)
        part *= units
        sums += part
    return sums


@functools.cache
def _covered(of: int, want: int) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Return the first old pixel that overlaps each of `want` new ones, then the second, and so on.

    Returns:
        Pairs of indices (want,) and overlaps in units (want, 1); the overlap is 0 for a new pixel
        with fewer old ones.
    """
    overlaps = _overlaps(of, want).numpy()
    first = (overlaps > 0).argmax(axis=1)
    layers = []
    for i in range(int((overlaps > 0).sum(axis=1).max())):
        at = np.minimum(first + i, of - 1)
        units = np.where(first + i < of, overlaps[np.arange(want), at], 0).astype(np.float32)
        layers.append((at, units[:, None]))
    return layers


@functools.cache
def _overlaps(of: int, want: int) -> Tensor:
    """Return the overlap of old pixels, `want` units long, with new ones, `of` long: (want, of)."""
    old = torch.arange(of) * want
    new = torch.arange(want).unsqueeze(1) * of
    return (torch.minimum(old + want, new + of) - torch.maximum(old, new)).clamp_min(0).float()
