from __future__ import annotations

import numpy as np
import pytest

from wsa.learn.probe import linear
from wsa.learn.probe.linear import classify, entropy, f1, principal, ridge
from wsa.learn.probe.splits import Split


def thirds(count: int) -> Split:
    """Of every six moments four are learned from, one checked and one judged."""
    at = np.arange(count)
    return Split(at[at % 6 < 4], at[at % 6 == 4], at[at % 6 == 5])


def line(count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A place from 0 to 9, and an embedding in which a map of it stands between noise."""
    generator = np.random.default_rng(0)
    place = generator.integers(10, size=count)
    rows = generator.normal(size=(count, width))
    rows[:, 0] = 3 * place + 0.1 * generator.normal(size=count)
    return place, rows.astype(np.float32)


def explained(truth: np.ndarray, found: np.ndarray) -> float:
    return 1 - ((truth - found) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()


def test_ridge_is_the_closed_form():
    place, rows = line(240, 5)
    split = thirds(240)
    train = split.train
    centred = rows - rows.mean(axis=0)
    centred /= np.sqrt((centred**2).sum(axis=1).mean())
    mean = centred[train].mean(axis=0)
    scaled = centred - mean
    found = ridge(principal(rows), place[:, None], split)[:, 0]
    penalties = linear.PENALTIES
    expected = [
        scaled[split.test] @ np.linalg.solve(
            scaled[train].T @ scaled[train] + penalty * np.eye(5),
            scaled[train].T @ (place[train] - place[train].mean()),
        ) + place[train].mean()
        for penalty in penalties
    ]  # fmt: skip
    nearest = min(expected, key=lambda one: np.abs(one - found).max())
    np.testing.assert_allclose(found, nearest, atol=1e-4)
    assert explained(place[split.test], found) > 0.99


def test_embeddings_wider_than_there_are_moments_are_read_alike():
    """The same numbers thrice, or turned, tell the same: products of moments are all that counts."""
    place, rows = line(240, 150)
    split = thirds(240)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(450, 450)))[0]
    wide = np.concatenate([rows, rows, rows], axis=1) @ turn
    narrow_found, wide_found = (
        ridge(principal(some), place[:, None], split) for some in (rows, wide)
    )
    np.testing.assert_allclose(wide_found, narrow_found, atol=1e-3)
    assert (
        classify(principal(wide), place, split).tolist()
        == classify(principal(rows), place, split).tolist()
    )


def test_values_in_a_row_are_told_apart():
    """Regression on indicators would never find a value between two others."""
    place, rows = line(600, 4)
    split = thirds(600)
    found = classify(principal(rows), place, split)
    assert f1(place[split.test], found)[0] > 0.95


def test_of_noise_nothing_is_read():
    place, rows = line(600, 4)
    split = thirds(600)
    axes = principal(rows[:, 1:])
    assert explained(place[split.test], ridge(axes, place[:, None], split)[:, 0]) < 0.05
    assert f1(place[split.test], classify(axes, place, split))[0] < 0.25


def test_only_what_is_learned_from_counts():
    """Neither moments that are judged nor those that choose a penalty turn the axes' weights."""
    place, rows = line(240, 5)
    split = thirds(240)
    other = place.copy()
    other[split.test] = 0
    axes = principal(rows)
    assert (classify(axes, place, split) == classify(axes, other, split)).all()
    np.testing.assert_array_equal(
        ridge(axes, place[:, None], split), ridge(axes, other[:, None], split)
    )


def test_a_value_that_never_changes_is_that_value():
    _, rows = line(60, 3)
    split = thirds(60)
    assert set(classify(principal(rows), np.full(60, 7), split)) == {7}


def test_values_may_be_nearly_as_many_as_moments():
    """Of few samples, and without a warning."""
    _, rows = line(60, 3)
    split, values = thirds(60), np.arange(60) // 2
    found = classify(principal(rows), values, split)
    assert set(found) <= set(values[split.fit])
    assert f1(np.arange(40), np.arange(40)) == (1.0, 1.0)


@pytest.mark.parametrize("width", [3, 400])
def test_an_embedding_that_never_changes_tells_nothing(width):
    place, _ = line(240, 1)
    split = thirds(240)
    axes = principal(np.ones((240, width), np.float32))
    assert axes.kept == 0
    assert explained(place[split.test], ridge(axes, place[:, None], split)[:, 0]) <= 0
    assert len(set(classify(axes, place, split))) == 1


@pytest.mark.parametrize("width", [40, 400])
def test_the_leading_axes_are_kept(width):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(240, width)) / (1 + np.arange(width)) ** 1.5
    whole, some = principal(rows), principal(rows, 8)
    assert whole.kept == pytest.approx(1, abs=1e-5)
    assert 0.9 < some.kept < 0.9999
    assert some.rows.shape == (240, 8)
    assert (np.diff((some.rows**2).mean(axis=0)) <= 0).all()
    for axes in (whole, some, whole.leading(8)):
        assert (axes.rows**2).sum(axis=1).mean() == pytest.approx(1)
    np.testing.assert_allclose(np.abs(whole.leading(8).rows), np.abs(some.rows), atol=1e-4)
    assert whole.leading(8).kept == pytest.approx(some.kept, abs=1e-5)
    assert whole.leading(1000).rows.shape == whole.rows.shape


def test_axes_of_wide_embeddings_are_found_on_some_moments(monkeypatch):
    """They are those of all moments where so many moments tell them."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(600, 6)) @ generator.normal(size=(6, 400))
    whole = principal(rows)
    monkeypatch.setattr(linear, "AXES_SAMPLE", 50)
    some = principal(rows)
    assert some.kept == pytest.approx(1, abs=1e-4)
    place = rows[:, :1] * 7
    split = thirds(600)
    np.testing.assert_allclose(
        ridge(some, place, split), ridge(whole, place, split), atol=0.05 * place.std()
    )


@pytest.mark.parametrize("width", [40, 900])
def test_memory_grows_with_what_is_held(width):
    assert linear.memory_bytes(500, width) > 500 * width * 8
    assert (
        linear.memory_bytes(500, width, 3) - linear.memory_bytes(500, width) == 2 * 8 * 500 * width
    )


def test_f1():
    truth, found = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 1])
    each = [2 * 2 / (3 + 2), 2 * 1 / (1 + 3), 0.0]
    assert f1(truth, found) == pytest.approx((np.dot(each, [3, 1, 1]) / 5, np.mean(each)))
    assert f1(truth, truth) == (1.0, 1.0)


def test_entropy():
    assert entropy(np.array([5, 5, 5])) == 0
    assert entropy(np.array([1, 2, 1, 2])) == pytest.approx(np.log(2))
