from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from wsa.encode.inference import reduction as bases
from wsa.store.common.errors import UsageError


def data(seed: int, count: int, places: int, width: int) -> Tensor:
    """Features whose directions differ in spread, so that principal directions are well defined."""
    rng = np.random.default_rng(seed)
    size = places * width
    mixed = rng.normal(size=(count, size)) * 0.8 ** np.arange(size)
    turned = mixed @ np.linalg.qr(rng.normal(size=(size, size)))[0] + rng.normal(size=size)
    return torch.tensor(turned.reshape(count, places, width), dtype=torch.float32)


def svd(features: Tensor, numbers: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and leading directions (D, K), by numpy alone."""
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
def test_it_spans_what_a_singular_value_decomposition_spans(
    seed: int, count: int, places: int, numbers: int
) -> None:
    features = data(seed, count, places, 5)  # Fewer channels than CHANNELS: one step only.
    fitted = bases.fit(features, numbers)
    _, directions = svd(features, numbers)
    grid = fitted.grid.double().numpy()
    np.testing.assert_allclose(grid.T @ grid, np.eye(numbers), atol=2e-3)
    np.testing.assert_allclose(grid @ grid.T, directions @ directions.T, atol=4e-3)


def test_projections_are_of_centred_features_and_ordered_by_variance() -> None:
    features = data(0, 60, 4, 5)
    found = bases.fit(features, 6)(features).double().numpy()
    assert found.shape == (60, 6)
    mean, directions = svd(features, 6)
    wanted = (features.flatten(1).double().numpy() - mean) @ directions
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-2 * np.abs(wanted).max())
    np.testing.assert_allclose(found.var(axis=0), wanted.var(axis=0), rtol=5e-3)
    assert (np.diff(found.var(axis=0)) < 0).all()


def test_the_channel_step_costs_little_where_channels_are_alike() -> None:
    rng = np.random.default_rng(3)
    width, rank = bases.CHANNELS + 40, 20
    low = rng.normal(size=(120, 4, rank)) @ rng.normal(size=(rank, width))
    features = torch.tensor(low, dtype=torch.float32)
    fitted = bases.fit(features, 16)
    assert fitted.channels.shape == (width, bases.CHANNELS)
    mean, directions = svd(features, 16)
    best = ((features.flatten(1).double().numpy() - mean) @ directions).var(axis=0).sum()
    assert fitted(features).double().numpy().var(axis=0).sum() / best == pytest.approx(1, abs=5e-3)


def test_a_fit_is_repeatable_and_its_signs_are_set() -> None:
    features = data(5, 30, 4, 6)
    one, two = bases.fit(features, 5), bases.fit(features.clone(), 5)
    assert bases.save(one) == bases.save(two)
    largest = one.grid.abs().argmax(dim=0)
    assert (one.grid[largest, torch.arange(5)] > 0).all()
    # Other frames in another order turn no direction around.
    moved = bases.fit(features.flip(0), 5)
    torch.testing.assert_close(moved.grid, one.grid, atol=5e-3, rtol=0)


def test_what_is_saved_is_what_was_used() -> None:
    features = data(6, 30, 4, 6)
    fitted = bases.fit(features, 5)
    again = bases.load(bases.save(fitted))
    assert torch.equal(again(features), fitted(features))
    assert bases.save(again) == bases.save(fitted)


def test_rows_are_reduced_one_by_one() -> None:
    features = data(7, 30, 9, 40)
    fitted = bases.fit(features, 20)
    together = fitted(features)
    for at in range(30):
        assert torch.equal(fitted(features[at : at + 1])[0], together[at])


@pytest.mark.parametrize(
    ("count", "places", "width", "most"), [(9, 4, 5, 8), (60, 4, 5, 20), (60, 1, 3, 3)]
)
def test_no_more_numbers_than_there_are(count: int, places: int, width: int, most: int) -> None:
    features = data(8, count, places, width)
    assert bases.fit(features, most)(features).shape == (count, most)
    with pytest.raises(UsageError, match=f"at most {most}") as caught:
        bases.fit(features, most + 1)
    assert caught.value.kind == "bad-option"


def test_a_recipe_says_on_what_a_basis_is_fitted() -> None:
    assert bases.recipe("a") == bases.recipe("a") != bases.recipe("b")


# The random projection.


def test_the_signs_are_these_on_every_machine_and_in_every_process() -> None:
    drawn = hashlib.sha256(bases.signs(1000, 33).tobytes()).hexdigest()
    assert drawn == "b275b4cdcc99581356336b14c7bd28e1c418e000b8e9021bf912c26006f06ef2"


def test_signs_are_signs_and_as_many_of_either() -> None:
    drawn = bases.signs(999, 65)
    assert drawn.shape == (999, 65) and set(np.unique(drawn)) == {-1, 1}
    assert abs(drawn.mean()) < 0.02


def test_a_projection_keeps_distances() -> None:
    rows = data(9, 20, 49, 30)
    found = bases.Projection(1024)(rows)
    assert found.shape == (20, 1024)
    kept = torch.cdist(found, found) / torch.cdist(rows.flatten(1), rows.flatten(1))
    assert (kept[~torch.eye(20, dtype=torch.bool)] - 1).abs().max() < 0.12


def test_projected_rows_are_made_one_by_one() -> None:
    rows = data(10, 30, 9, 40)
    together = bases.Projection(20)(rows)
    for at in range(30):
        assert torch.equal(bases.Projection(20)(rows[at : at + 1])[0], together[at])


def test_what_stands_for_a_reduction_differs_from_every_other() -> None:
    one, two = (bases.fit(data(seed, 30, 4, 6), 5) for seed in (1, 2))
    own = [bases.own_recipe(bases.save(basis)) for basis in (one, two)]
    assert len({bases.recipe("a"), bases.random_recipe(), *own}) == 4
    assert own[0] == bases.own_recipe(bases.save(one))
