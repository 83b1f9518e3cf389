"""The network that segments moving objects: size, masks, motion, loss, and learning."""

import numpy as np
import pytest
import torch

from wsa.encode.models.paper.masks import ObjectMasks
from wsa.learn.pretrain.data import levels, scale
from wsa.learn.pretrain.segmentation import MovingObjects, flow, ssim, warp
from wsa.store.objects.snapshot import take_snapshot


def test_the_size_and_the_cost_equal_those_of_the_paper(measure_cost):
    masks = ObjectMasks()
    assert sum(p.numel() for p in MovingObjects().parameters()) == 7_142_086
    assert measure_cost(masks, lambda x: masks.masks(masks(x)), torch.rand(1, 2, 84, 84)) == (
        7_120_540,
        62_233_344,
    )
    # Most of the cost is decoding.
    assert measure_cost(masks, masks.masks, torch.rand(1, 512))[1] == 54_528_768


def test_a_warp_equals_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    frame = rng.random((6, 9))
    motion = rng.normal(0, 2, (2, 6, 9))
    warped = warp(torch.from_numpy(frame)[None, None], torch.from_numpy(motion)[None])[0, 0]
    for y in range(6):
        for x in range(9):
            down = min(max(y + motion[0, y, x], 0), 5)
            across = min(max(x + motion[1, y, x], 0), 8)
            top, left = int(down), int(across)
            bottom, right = min(top + 1, 5), min(left + 1, 8)
            a, b = down - top, across - left
            expected = (1 - a) * ((1 - b) * frame[top, left] + b * frame[top, right]) + a * (
                (1 - b) * frame[bottom, left] + b * frame[bottom, right]
            )
            assert warped[y, x].item() == pytest.approx(expected, abs=1e-6)


def test_the_flow_is_the_sum_of_objects_and_camera():
    masks, shifts, camera = torch.rand(2, 3, 4, 5), torch.randn(2, 3, 2), torch.randn(2, 2)
    expected = torch.zeros(2, 2, 4, 5)
    for d in range(2):
        expected[:, d] = camera[:, d, None, None]
        for k in range(3):
            expected[:, d] += masks[:, k] * shifts[:, k, d, None, None]
    torch.testing.assert_close(flow(masks, shifts, camera), 0.84 * expected)


def test_the_structural_similarity_equals_a_loop_over_windows():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 13, 12))
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    similarities = []
    for y in range(3):
        for x in range(2):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            both = (window * (p - mp) * (q - mq)).sum()
            like = (2 * mp * mq + 1e-4) * (2 * both + 9e-4)
            similarities.append(like / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    images = [torch.tensor(i, dtype=torch.float32)[None, None] for i in (a, b)]
    assert ssim(images[0], images[1]).item() == pytest.approx(np.mean(similarities), abs=1e-4)


def test_the_weight_of_the_motion_grows_to_one():
    torch.manual_seed(0)
    network = MovingObjects()
    examples = torch.rand(2, 2, 84, 84)
    with torch.no_grad():
        masks, shifts, _ = network(examples)
        motion = (masks[:, :, None] * shifts[..., None, None]).abs().mean()
        for done, weight in ((0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 1.0)):
            loss, parts = network.loss(examples, done)
            torch.testing.assert_close(parts["motion"], motion)
            torch.testing.assert_close(loss, parts["dssim"] + weight * motion)
    assert network.settled * network.recipe.steps == 100_000
    assert [network.learning_rate(1e-4, s, 500_000) for s in (0, 250_000)] == [1e-4, 5e-5]


def test_an_example_is_two_consecutive_frames_in_order(read_examples, atari_store):
    """As the authors ran it: not one frame twice, and not means of frames."""
    examples = read_examples(MovingObjects.training_input, "Pong")
    rows = np.sort(np.concatenate([examples.training["Pong"], examples.held_out["Pong"]]))
    pairs = examples.take(rows, np.random.default_rng(0)).numpy()
    snapshot = take_snapshot(atari_store)
    expected = []
    for meta in snapshot.segments("Pong"):
        screens = levels(snapshot.read_frames(meta), MovingObjects.training_input)
        row = snapshot.read_rows(meta)
        for i in range(1, meta.rows):
            if row["action"][i] >= 0 and not row["is_first"][i]:
                expected.append([screens[row["frame"][i - 1]], screens[row["frame"][i]]])
    np.testing.assert_array_equal(pairs, np.array(expected))
    changed = (pairs[:, 0] != pairs[:, 1]).any(axis=(1, 2))
    assert changed.mean() > 0.5
    assert scale(torch.from_numpy(pairs), "cpu").max() > 0.5  # Not divided by 255 twice.
