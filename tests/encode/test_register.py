"""Registering and opening models: keys, probes, bases, drift, lost records, and precision."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re

import msgspec
import numpy as np
import pytest
import safetensors.torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wsa.encode.inference import preprocess
from wsa.encode.inference import reduction as bases
from wsa.encode.inference.encoder import stored
from wsa.encode.models import networks
from wsa.encode.models.registry import Request, parse_request
from wsa.encode.registration import identity, probe_frames, register
from wsa.encode.registration.identity import find_model
from wsa.encode.registration.register import open_model
from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, MissingError
from wsa.store.format.records import EmbeddingMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects import probe
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_embedding

REDUCED = "grid:2+pca:32"
STRIP_FRAMES = sum(len(part.frames) for part in probe_frames.load_frames())


def register_in(store, request, max_step_error=0.1):
    return register.register(take_snapshot(store), request, max_step_error)


# The step error.

VECTORS = arrays.arrays(np.float32, (6, 3), elements=st.floats(-100, 100, width=32))


@given(VECTORS, st.floats(0.01, 100), st.integers(0, 99))
def test_a_step_error_scales_with_the_error(reference, scale, seed):
    reference = reference.astype(np.float64)
    reference[1::2] += [1.0, 0, 0]  # Almost every step changes something.
    error = np.random.default_rng(seed).normal(size=reference.shape)
    assert probe.step_error(reference, reference) == 0
    step_error = probe.step_error(reference + error, reference)
    assert step_error > 0
    scaled = probe.step_error(reference + scale * error, reference)
    assert scaled == pytest.approx(scale * step_error)


def test_a_step_error_of_one_is_the_change_of_one_step():
    reference = np.array([[0.0], [2], [10], [12], [20], [22]])
    assert probe.step_error(reference + 2, reference) == 1
    assert probe.step_error(reference - 0.5, reference) == 0.25


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_error_is_infinite_for_infinite_numbers_and_other_shapes(bad):
    reference = np.arange(8.0).reshape(4, 2)
    broken = reference.copy()
    broken[2, 1] = bad
    assert probe.step_error(broken, reference) == np.inf
    assert probe.step_error(reference, broken) == np.inf
    assert probe.step_error(reference[:, :1], reference) == np.inf
    assert probe.step_error(reference.reshape(4, 2, 1), reference) == np.inf


# The key and the weights.


def test_library_versions_are_recorded_but_not_part_of_the_key(store, tmp_path, small, monkeypatch):
    spec = register_in(store, small()).spec
    assert spec.libraries["torchvision"] == importlib.metadata.version("torchvision")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0")
    other = register_in(open_store(str(tmp_path / "other"), create=True), small()).spec
    assert other.libraries["torchvision"] == "99.0"
    assert other.key == spec.key


def test_counters_of_batch_normalization_are_not_part_of_the_weights(tiny):
    module = networks.build(tiny("resnet"))
    before = identity.weights_digest(module)
    counters = [b for n, b in module.named_buffers() if n.endswith("num_batches_tracked")]
    for counter in counters:
        counter.fill_(12345)
    assert counters and identity.weights_digest(module) == before
    next(module.parameters()).view(-1)[0] += 1e-3
    assert identity.weights_digest(module) != before


# Registering and opening a model with a basis.


@dataclasses.dataclass(frozen=True)
class Fitted:
    store: Backend
    request: Request
    first: register.Registered

    @property
    def snapshot(self):
        return take_snapshot(self.store)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tiny):
    store = open_store(str(tmp_path_factory.mktemp("fitted") / "store"), create=True)
    request = tiny("vit", REDUCED)
    return Fitted(store, request, register_in(store, request))


def test_a_basis_is_fitted_on_the_probe_frames_once(fitted, batch_sizes):
    assert fitted.first.fitted == STRIP_FRAMES > 32
    again = register_in(fitted.store, fitted.request)
    assert again.fitted == 0 and again.spec == fitted.first.spec
    probes = len(probe_frames.probe_inputs())
    assert sum(batch_sizes) == probes + 1, "only the probe and a warm-up ran"
    assert fitted.snapshot.models == [fitted.first.spec.key]
    assert verify(fitted.store).damage == () and verify(fitted.store).leftovers == 0


def test_a_spec_describes_the_model(fitted):
    spec = read_spec(fitted.snapshot, fitted.first.spec.key)
    assert spec == fitted.first.spec
    assert spec.identity.random and spec.title.endswith("(random weights)")
    assert spec.shape == (32,) and spec.step_error == 0
    assert spec.identity.basis == bases.recipe(probe_frames.frames_digest())
    raw = json.loads(fitted.snapshot.read_model(spec.key)["spec.json"])
    assert raw["identity"]["preprocessing"]["geometry"] == "squash"
    with pytest.raises(MissingError, match="wsa models"):
        read_spec(fitted.snapshot, "vit-0123456789ab")


def test_a_registered_model_is_found_without_building_it(fitted, tiny, monkeypatch):
    monkeypatch.setattr(networks, "build", lambda request: pytest.fail("built"))
    assert find_model(fitted.snapshot, fitted.request) == fitted.first.spec
    for other in (
        tiny("vit", "grid:2+pca:33"),
        tiny("vit2", REDUCED),
        tiny("vit", REDUCED, precision="bf16"),
        parse_request("timm:test_vit", {}, REDUCED),
    ):
        assert find_model(fitted.snapshot, other) is None


def test_an_opened_model_gives_the_stored_probe_vectors(fitted):
    frames = probe_frames.probe_inputs()
    encoder = open_model(fitted.snapshot, fitted.first.spec.key)
    assert encoder.passes == 0
    files = fitted.snapshot.read_model(fitted.first.spec.key)
    np.testing.assert_array_equal(encoder(frames), probe.load(files["probe.safetensors"]))


def test_a_changed_basis_is_model_drift(fitted, monkeypatch):
    real = bases.load

    def load_flipped(data):
        basis = real(data)
        return dataclasses.replace(basis, grid=basis.grid.flip(1))

    monkeypatch.setattr(bases, "load", load_flipped)
    with pytest.raises(ConflictError) as caught:
        open_model(fitted.snapshot, fitted.first.spec.key)
    assert caught.value.kind == "model-drift" and caught.value.exit_code == 4


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    store = open_store(str(tmp_path_factory.mktemp("lite") / "store"), create=True)
    return store, register_in(store, parse_request("lite0", {}, "pooled")).spec.key


@pytest.mark.variants
@pytest.mark.parametrize(
    "change",
    [
        {"interpolation": "bilinear"},
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        {"height": 240, "width": 240},
    ],
    ids=["interpolation", "mean", "size"],
)
def test_changed_preprocessing_is_model_drift(change, lite, monkeypatch):
    def changed(frames, how):
        return preprocess.preprocess(frames, msgspec.structs.replace(how, **change))

    monkeypatch.setattr("wsa.encode.inference.encoder.preprocess", changed)
    with pytest.raises(ConflictError, match="changes from step to step") as caught:
        open_model(take_snapshot(lite[0]), lite[1])
    assert caught.value.kind == "model-drift"
    with pytest.raises(ConflictError):
        register_in(lite[0], parse_request("lite0", {}, "pooled"))


@pytest.fixture
def model_from_file(store, tmp_path, tiny):
    """A weights file, and the key of the model that is registered from it."""
    file = tmp_path / "w.safetensors"
    tensors = networks.build(tiny("resnet")).state_dict()
    safetensors.torch.save_file({n: t.contiguous() for n, t in tensors.items()}, file)
    request = parse_request("timm:test_resnet", {"timm:test_resnet": str(file)}, "pooled")
    return file, register_in(store, request).spec.key


def test_changed_weights_under_the_same_name_are_another_model(store, model_from_file):
    file, key = model_from_file
    request = parse_request("timm:test_resnet", {"timm:test_resnet": str(file)}, "pooled")
    found = find_model(take_snapshot(store), request)
    assert found is not None and found.key == key
    tensors = safetensors.torch.load_file(file)
    tensors["conv1.0.weight"].view(-1)[0] += 1e-3
    file.unlink()
    safetensors.torch.save_file(tensors, file)
    assert find_model(take_snapshot(store), request) is None
    with pytest.raises(ConflictError, match="not those of") as caught:
        open_model(take_snapshot(store), key)
    assert caught.value.kind == "other-weights"
    assert register_in(store, request).spec.key != key


def test_a_weights_file_may_have_another_path_on_another_machine(store, model_from_file):
    file, key = model_from_file
    alias = read_spec(take_snapshot(store), key).alias
    moved = file.rename(file.with_name("moved.safetensors"))
    encoder = open_model(take_snapshot(store), key, weights={alias: str(moved)})
    assert encoder.passes == 0
    assert open_model(take_snapshot(store), key, source=f"file:{moved}").passes == 0
    with pytest.raises(ConflictError):
        open_model(take_snapshot(store), key)


@pytest.mark.parametrize("same", [True, False])
def test_a_model_that_lost_its_record_returns_only_if_its_embeddings_match(kit, store, small, same):
    request = small()
    key = register_in(store, request).spec.key
    meta, _ = kit.add_segment(store, height=64, width=48)
    encoder = open_model(take_snapshot(store), key)
    array = stored(encoder(take_snapshot(store).read_frames(meta)))
    array = array if same else np.roll(array, 1, axis=0)
    record = EmbeddingMeta(
        meta.game, meta.segment, key, array.shape, array.dtype.name, meta.frames, 0, 1.0
    )
    commit_embedding(store, record, array)
    store.delete(names.commit_path(hashing.object_id(names.model_path(key))))
    if same:
        assert register_in(store, request).spec.key == key
    else:
        with pytest.raises(ConflictError, match="has lost its record") as caught:
            register_in(store, request)
        assert caught.value.kind == "model-drift"
    assert (key in take_snapshot(store).models) == same


# Precision.


@pytest.mark.parametrize(
    ("model", "limit"),
    [("timm:test_vit:random", 0.001), pytest.param("lite0", 0.1, marks=pytest.mark.slow)],
)
def test_bf16_on_a_cpu_is_refused_unless_its_error_is_allowed(model, limit, kit, store):
    exact = register_in(store, parse_request(model, {}, "pooled")).spec
    request = parse_request(model, {}, "pooled", "bf16")
    before = set(kit.paths(store))
    with pytest.raises(ConflictError) as caught:
        register_in(store, request, limit)
    message = re.fullmatch(
        rf".* in bf16 by torch errs by (\d+\.\d+) of what changes from one step of a game to "
        rf"the next; the limit is {limit}\. Nothing was written\. Use --precision fp32, or allow it "
        r"with --max-step-error (\d+\.\d+)\.",
        str(caught.value),
    )
    assert message
    error, allowed = map(float, message.groups())
    assert limit < error < allowed <= 1.1 * error
    assert caught.value.kind == "step-error" and caught.value.exit_code == 4
    assert set(kit.paths(store)) == before, "nothing was written"
    spec = register_in(store, request, max_step_error=allowed).spec
    assert spec.key != exact.key and limit < spec.step_error < 10
    assert open_model(take_snapshot(store), spec.key).precision == "bf16"
