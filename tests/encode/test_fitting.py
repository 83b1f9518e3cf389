"""Reductions in a store: bases fitted on a game, random projections, and refused outputs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wsa.encode.inference import reduction as bases
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.models import networks
from wsa.encode.models.registry import Request
from wsa.encode.registration import fit_reduction
from wsa.encode.registration.identity import find_model
from wsa.encode.registration.register import open_model, register
from wsa.store.common import names
from wsa.store.common.errors import ConflictError, DamagedError, MissingError, UsageError
from wsa.store.exchange import sync
from wsa.store.maintenance.verify import verify
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

Ask = Callable[..., Request]
OWN = "grid:2+pca:8@Pong"
SEGMENTS = [list(range(12)), list(range(10, 20))]
FRAMES = 22


def test_a_basis_of_a_game_is_fitted_once_on_its_frames(
    store, fill, small, encode_all, estimate_job, noise, make_encoder
):
    fill(store, SEGMENTS)
    fill(store, [[90, 91]], "Breakout")
    request = small("a", OWN)
    assert fit_reduction.frames_needed(take_snapshot(store), parse_output(OWN)) == FRAMES
    assert estimate_job(take_snapshot(store), request, ["Pong"]).fit == FRAMES
    (model,) = encode_all(store, request).models
    assert model.fitted == FRAMES and model.spec.shape == (8,)
    frames = [noise(i) for part in SEGMENTS for i in part]
    expected = bases.fit(make_encoder(request).features(np.stack(frames)), 8)
    assert model.spec.identity.basis == bases.own_recipe(bases.save(expected))
    # The basis stays the same when frames are added later.
    fill(store, [[30, 31, 32]], first=2)
    again = encode_all(store, request)
    assert [(m.spec.key, m.fitted) for m in again.models] == [(model.spec.key, 0)]
    assert again.passes == 3 and take_snapshot(store).models == [model.spec.key]
    assert estimate_job(take_snapshot(store), request, ["Pong"]).fit == 0
    assert open_model(take_snapshot(store), model.spec.key).basis is not None
    assert verify(store).damage == ()


def test_of_two_bases_fitted_at_once_one_is_used(store, fill, small, monkeypatch):
    fill(store, SEGMENTS)
    real, first = fit_reduction.fit, []

    def fit_after_another(*args):
        monkeypatch.setattr(fit_reduction, "fit", real)
        fill(store, [[90, 91]], first=9)  # The other process fits on other frames.
        first.append(register(take_snapshot(store), small("a", OWN), 0.1).spec.key)
        return real(*args)

    monkeypatch.setattr(fit_reduction, "fit", fit_after_another)
    registered = register(take_snapshot(store), small("a", OWN), 0.1)
    assert [registered.spec.key] == first == take_snapshot(store).models


def test_bases_that_two_stores_fit_are_two_models(store, tmp_path, fill, small):
    other = open_store(str(tmp_path / "other"), create=True)
    fill(store, SEGMENTS)
    fill(other, [list(range(40, 60))], first=7)
    request = small("a", OWN)
    keys = [register(take_snapshot(s), request, 0.1).spec.key for s in (store, other)]
    assert len(set(keys)) == 2
    source = take_snapshot(other)
    sync.copy(source, store, sync.plan_sync(source, take_snapshot(store)))
    snapshot = take_snapshot(store)
    assert snapshot.models == sorted(keys)
    for ask in (find_model, lambda s, r: register(s, r, 0.1)):
        with pytest.raises(ConflictError, match="Name one by its key"):
            ask(snapshot, request)


def test_a_swapped_basis_of_a_game_is_damage(store, fill, small, monkeypatch):
    fill(store, SEGMENTS)
    key = register(take_snapshot(store), small("a", OWN), 0.1).spec.key
    real = bases.own_recipe
    monkeypatch.setattr(bases, "own_recipe", lambda basis: real(basis)[::-1])
    with pytest.raises(DamagedError, match="another model"):
        open_model(take_snapshot(store), key)


def test_without_frames_of_the_game_the_error_says_how_to_collect_them(store, small):
    with pytest.raises(MissingError, match="wsa collect --game Pong") as caught:
        register(take_snapshot(store), small("a", OWN), 0.1)
    assert caught.value.kind == "no-frames" and take_snapshot(store).models == []


def test_a_basis_is_fitted_on_frames_of_all_segments(store, fill, noise):
    fill(store, [list(range(9)), [9], list(range(10, 21))])
    parts = fit_reduction.game_inputs(take_snapshot(store), "Pong", 1, 5)
    expected = np.stack([noise(i) for i in (0, 5, 10, 15, 20)])
    np.testing.assert_array_equal(np.concatenate(parts), expected)


# The random projection.


def test_a_random_projection_stores_no_basis_and_is_the_same_in_every_store(
    store, tmp_path, small, frames, make_encoder
):
    other = open_store(str(tmp_path / "other"), create=True)
    request = small("a", "map+rp:32")
    one, two = (register(take_snapshot(s), request, 0.1) for s in (store, other))
    assert one.spec == two.spec and one.fitted == 0 and one.spec.shape == (32,)
    key = one.spec.key
    folder = f"{names.model_path(key)}/"
    assert {f.path.rpartition("/")[2] for f in store.list(folder)} == {
        "spec.json",
        "probe.safetensors",
    }
    whole = make_encoder(request)(frames[:3])
    signs = bases.signs(whole[0].size, 32)
    projected = open_model(take_snapshot(store), key)(frames[:3])
    np.testing.assert_allclose(
        projected, whole.reshape(3, -1) @ signs / 32**0.5, rtol=2e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("resnet", "cls", "no class token"),
        ("vit", "grid:99", "feature map of 10 x 10. Ask for grid:10"),
        ("resnet", "grid:6", "feature map of 5 x 5. Ask for grid:5"),
        ("resnet", "grid:6+rp:4", "Ask for grid:5"),
        ("mambaout", "cls+pca:4", "no class token"),
    ],
)
def test_an_output_that_a_model_lacks_is_refused_before_anything_is_written(
    name, output, message, store, fill, tiny, encode_all, estimate_job
):
    fill(store, [[0]])
    request = tiny(name, output)
    for ask in (
        lambda: encode_all(store, request),
        lambda: estimate_job(take_snapshot(store), request, ["Pong"]),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value) and output in str(caught.value)
    assert take_snapshot(store).models == []


def test_the_output_cls_is_the_class_token_of_the_model(tiny, frames, make_encoder):
    encoder = make_encoder(tiny("vit", "cls"))
    pixels = preprocess(torch.from_numpy(frames[:2]), encoder.preprocessing)
    with torch.inference_mode():
        features = networks.build(tiny("vit", "cls")).forward_features(pixels)
    np.testing.assert_allclose(encoder(frames[:2]), features[:, 0], rtol=1e-4, atol=1e-5)
