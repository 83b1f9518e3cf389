from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wsa.encode.inference import reduction as bases
from wsa.encode.inference.encoder import Encoder
from wsa.encode.jobs.dry_run import Estimate
from wsa.encode.jobs.run import encode
from wsa.encode.models import registry
from wsa.encode.models.registry import Request
from wsa.encode.registration import fit_reduction
from wsa.encode.registration.identity import find_model
from wsa.encode.registration.register import open_model, register
from wsa.store.backends.base import Backend
from wsa.store.common import names
from wsa.store.common.errors import ConflictError, DamagedError, MissingError, UsageError
from wsa.store.exchange import sync
from wsa.store.maintenance.verify import verify
from wsa.store.objects.model_spec import parse_output, read_spec
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

Ask = Callable[..., Request]
OWN = "grid:2+pca:8@Pong"
SEGMENTS = [list(range(12)), list(range(10, 20))]
FRAMES = 22


def test_a_basis_of_a_game_is_fitted_on_the_stores_frames_of_it_once(
    store: Backend,
    fill: Callable[..., Any],
    tiny: Ask,
    estimated: Callable[..., Estimate],
    noise: Callable[[int], NDArray[np.uint8]],
    encoder_of: Callable[..., Encoder],
) -> None:
    fill(store, SEGMENTS)
    fill(store, [[90, 91]], "Breakout")
    request = tiny("resnet", OWN)
    assert fit_reduction.frames_needed(take_snapshot(store), parse_output(OWN)) == FRAMES
    assert estimated(take_snapshot(store), request, ["Pong"]).strip == FRAMES
    report = encode(store, [request], scheduler="inproc", device="cpu")
    (model,) = report.models
    assert model.fitted == FRAMES and model.spec.shape == (8,)
    shown = [noise(i) for part in SEGMENTS for i in part]
    wanted = bases.fit(encoder_of(request).features(np.stack(shown)), 8)
    assert model.spec.identity.basis == bases.own_recipe(bases.save(wanted))
    # More frames later change nothing: the basis is the one that was fitted.
    fill(store, [[30, 31, 32]], first=2)
    again = encode(store, [request], scheduler="inproc", device="cpu")
    assert [(m.spec.key, m.fitted) for m in again.models] == [(model.spec.key, 0)]
    assert again.passes == 3 and take_snapshot(store).models == [model.spec.key]
    assert estimated(take_snapshot(store), request, ["Pong"]).strip == 0
    assert open_model(take_snapshot(store), model.spec.key).basis is not None
    assert verify(store).damage == ()


def test_of_two_who_fit_a_games_basis_at_once_one_takes_the_others(
    store: Backend, fill: Callable[..., Any], tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, SEGMENTS)
    real, first = fit_reduction.fit, []

    def slow(*args: Any) -> Any:
        monkeypatch.setattr(fit_reduction, "fit", real)
        fill(store, [[90, 91]], first=9)  # So that the other fits on other frames.
        first.append(register(take_snapshot(store), tiny("resnet", OWN), 0.1).spec.key)
        return real(*args)

    monkeypatch.setattr(fit_reduction, "fit", slow)
    made = register(take_snapshot(store), tiny("resnet", OWN), 0.1)
    assert [made.spec.key] == first == take_snapshot(store).models


def test_two_labs_bases_of_a_game_are_two_models(
    store: Backend, tmp_path: Path, fill: Callable[..., Any], tiny: Ask
) -> None:
    other = open_store(str(tmp_path / "other"), create=True)
    fill(store, SEGMENTS)
    fill(other, [list(range(40, 60))], first=7)
    request = tiny("resnet", OWN)
    keys = [register(take_snapshot(s), request, 0.1).spec.key for s in (store, other)]
    assert len(set(keys)) == 2
    theirs = take_snapshot(other)
    sync.copy(theirs, store, sync.plan_sync(theirs, take_snapshot(store)))
    snapshot = take_snapshot(store)
    assert snapshot.models == sorted(keys)
    for ask in (find_model, lambda s, r: register(s, r, 0.1)):
        with pytest.raises(ConflictError, match="Name one by its key"):
            ask(snapshot, request)


def test_another_basis_in_place_of_a_games_own_is_damage(
    store: Backend, fill: Callable[..., Any], tiny: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, SEGMENTS)
    key = register(take_snapshot(store), tiny("resnet", OWN), 0.1).spec.key
    real = bases.own_recipe
    monkeypatch.setattr(bases, "own_recipe", lambda basis: real(basis)[::-1])
    with pytest.raises(DamagedError, match="another model"):
        open_model(take_snapshot(store), key)


def test_without_frames_of_the_game_it_says_how_to_get_some(store: Backend, tiny: Ask) -> None:
    with pytest.raises(MissingError, match="wsa collect --game Pong") as caught:
        register(take_snapshot(store), tiny("resnet", OWN), 0.1)
    assert caught.value.kind == "no-frames" and take_snapshot(store).models == []


def test_more_numbers_than_frames_are_refused(
    store: Backend, fill: Callable[..., Any], tiny: Ask
) -> None:
    fill(store, SEGMENTS)
    with pytest.raises(UsageError, match=f"at most {FRAMES - 1}"):
        register(take_snapshot(store), tiny("resnet", f"grid:2+pca:{FRAMES}@Pong"), 0.1)


def test_frames_are_spread_over_all_segments(
    store: Backend,
    fill: Callable[..., Any],
    noise: Callable[[int], NDArray[np.uint8]],
) -> None:
    fill(store, [list(range(9)), [9], list(range(10, 21))])
    parts = fit_reduction.game_inputs(take_snapshot(store), "Pong", 1, 5)
    wanted = np.stack([noise(i) for i in (0, 5, 10, 15, 20)])
    np.testing.assert_array_equal(np.concatenate(parts), wanted)


# The random projection, in a store.


def test_a_projection_stores_nothing_and_is_the_same_for_everyone(
    store: Backend,
    tmp_path: Path,
    tiny: Ask,
    frames: NDArray[np.uint8],
    encoder_of: Callable[..., Encoder],
) -> None:
    other = open_store(str(tmp_path / "other"), create=True)
    request = tiny("vit", "map+rp:32")
    made = [register(take_snapshot(s), request, 0.1) for s in (store, other)]
    assert made[0].spec == made[1].spec and made[0].fitted == 0 and made[0].spec.shape == (32,)
    key = made[0].spec.key
    folder = f"{names.model_path(key)}/"
    assert {f.path.rpartition("/")[2] for f in store.list(folder)} == {
        "spec.json",
        "probe.safetensors",
    }
    whole = encoder_of(request)(frames[:3])
    signs = bases.signs(whole[0].size, 32)
    found = open_model(take_snapshot(store), key)(frames[:3])
    np.testing.assert_allclose(found, whole.reshape(3, -1) @ signs / 32**0.5, rtol=2e-4, atol=1e-4)


@pytest.mark.variants
@pytest.mark.parametrize(
    ("name", "output", "geometry"),
    [("resnet", "map+rp:8", "pad"), ("vit", "cls", "squash"), ("vit", "map", "crop")],
)
def test_geometries_and_outputs_are_kept_apart_and_found(
    name: str, output: str, geometry: Any,
    store: Backend, fill: Callable[..., Any], tiny: Ask, estimated: Callable[..., Estimate],
) -> None:  # fmt: skip
    fill(store, [[0, 1]])
    asked = [tiny(name, output, geometry=geometry), tiny(name, "pooled"), tiny(name, output)]
    encode(store, list(dict.fromkeys(asked)), scheduler="inproc", device="cpu")
    snapshot = take_snapshot(store)
    specs = [find_model(snapshot, request) for request in asked]
    assert None not in specs and len({s.key for s in specs if s}) == len(set(asked))
    assert [read_spec(snapshot, s.key).identity.output for s in specs if s] == [
        output,
        "pooled",
        output,
    ]
    assert specs[0] and specs[0].identity.preprocessing.geometry == geometry
    for request in asked:
        line = estimated(snapshot, request, ["Pong"])
        spec = find_model(snapshot, request)
        assert spec and line.passes == 0 and line.objects == 0 and line.strip == 0
    for spec in specs:
        assert spec and open_model(snapshot, spec.key).passes == 0


@pytest.mark.parametrize(
    ("name", "output", "said"),
    [
        ("resnet", "cls", "no class token"),
        ("vit", "grid:99", "feature map of 10 x 10. Ask for grid:10"),
        ("resnet", "grid:6", "feature map of 5 x 5. Ask for grid:5"),
        ("resnet", "grid:6+rp:4", "Ask for grid:5"),
        ("mambaout", "cls+pca:4", "no class token"),
    ],
)
def test_an_output_that_a_model_cannot_give_is_refused_before_anything_is_written(
    name: str, output: str, said: str,
    store: Backend, fill: Callable[..., Any], tiny: Ask, estimated: Callable[..., Estimate],
) -> None:  # fmt: skip
    fill(store, [[0]])
    request = tiny(name, output)
    for ask in (
        lambda: encode(store, [request], scheduler="inproc", device="cpu"),
        lambda: estimated(take_snapshot(store), request, ["Pong"]),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            ask()
        assert "\n" not in str(caught.value) and output in str(caught.value)
    assert take_snapshot(store).models == []


def test_a_class_token_is_the_models_own(
    tiny: Ask, frames: NDArray[np.uint8], encoder_of: Callable[..., Encoder]
) -> None:
    import torch

    from wsa.encode.inference.preprocess import preprocess

    encoder = encoder_of(tiny("vit", "cls"))
    pixels = preprocess(torch.from_numpy(frames[:2]), encoder.preprocessing)
    with torch.inference_mode():
        features = registry.build(tiny("vit", "cls")).forward_features(pixels)
    np.testing.assert_allclose(encoder(frames[:2]), features[:, 0], rtol=1e-4, atol=1e-5)
