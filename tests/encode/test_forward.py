"""The forward pass: outputs, independence of the batch, counted passes, and stored precision."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.models.registry import parse_request

# Each layout of features: maps (NCHW), tokens after prefix tokens, maps (NHWC).
LAYOUTS = {
    "timm:test_resnet:random": (96, 5),
    "timm:test_convnext:random": (64, 5),
    "timm:test_vit:random": (64, 10),
    "timm:test_vit4:random": (96, 10),
    "timm:test_mambaout:random": (64, 5),
    "timm:swin_s3_tiny_224:random": (768, 7),
}


def brute_force(encoder, frames, side):
    """Average features over the cells of a grid with loops, with PyTorch's rule for edges."""
    pixels = preprocess(torch.from_numpy(frames), encoder.preprocessing)
    with torch.inference_mode():
        features = encoder.module.forward_features(pixels).double().numpy()
    if features.ndim == 3:
        patches = features[:, encoder.module.num_prefix_tokens :]
        height, width = encoder.module.patch_embed.grid_size
        features = patches.reshape(len(frames), height, width, -1)
    elif features.shape[1] != features.shape[2]:
        features = features.transpose(0, 2, 3, 1)
    cells = features.shape[1]
    out = np.zeros((len(frames), side, side, features.shape[3]))
    for i in range(side):
        for j in range(side):
            rows = slice(i * cells // side, -(-(i + 1) * cells // side))
            columns = slice(j * cells // side, -(-(j + 1) * cells // side))
            out[:, i, j] = features[:, rows, columns].mean(axis=(1, 2))
    return out


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if "swin" in n else n for n in LAYOUTS]
)
def test_a_grid_is_the_average_of_the_models_features(name, frames, make_encoder):
    width, cells = LAYOUTS[name]
    encoder = make_encoder(parse_request(name, {}, "grid:3"))
    grid = encoder(frames[:2])
    assert grid.shape == (2, 3, 3, width) and grid.dtype == np.float32
    np.testing.assert_allclose(grid, brute_force(encoder, frames[:2], 3), rtol=1e-4, atol=1e-5)
    whole = make_encoder(parse_request(name, {}, f"grid:{cells}"))(frames[:2])
    np.testing.assert_allclose(whole, brute_force(encoder, frames[:2], cells), rtol=1e-4, atol=1e-5)
    # If rows and columns were swapped, this would be the transpose.
    assert np.abs(whole - whole.swapaxes(1, 2)).max() > 1e-3


@pytest.mark.parametrize("name", ["resnet", "vit", "vit3", "mambaout", "convnext"])
def test_pooled_is_the_input_of_the_models_classifier(name, frames, make_encoder, tiny):
    encoder = make_encoder(tiny(name))
    with torch.inference_mode():
        pixels = preprocess(torch.from_numpy(frames[:3]), encoder.preprocessing)
        expected = encoder.module(pixels).numpy()  # Its classifier is the identity.
    np.testing.assert_allclose(encoder(frames[:3]), expected, rtol=1e-4, atol=1e-5)


def test_trained_embeddings_do_not_depend_on_the_batch_or_the_threads(frames, make_encoder):
    encoder = make_encoder(parse_request("lite0", {}, "grid:7"))
    torch.set_num_threads(1)
    alone = np.concatenate([encoder(frame[None]) for frame in frames[:3]])
    torch.set_num_threads(2)
    np.testing.assert_array_equal(encoder(frames[2::-1]), alone[::-1])


def test_passes_are_the_frames_that_the_network_runs(frames, make_encoder, tiny, batch_sizes):
    total = Encoder.total_passes
    encoder = make_encoder(tiny("resnet"))
    assert encoder.passes == 0 and not batch_sizes
    for picked in (1, 5, 16):
        encoder(frames[:picked])
    encoder.features(frames[:4])
    assert encoder.passes == sum(batch_sizes) == 26 == Encoder.total_passes - total


def test_a_failed_pass_is_not_counted_and_leaves_the_threads_unchanged(frames, make_encoder, tiny):
    encoder = make_encoder(tiny("resnet"))
    torch.set_num_threads(2)
    for count in (1, 3):
        with pytest.raises(RuntimeError):
            encoder(frames[:count, :, :, :2])
        assert torch.get_num_threads() == 2
    assert encoder.passes == 0


def test_frames_may_be_reversed_fortran_ordered_or_read_only(frames, make_encoder, tiny):
    encoder = make_encoder(tiny("resnet"))
    locked = frames[:2].copy()
    locked.flags.writeable = False
    expected = encoder(frames[:2])
    np.testing.assert_array_equal(encoder(locked), expected)
    np.testing.assert_array_equal(encoder(locked[::-1]), expected[::-1])
    np.testing.assert_array_equal(encoder(locked[::-1][:1]), expected[1:])
    np.testing.assert_array_equal(encoder(np.asfortranarray(locked)), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_encoder_leaves_global_flags_unchanged(precision, frames, make_encoder, tiny):
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    encoder = make_encoder(tiny("resnet"), precision=precision)
    assert np.isfinite(encoder(frames[:1])).all()
    assert flags == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    assert not torch.is_autocast_enabled("cpu")


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_stored_row_does_not_depend_on_other_rows(rows):
    embeddings = np.array(rows, np.float32)
    together = stored(embeddings)
    for row, stored_row in zip(embeddings, together, strict=True):
        alone = stored(row[None])[0]
        np.testing.assert_array_equal(alone.astype(np.float32), stored_row.astype(np.float32))
        fits = np.abs(row).max() <= 65504
        np.testing.assert_array_equal(stored_row, row.astype(np.float16) if fits else row)
    assert np.isfinite(together).all()
    assert together.dtype == (np.float16 if np.abs(embeddings).max() <= 65504 else np.float32)


def test_nan_and_infinity_stay_in_stored_rows():
    rows = stored(np.array([[1, np.nan], [np.inf, 2], [3, 4]], np.float32))
    assert np.isnan(rows[0, 1]) and np.isinf(rows[1, 0]) and np.isfinite(rows[2]).all()
