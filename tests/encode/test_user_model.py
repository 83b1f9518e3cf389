"""Users' own models: found by `module:callable`, checked, encoded, and opened again."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wsa.encode.inference.preprocess import preprocess
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.run import encode
from wsa.encode.models import networks
from wsa.encode.models.custom import Input, is_name
from wsa.encode.models.registry import parse_request
from wsa.encode.models.user_network import load
from wsa.encode.registration import check
from wsa.encode.registration.identity import find_model, identify, request_of
from wsa.encode.registration.register import open_model, register
from wsa.store.common.errors import ConflictError, MissingError, UsageError, WsaError
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.snapshot import take_snapshot

pytestmark = pytest.mark.usefixtures("fresh_workers")

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_module(monkeypatch):
    """Work in the folder of `user_nets`, as a user does with their own module."""
    monkeypatch.chdir(HERE)
    yield
    sys.modules.pop("user_nets", None)


def test_a_model_is_named_by_module_and_callable():
    for name in ("a:b", "lab.nets.vit:make_encoder", "_x:Y9"):
        assert is_name(name)
        request = parse_request(name, {}, "pooled")
        assert request.source == f"user:{name}" and request.recorded == "user"
        assert request.architecture == request.timm_name == name
    for name in ("a", "a:", ":b", "a:b:c", "a.:b", "a b:c", "../a:b", "a:b()", "1:b"):
        with pytest.raises(UsageError) as caught:
            parse_request(name, {})
        assert caught.value.kind == "unknown-model", name


def test_a_module_is_imported_only_when_the_model_is_built():
    request = parse_request("user_nets:dense", {}, "pooled")
    assert "user_nets" not in sys.modules and request.license
    before = list(sys.path)
    networks.build(request)
    assert "user_nets" in sys.modules and sys.path == before


@pytest.mark.parametrize(
    ("name", "output", "shape"),
    [
        ("dense", "pooled", (3136,)),
        ("spatial", "pooled", (64,)),
        ("spatial", "map", (7, 7, 64)),
        ("spatial", "grid:2", (2, 2, 64)),
        ("spatial", "map+rp:16", (7, 7, 64)),
        ("tokens", "cls", (64,)),
        ("tokens", "grid:7", (7, 7, 64)),
        ("tokens", "pooled", (64,)),
    ],
)
def test_an_output_is_made_of_what_the_module_returns(name, output, shape, frames, make_encoder):
    encoder = make_encoder(parse_request(f"user_nets:{name}", {}, output))
    embedding = encoder(frames[:2])
    assert embedding.shape == (2, *shape)
    # The input is as declared: gray, from 0 to 1, 84 x 84.
    pixels = preprocess(torch.from_numpy(frames[:2]), encoder.preprocessing)
    assert pixels.shape == (2, 1, 84, 84) and 0 <= pixels.min() < 0.01 < pixels.max() <= 1
    maps = encoder.module.module.layers(pixels).permute(0, 2, 3, 1).numpy()
    expected = {
        (3136,): maps.transpose(0, 3, 1, 2).reshape(2, -1),
        (64,): maps.mean(axis=(1, 2)),
        (7, 7, 64): maps,
    }
    if shape in expected:
        np.testing.assert_allclose(embedding, expected[shape], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "output", "instead"),
    [
        ("dense", "grid:7+pca:8", "pooled"),
        ("dense", "map", "pooled"),
        ("dense", "cls", "pooled"),
        ("spatial", "cls", "pooled"),
        ("spatial", "grid:8", "grid:7"),
    ],
)
def test_an_output_that_the_module_lacks_is_refused(name, output, instead, store):
    request = parse_request(f"user_nets:{name}", {}, output)
    with pytest.raises(UsageError, match=f"Ask for {instead} instead") as caught:
        register(take_snapshot(store), request, 0.1)
    assert "\n" not in str(caught.value)
    assert take_snapshot(store).models == []


def test_an_input_is_gray_in_both_spellings_and_refuses_other_channels():
    american, british = (Input(84, 84, name).preprocessing() for name in ("gray", "grey"))
    assert american == british and american.gray
    with pytest.raises(ValueError, match="channels 'bgr' is unknown: use rgb or gray"):
        Input(84, 84, "bgr").preprocessing()  # type: ignore[arg-type]


def test_a_users_model_is_encoded_found_and_opened_again(store, fill, noise):
    request = parse_request("user_nets:dense", {}, "pooled")
    fill(store, [[0, 1], [1, 2]])
    report = encode(store, Encoding([request], device="cpu"), scheduler="inproc")
    assert report.passes == 3
    snapshot = take_snapshot(store)
    spec = find_model(snapshot, request)
    assert spec is not None and spec.key == report.models[0].spec.key
    assert (spec.alias, spec.source, spec.license) == ("user_nets_dense", "user", "MIT")
    assert (
        spec.identity.preprocessing == Input(84, 84, "gray", interpolation="area").preprocessing()
    )
    assert encode(store, Encoding([request], device="cpu"), scheduler="inproc").passes == 0
    # By its key it opens only if the user names the module.
    encoder = open_model(snapshot, spec.key, weights={"user_nets_dense": "user_nets:dense"})
    meta = snapshot.segments()[0]
    embedding = snapshot.read_embedding("Pong", spec.key, meta.segment)
    expected = encoder(np.stack([noise(0), noise(1)])).astype(np.float16)
    np.testing.assert_array_equal(embedding, expected)
    again = request_of(spec, {"user_nets_dense": "user_nets:dense"})
    assert again.source == request.source and find_model(snapshot, again) == spec
    with pytest.raises(MissingError, match="name it yourself"):
        open_model(snapshot, spec.key)


def test_a_model_of_four_frames_gets_them_as_channels(store, fill, noise, make_encoder):
    request = parse_request("user_nets:stacked", {}, "pooled")
    fill(store, [[0, 1, 2, 3, 4, 5]])
    encode(store, Encoding([request], device="cpu"), scheduler="inproc")
    snapshot = take_snapshot(store)
    spec = find_model(snapshot, request)
    assert spec is not None and spec.identity.window == 4
    (meta,) = snapshot.segments()
    stored_rows = snapshot.read_embedding("Pong", spec.key, meta.segment)
    encoder = make_encoder(request)
    module = load("user_nets:stacked").module
    for window, row in (
        (np.stack([noise(0)] * 4), stored_rows[0]),  # The beginning of an episode.
        (np.stack([noise(i) for i in (1, 2, 3, 4)]), None),
    ):
        pixels = preprocess(torch.from_numpy(window), encoder.preprocessing)
        expected = module(pixels.flatten(0, 1)[None])[0].numpy()  # The oldest first.
        np.testing.assert_allclose(encoder(window[None])[0], expected, atol=1e-5)
        if row is not None:
            np.testing.assert_allclose(row, expected, atol=2e-3)


def test_other_weights_under_the_same_name_are_another_model(store, monkeypatch):
    request = parse_request("user_nets:dense", {}, "pooled")
    key = register(take_snapshot(store), request, 0.1).spec.key
    made = sys.modules["user_nets"].dense()
    next(made.module.parameters()).data.add_(1)
    monkeypatch.setattr(sys.modules["user_nets"], "dense", lambda: made)
    assert find_model(take_snapshot(store), request) is None
    with pytest.raises(ConflictError, match="MODULE:CALLABLE") as caught:
        open_model(take_snapshot(store), key, source=request.source)
    assert caught.value.kind == "other-weights"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_such_module_here:make", "cannot be imported on"),
        ("user_nets:nothing", "has no callable 'nothing'"),
        ("user_nets:not_callable", "has no callable"),
        ("user_nets:failing", "raised FileNotFoundError"),
        ("user_nets:giving_up", "raised SystemExit"),
        ("user_nets:wrong", "returned Dense, not"),
        ("user_nets:no_module", "its module is str"),
        ("user_nets:half", "its weights layers.0.weight are bfloat16"),
        ("user_nets:with_state", "its state _extra_state is dict, not a tensor"),
        ("user_nets:wrong_mean", "must have 1 numbers for gray"),
    ],
)
def test_an_error_in_a_module_is_reported_in_one_line(name, expected):
    with pytest.raises(WsaError) as caught:
        load(name)
    message = str(caught.value)
    assert expected in message and name.partition(":")[0] in message and "\n" not in message
    assert caught.value.kind in ("no-weights", "other-weights")


@pytest.mark.parametrize(
    ("name", "engine", "error"),
    [
        ("raising", "auto", "RuntimeError: no such kernel"),
        ("raising", "torch", "RuntimeError: no such kernel"),
        ("exiting", "auto", "SystemExit: 0"),
    ],
)
def test_a_module_that_raises_is_refused_and_nothing_is_written(name, engine, error, store, fill):
    fill(store, [[0]])
    request = parse_request(f"user_nets:{name}", {}, "pooled")
    with pytest.raises(ConflictError, match=error) as caught:
        encode(store, Encoding([request], device="cpu", engine=engine), scheduler="inproc")
    assert caught.value.kind == "model-failed" and "wsa models check" in str(caught.value)
    assert take_snapshot(store).models == []


@pytest.mark.parametrize(("name", "how"), [("noisy", "embeddings"), ("unseeded", "weights")])
def test_a_model_that_gives_other_embeddings_each_time_is_refused_and_nothing_is_written(
    name, how, store, fill
):
    fill(store, [[0]])
    request = parse_request(f"user_nets:{name}", {}, "pooled")
    with pytest.raises(ConflictError, match=f"other {how} each time") as caught:
        encode(store, Encoding([request], device="cpu"), scheduler="inproc")
    assert caught.value.kind == "model-drift" and "Install" not in str(caught.value)
    assert take_snapshot(store).models == []


def test_the_error_names_a_worker_that_lacks_the_module(store, fill, tmp_path, monkeypatch):
    fill(store, [[0]])
    monkeypatch.chdir(tmp_path)
    request = parse_request("user_nets:dense", {}, "pooled")
    with pytest.raises(MissingError, match=r"user_nets.* the worker \S+://\S+ on ") as caught:
        encode(store, Encoding([request], device="cpu"), scheduler="inproc")
    assert "PYTHONPATH" in str(caught.value)


# `wsa models check`. It needs all probe frames.


def check_all(name, output="pooled"):
    request = parse_request(name, {}, output)
    return {result.what: result for result in check.check(request, "cpu")}


def check_one(name, what, output="pooled"):
    """Run a check until it has the result with this name."""
    request = parse_request(name, {}, output)
    return next(result for result in check.check(request, "cpu") if result.what == what)


@pytest.mark.variants
@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("user_nets:stacked", "pooled"),
        ("user_nets:dense", "pooled"),
        ("user_nets:tokens", "grid:7"),
        ("timm:test_vit:random", "cls"),
        ("timm:test_resnet:random", "map"),
    ],
)
def test_a_correct_model_passes_every_check(name, output, all_probe_frames):
    threads = torch.get_num_threads()
    results = check_all(name, output)
    assert len(results) == 14 and all(result.ok for result in results.values()), results
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("name", "what", "details"),
    [
        ("noisy", "the same again", "frames differ"),
        ("mixed", "in one batch", "of a game's step"),
        ("moving", "weights untouched", "then"),
        ("nan", "finite", "NaN"),
        ("blind", "sees a step", "0 of 8"),
        ("raising", "runs", "RuntimeError: no such kernel"),
        ("exiting", "runs", "SystemExit: 0"),
        ("training", "frozen", "training mode"),
        ("unseeded", "the same weights when built again", "then"),
    ],
)
def test_each_fault_of_a_model_fails_a_check(name, what, details, all_probe_frames):
    result = check_one(f"user_nets:{name}", what)
    assert not result.ok and details in result.found


def test_a_check_reports_the_chosen_engine_and_why_not_the_others(every_engine, all_probe_frames):
    report = check_one("user_nets:dense", "engines").found
    measured = r"[\d,.]+ frames/s, step error [\d.e-]+"
    first, second, third = report.split("; ")
    assert re.fullmatch(rf"(torch|openvino), {measured}", first)
    assert re.fullmatch(rf"not (torch|openvino) \({measured}\): it is slower", second)
    assert third == "not compile: on a CPU, compiling takes up to a minute in every process"


def test_a_check_shows_the_license_that_its_author_declares():
    assert "license: MIT" in check_one("user_nets:dense", "weights").found


@pytest.mark.parametrize("output", ["pooled", "map"])
@pytest.mark.parametrize(("name", "shape"), [("flat", "(B)"), ("deep", "(B, 2, 3, 4, 4)")])
def test_a_network_with_an_unknown_layout_is_told_which_layouts_exist(name, shape, output):
    with pytest.raises(UsageError, match=re.escape(f"returns {shape} for B frames. Let it")):
        check_all(f"user_nets:{name}", output)


def test_a_users_model_keeps_its_declared_geometry():
    request = parse_request("user_nets:dense", {}, "pooled", geometry="crop")
    identity = identify(networks.build(request), request)
    assert identity.architecture == "user_nets:dense" and identity.window == 1
    assert identity.preprocessing.geometry == "squash"


def test_a_spec_has_the_name_of_the_callable_and_no_path(store):
    request = parse_request("user_nets:dense", {}, "pooled")
    key = register(take_snapshot(store), request, 0.1).spec.key
    spec = read_spec(take_snapshot(store), key)
    assert spec.timm_name == "user_nets:dense" and spec.source == "user"
    with pytest.raises(UsageError, match="module:callable"):
        request_of(spec, {"user_nets_dense": str(HERE / "user_nets.py")})
