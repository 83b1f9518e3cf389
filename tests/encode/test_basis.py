"""Reductions: bases from a principal component analysis, and random projections."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa.encode.inference import reduction as bases
from wsa.store.common.errors import UsageError


def make_features(seed, count, places, width):
    """Features with a different spread in each direction, so that principal axes are well defined."""
    rng = np.random.default_rng(seed)
    size = places * width
    spread = rng.normal(size=(count, size)) * 0.8 ** np.arange(size)
    rotated = spread @ np.linalg.qr(rng.normal(size=(size, size)))[0] + rng.normal(size=size)
    return torch.tensor(rotated.reshape(count, places, width), dtype=torch.float32)


def svd(features, numbers):
    """Mean and leading directions (D, K), computed with numpy."""
    flat = features.flatten(1).double().numpy()
    mean = flat.mean(axis=0)
    return mean, np.linalg.svd(flat - mean, full_matrices=False)[2][:numbers].T


@settings(max_examples=20)
@given(
    seed=st.integers(0, 99),
    count=st.sampled_from([9, 40]),
    places=st.sampled_from([1, 4]),
    numbers=st.integers(1, 4),
)
def test_a_basis_spans_the_leading_singular_vectors(seed, count, places, numbers):
    features = make_features(
        seed, count, places, 5
    )  # Fewer channels than CHANNELS, so the channel step is skipped.
    fitted = bases.fit(features, numbers)
    _, directions = svd(features, numbers)
    grid = fitted.grid.double().numpy()
    np.testing.assert_allclose(grid.T @ grid, np.eye(numbers), atol=2e-3)
    np.testing.assert_allclose(grid @ grid.T, directions @ directions.T, atol=4e-3)


def test_coordinates_are_centered_and_ordered_by_variance():
    features = make_features(0, 60, 4, 5)
    coordinates = bases.fit(features, 6)(features).double().numpy()
    assert coordinates.shape == (60, 6)
    mean, directions = svd(features, 6)
    expected = (features.flatten(1).double().numpy() - mean) @ directions
    np.testing.assert_allclose(coordinates.mean(axis=0), 0, atol=1e-2 * np.abs(expected).max())
    np.testing.assert_allclose(coordinates.var(axis=0), expected.var(axis=0), rtol=5e-3)
    assert (np.diff(coordinates.var(axis=0)) < 0).all()


def test_the_channel_step_loses_little_variance_of_correlated_channels():
    rng = np.random.default_rng(3)
    width, rank = bases.CHANNELS + 40, 20
    low = rng.normal(size=(120, 4, rank)) @ rng.normal(size=(rank, width))
    features = torch.tensor(low, dtype=torch.float32)
    fitted = bases.fit(features, 16)
    assert fitted.channels.shape == (width, bases.CHANNELS)
    mean, directions = svd(features, 16)
    best = ((features.flatten(1).double().numpy() - mean) @ directions).var(axis=0).sum()
    assert fitted(features).double().numpy().var(axis=0).sum() / best == pytest.approx(1, abs=5e-3)


def test_a_fit_is_reproducible_and_its_signs_are_fixed():
    features = make_features(5, 30, 4, 6)
    one, two = bases.fit(features, 5), bases.fit(features.clone(), 5)
    assert bases.save(one) == bases.save(two)
    largest = one.grid.abs().argmax(dim=0)
    assert (one.grid[largest, torch.arange(5)] > 0).all()
    # The order of frames flips no direction.
    moved = bases.fit(features.flip(0), 5)
    torch.testing.assert_close(moved.grid, one.grid, atol=5e-3, rtol=0)


def test_a_saved_basis_gives_the_same_coordinates():
    features = make_features(6, 30, 4, 6)
    fitted = bases.fit(features, 5)
    loaded = bases.load(bases.save(fitted))
    assert torch.equal(loaded(features), fitted(features))
    assert bases.save(loaded) == bases.save(fitted)


@pytest.mark.parametrize("kind", ["basis", "projection"])
def test_a_reduced_row_does_not_depend_on_other_rows(kind):
    features = make_features(7, 30, 9, 40)
    reduce = bases.fit(features, 20) if kind == "basis" else bases.Projection(20)
    together = reduce(features)
    for at in range(30):
        assert torch.equal(reduce(features[at : at + 1])[0], together[at])


@pytest.mark.parametrize(
    ("count", "places", "width", "most"), [(9, 4, 5, 8), (60, 4, 5, 20), (60, 1, 3, 3)]
)
def test_a_basis_has_fewer_numbers_than_frames_and_features(count, places, width, most):
    features = make_features(8, count, places, width)
    assert bases.fit(features, most)(features).shape == (count, most)
    with pytest.raises(UsageError, match=f"at most {most}") as caught:
        bases.fit(features, most + 1)
    assert caught.value.kind == "bad-option"


# The random projection.


def test_the_signs_are_the_same_on_every_machine():
    drawn = hashlib.sha256(bases.signs(1000, 33).tobytes()).hexdigest()
    assert drawn == "b275b4cdcc99581356336b14c7bd28e1c418e000b8e9021bf912c26006f06ef2"


def test_every_reduction_has_a_recipe_of_its_own():
    assert bases.recipe("a") == bases.recipe("a") != bases.recipe("b")
    one, two = (bases.fit(make_features(seed, 30, 4, 6), 5) for seed in (1, 2))
    own = [bases.own_recipe(bases.save(basis)) for basis in (one, two)]
    assert len({bases.recipe("a"), bases.random_recipe(), *own}) == 4
    assert own[0] == bases.own_recipe(bases.save(one))
