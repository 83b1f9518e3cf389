from __future__ import annotations

import numpy as np
import pytest

from wsa.learn.probe import linear
from wsa.learn.probe.linear import Split, classify, entropy, f1, principal, r2, ridge


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


def test_ridge_is_the_closed_form():
    place, rows = line(240, 5)
    split = thirds(240)
    train = split.train
    mean = rows[train].mean(axis=0)
    scaled = (rows - mean) / np.sqrt(((rows[train] - mean) ** 2).sum(axis=1).mean())
    found = ridge(principal(rows, split), place[:, None], split)[:, 0]
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
    assert r2(place[split.test, None], found[:, None])[0] > 0.99


def test_embeddings_wider_than_there_are_moments_are_read_alike():
    """The same numbers thrice, or turned, tell the same: products of moments are all that counts."""
    place, rows = line(240, 150)
    split = thirds(240)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(450, 450)))[0]
    wide = np.concatenate([rows, rows, rows], axis=1) @ turn
    narrow_found, wide_found = (
        ridge(principal(some, split), place[:, None], split) for some in (rows, wide)
    )
    np.testing.assert_allclose(wide_found, narrow_found, atol=1e-3)
    assert (
        classify(principal(wide, split), place, split).tolist()
        == classify(principal(rows, split), place, split).tolist()
    )


def test_values_in_a_row_are_told_apart():
    """Regression on indicators would never find a value between two others."""
    place, rows = line(600, 4)
    split = thirds(600)
    found = classify(principal(rows, split), place, split)
    assert f1(place[split.test], found)[0] > 0.95


def test_of_noise_nothing_is_read():
    place, rows = line(600, 4)
    split = thirds(600)
    axes = principal(rows[:, 1:], split)
    assert r2(place[split.test, None], ridge(axes, place[:, None], split))[0] < 0.05
    assert f1(place[split.test], classify(axes, place, split))[0] < 0.25


def test_only_what_is_learned_from_counts():
    """Neither moments that are judged nor those that choose a penalty turn the axes' weights."""
    place, rows = line(240, 5)
    split = thirds(240)
    other = place.copy()
    other[split.test] = 0
    axes = principal(rows, split)
    assert (classify(axes, place, split) == classify(axes, other, split)).all()
    np.testing.assert_array_equal(
        ridge(axes, place[:, None], split), ridge(axes, other[:, None], split)
    )


def test_a_value_that_never_changes_is_that_value():
    _, rows = line(60, 3)
    split = thirds(60)
    assert set(classify(principal(rows, split), np.full(60, 7), split)) == {7}
    assert np.isnan(r2(np.full((5, 1), 7.0), np.zeros((5, 1))))[0]


@pytest.mark.parametrize("width", [40, 400])
def test_the_leading_axes_are_kept(monkeypatch, width):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(240, width)) / (1 + np.arange(width)) ** 1.5
    split = thirds(240)
    whole = principal(rows, split, None)
    exact = principal(rows, split, 8)
    monkeypatch.setattr(linear, "_EXACT", 16)
    found = principal(rows, split, 8)
    assert whole.kept == pytest.approx(1, abs=1e-5)
    assert found.kept == pytest.approx(exact.kept, abs=1e-4)
    assert 0.9 < found.kept < 0.9999
    assert found.rows.shape == (240, 8)
    here, there = (np.sort((axes.rows**2).mean(axis=0)) for axes in (found, exact))
    np.testing.assert_allclose(here, there, atol=2e-3)


def test_f1():
    truth, found = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 1])
    each = [2 * 2 / (3 + 2), 2 * 1 / (1 + 3), 0.0]
    assert f1(truth, found) == pytest.approx((np.dot(each, [3, 1, 1]) / 5, np.mean(each)))
    assert f1(truth, truth) == (1.0, 1.0)


def test_r2():
    truth = np.array([[1.0], [2.0], [3.0]])
    assert r2(truth, truth)[0] == 1
    assert r2(truth, np.full((3, 1), 2.0))[0] == 0
    assert r2(truth, truth[::-1])[0] == -3


def test_entropy():
    assert entropy(np.array([5, 5, 5])) == 0
    assert entropy(np.array([1, 2, 1, 2])) == pytest.approx(np.log(2))
