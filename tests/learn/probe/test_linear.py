"""Linear probes: ridge regression, classification, principal axes, and their measures."""

import numpy as np
import pytest

from wsa.learn.probe import linear
from wsa.learn.probe.linear import classify, entropy, f1, principal, ridge
from wsa.learn.probe.splits import Split


def split_sixths(count):
    """Of every six steps, fit four, check one, and test one."""
    at = np.arange(count)
    return Split(at[at % 6 < 4], at[at % 6 == 4], at[at % 6 == 5])


def make_data(count, width):
    """A place from 0 to 9, and embeddings whose first number is a noisy multiple of it."""
    generator = np.random.default_rng(0)
    place = generator.integers(10, size=count)
    rows = generator.normal(size=(count, width))
    rows[:, 0] = 3 * place + 0.1 * generator.normal(size=count)
    return place, rows.astype(np.float32)


def r2(truth, predicted):
    return 1 - ((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()


def test_ridge_is_the_closed_form():
    place, rows = make_data(240, 5)
    split = split_sixths(240)
    train = split.train
    centered = rows - rows.mean(axis=0)
    centered /= np.sqrt((centered**2).sum(axis=1).mean())
    scaled = centered - centered[train].mean(axis=0)
    predicted = ridge(principal(rows), place[:, None], split)[:, 0]
    solutions = [
        scaled[split.test] @ np.linalg.solve(
            scaled[train].T @ scaled[train] + penalty * np.eye(5),
            scaled[train].T @ (place[train] - place[train].mean()),
        ) + place[train].mean()
        for penalty in linear.PENALTIES
    ]  # fmt: skip
    nearest = min(solutions, key=lambda one: np.abs(one - predicted).max())
    np.testing.assert_allclose(predicted, nearest, atol=1e-4)
    assert r2(place[split.test], predicted) > 0.99


def test_rotated_and_repeated_embeddings_give_the_same_predictions():
    """Also where embeddings have more numbers than there are steps."""
    place, rows = make_data(240, 150)
    split = split_sixths(240)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(450, 450)))[0]
    wide = principal(np.concatenate([rows, rows, rows], axis=1) @ rotation)
    narrow = principal(rows)
    np.testing.assert_allclose(
        ridge(wide, place[:, None], split), ridge(narrow, place[:, None], split), atol=1e-3
    )
    np.testing.assert_array_equal(classify(wide, place, split), classify(narrow, place, split))


def test_ordered_values_are_classified():
    """Regression on indicators would never predict a value between two others."""
    place, rows = make_data(600, 4)
    split = split_sixths(600)
    assert f1(place[split.test], classify(principal(rows), place, split))[0] > 0.95


def test_noise_predicts_nothing():
    place, rows = make_data(600, 4)
    split = split_sixths(600)
    axes = principal(rows[:, 1:])
    assert r2(place[split.test], ridge(axes, place[:, None], split)[:, 0]) < 0.05
    assert f1(place[split.test], classify(axes, place, split))[0] < 0.25


def test_tested_samples_do_not_influence_the_predictions():
    place, rows = make_data(240, 5)
    split = split_sixths(240)
    other = place.copy()
    other[split.test] = 0
    axes = principal(rows)
    assert (classify(axes, place, split) == classify(axes, other, split)).all()
    np.testing.assert_array_equal(
        ridge(axes, place[:, None], split), ridge(axes, other[:, None], split)
    )


def test_a_constant_value_is_predicted():
    _, rows = make_data(60, 3)
    split = split_sixths(60)
    assert set(classify(principal(rows), np.full(60, 7), split)) == {7}


@pytest.mark.parametrize("width", [3, 400])
def test_a_constant_embedding_predicts_nothing(width):
    place, _ = make_data(240, 1)
    split = split_sixths(240)
    axes = principal(np.ones((240, width), np.float32))
    assert axes.kept == 0
    assert r2(place[split.test], ridge(axes, place[:, None], split)[:, 0]) <= 0
    assert len(set(classify(axes, place, split))) == 1


@pytest.mark.parametrize("width", [40, 400])
def test_the_leading_axes_are_kept(width):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(240, width)) / (1 + np.arange(width)) ** 1.5
    every, eight = principal(rows), principal(rows, 8)
    assert every.kept == pytest.approx(1, abs=1e-5)
    assert 0.9 < eight.kept < 0.9999
    assert eight.rows.shape == (240, 8)
    assert (np.diff((eight.rows**2).mean(axis=0)) <= 0).all()
    for axes in (every, eight, every.leading(8)):
        assert (axes.rows**2).sum(axis=1).mean() == pytest.approx(1)
    np.testing.assert_allclose(np.abs(every.leading(8).rows), np.abs(eight.rows), atol=1e-4)
    assert every.leading(8).kept == pytest.approx(eight.kept, abs=1e-5)
    assert every.leading(1000).rows.shape == every.rows.shape


def test_axes_of_wide_embeddings_are_fitted_on_a_sample(monkeypatch):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(600, 6)) @ generator.normal(size=(6, 400))
    every = principal(rows)
    monkeypatch.setattr(linear, "AXES_SAMPLE", 50)
    sampled = principal(rows)
    assert sampled.kept == pytest.approx(1, abs=1e-4)
    place = rows[:, :1] * 7
    split = split_sixths(600)
    np.testing.assert_allclose(
        ridge(sampled, place, split), ridge(every, place, split), atol=0.05 * place.std()
    )


def test_f1_and_entropy():
    truth, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 1])
    each = [2 * 2 / (3 + 2), 2 * 1 / (1 + 3), 0.0]
    assert f1(truth, predicted) == pytest.approx((np.dot(each, [3, 1, 1]) / 5, np.mean(each)))
    assert f1(truth, truth) == f1(np.arange(40), np.arange(40)) == (1.0, 1.0)
    assert entropy(np.array([5, 5, 5])) == 0
    assert entropy(np.array([1, 2, 1, 2])) == pytest.approx(np.log(2))
