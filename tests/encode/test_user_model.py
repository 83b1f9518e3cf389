"""Users' own models, from `module:callable` to embeddings in a store and back."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.jobs import tasks
from wsa.encode.jobs.run import encode
from wsa.encode.models import registry
from wsa.encode.models.custom import Input, is_name, load
from wsa.encode.models.registry import parse_request
from wsa.encode.registration import check
from wsa.encode.registration import identity as lookup
from wsa.encode.registration.identity import find_model, request_of
from wsa.encode.registration.register import open_model, register
from wsa.store.backends.base import Backend
from wsa.store.common.errors import ConflictError, MissingError, UsageError, WsaError
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.snapshot import take_snapshot

# What a check says is of all the frames that a model is probed by.
pytestmark = pytest.mark.usefixtures("whole_strip")

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user works in the folder where `user_nets` is, as they would with a module of theirs."""
    monkeypatch.chdir(HERE)
    tasks._models.clear()
    yield
    sys.modules.pop("user_nets", None)


@pytest.mark.parametrize("name", ["a:b", "lab.nets.vit:make_encoder", "_x:Y9"])
def test_names_of_callables(name: str) -> None:
    assert is_name(name)
    request = parse_request(name, {}, "pooled")
    assert request.source == f"user:{name}" and request.recorded == "user"
    assert request.architecture == request.timm_name == name


@pytest.mark.parametrize(
    "name", ["a", "a:", ":b", "a:b:c", "a.:b", "a b:c", "../a:b", "a:b()", "1:b"]
)
def test_what_is_no_name_of_a_callable_is_an_unknown_model(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request(name, {})
    assert caught.value.kind == "unknown-model"


def test_nothing_is_imported_until_it_is_built() -> None:
    request = parse_request("user_nets:dense", {}, "pooled")
    assert "user_nets" not in sys.modules and request.licence
    before = list(sys.path)
    registry.build(request)
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
def test_outputs_are_of_what_the_module_returns(
    name: str,
    output: str,
    shape: tuple[int, ...],
    frames: NDArray[np.uint8],
    encoder_of: Callable[..., Encoder],
) -> None:
    encoder = encoder_of(parse_request(f"user_nets:{name}", {}, output))
    found = encoder(frames[:2])
    assert found.shape == (2, *shape)
    # Its input is as it was declared: grey, from 0 to 1, 84 x 84.
    pixels = preprocess(torch.from_numpy(frames[:2]), encoder.preprocessing)
    assert pixels.shape == (2, 1, 84, 84) and 0 <= pixels.min() < 0.01 < pixels.max() <= 1
    own = encoder.module.module.layers(pixels).permute(0, 2, 3, 1).numpy()
    kept = {
        (3136,): own.transpose(0, 3, 1, 2).reshape(2, -1),
        (64,): own.mean(axis=(1, 2)),
        (7, 7, 64): own,
    }
    if shape in kept:
        np.testing.assert_allclose(found, kept[shape], atol=1e-5)


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
def test_what_it_cannot_give_is_refused_with_what_it_can(
    name: str, output: str, instead: str, store: Backend
) -> None:
    request = parse_request(f"user_nets:{name}", {}, output)
    with pytest.raises(UsageError, match=f"Ask for {instead} instead") as caught:
        register(take_snapshot(store), request, 0.1)
    assert "\n" not in str(caught.value)
    assert take_snapshot(store).models == []


def test_it_is_encoded_found_and_opened_again(
    store: Backend,
    fill: Callable[..., list[SegmentMeta]],
    noise: Callable[[int], NDArray[np.uint8]],
) -> None:
    request = parse_request("user_nets:dense", {}, "pooled")
    fill(store, [[0, 1], [1, 2]])
    report = encode(store, [request], scheduler="inproc", device="cpu")
    assert report.passes == 3
    snapshot = take_snapshot(store)
    spec = find_model(snapshot, request)
    assert spec is not None and spec.key == report.models[0].spec.key
    assert (spec.alias, spec.source, spec.licence) == ("user_nets_dense", "user", "MIT")
    assert (
        spec.identity.preprocessing == Input(84, 84, "grey", interpolation="area").preprocessing()
    )
    assert encode(store, [request], scheduler="inproc", device="cpu").passes == 0
    # Again by its key, and only with its module named.
    encoder = open_model(snapshot, spec.key, weights={"user_nets_dense": "user_nets:dense"})
    meta = snapshot.segments()[0]
    found = snapshot.read_embedding("Pong", spec.key, meta.segment)
    wanted = encoder(np.stack([noise(0), noise(1)])).astype(np.float16)
    np.testing.assert_array_equal(found, wanted)
    again = request_of(spec, {"user_nets_dense": "user_nets:dense"})
    assert again.source == request.source and find_model(snapshot, again) == spec
    with pytest.raises(MissingError, match="name it yourself"):
        open_model(snapshot, spec.key)


def test_one_that_looks_at_four_frames_gets_them_as_channels(
    store: Backend,
    fill: Callable[..., list[SegmentMeta]],
    noise: Callable[[int], NDArray[np.uint8]],
    encoder_of: Callable[..., Encoder],
) -> None:
    request = parse_request("user_nets:stacked", {}, "pooled")
    fill(store, [[0, 1, 2, 3, 4, 5]])
    encode(store, [request], scheduler="inproc", device="cpu")
    snapshot = take_snapshot(store)
    spec = find_model(snapshot, request)
    assert spec is not None and spec.identity.window == 4
    (meta,) = snapshot.segments()
    found = snapshot.read_embedding("Pong", spec.key, meta.segment)
    encoder = encoder_of(request)
    module = load("user_nets:stacked").module
    for shown, embedded in (
        (np.stack([noise(0)] * 4), found[0]),  # As an episode begins.
        (np.stack([noise(i) for i in (1, 2, 3, 4)]), None),
    ):
        pixels = preprocess(torch.from_numpy(shown), encoder.preprocessing)
        wanted = module(pixels.flatten(0, 1)[None])[0].numpy()  # The oldest first.
        np.testing.assert_allclose(encoder(shown[None])[0], wanted, atol=1e-5)
        if embedded is not None:
            np.testing.assert_allclose(embedded, wanted, atol=2e-3)


def test_other_weights_under_the_same_name_are_another_model(store: Backend) -> None:
    request = parse_request("user_nets:unseeded", {}, "pooled")
    key = register(take_snapshot(store), request, 0.1).spec.key
    assert find_model(take_snapshot(store), request) is None
    with pytest.raises(ConflictError, match="MODULE:CALLABLE") as caught:
        open_model(take_snapshot(store), key, source=request.source)
    assert caught.value.kind == "other-weights"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module_here:make", "cannot be imported by"),
        ("user_nets:nothing", "has no callable 'nothing'"),
        ("user_nets:not_callable", "has no callable"),
        ("user_nets:failing", "raised FileNotFoundError"),
        ("user_nets:wrong", "returned Dense, not"),
        ("user_nets:no_module", "its module is str"),
        ("user_nets:wrong_mean", "must have 1 numbers for grey"),
    ],
)
def test_what_is_wrong_with_a_module_is_said_in_a_line(name: str, said: str) -> None:
    with pytest.raises(WsaError) as caught:
        load(name)
    message = str(caught.value)
    assert said in message and name.partition(":")[0] in message and "\n" not in message
    assert caught.value.kind in ("no-weights", "other-weights")


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_module_that_raises_is_refused_in_a_line_and_nothing_written(
    engine: str, store: Backend, fill: Callable[..., list[SegmentMeta]]
) -> None:
    fill(store, [[0]])
    request = parse_request("user_nets:raising", {}, "pooled")
    with pytest.raises(ConflictError, match="RuntimeError: no such kernel") as caught:
        encode(store, [request], scheduler="inproc", device="cpu", engine=engine)
    assert caught.value.kind == "model-failed" and "wsa models check" in str(caught.value)
    assert take_snapshot(store).models == []


def test_a_worker_without_the_module_is_named(
    store: Backend, fill: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [[0]])
    monkeypatch.chdir(tmp_path)
    request = parse_request("user_nets:dense", {}, "pooled")
    with pytest.raises(MissingError, match=r"user_nets.* the worker \S+://\S+ on ") as caught:
        encode(store, [request], scheduler="inproc", device="cpu")
    assert "PYTHONPATH" in str(caught.value)


# The check.


def results(name: str, output: str = "pooled") -> dict[str, check.CheckResult]:
    request = parse_request(name, {}, output)
    return {result.what: result for result in check.check(request, "cpu")}


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("user_nets:dense", "pooled"),
        ("user_nets:stacked", "pooled"),
        pytest.param("user_nets:tokens", "grid:7", marks=pytest.mark.slow),
        pytest.param("timm:test_vit:random", "cls", marks=pytest.mark.slow),
        pytest.param("timm:test_resnet:random", "map", marks=pytest.mark.slow),
    ],
)
def test_a_model_as_it_should_be_passes(name: str, output: str) -> None:
    found = results(name, output)
    assert len(found) == 14 and all(result.ok for result in found.values()), found


@pytest.mark.parametrize(
    ("name", "failed", "said"),
    [
        ("noisy", "the same again", "frames differ"),
        ("mixed", "in one batch", "of a game's step"),
        ("moving", "weights untouched", "then"),
        ("nan", "finite", "NaN"),
        ("blind", "sees a step", "0 of 8"),
        ("raising", "runs", "RuntimeError: no such kernel"),
        ("training", "frozen", "training mode"),
        ("unseeded", "the same weights when built again", "then"),
    ],
)
def test_each_way_to_be_wrong_is_found(name: str, failed: str, said: str) -> None:
    found = results(f"user_nets:{name}")
    assert not found[failed].ok and said in found[failed].found


def test_a_check_says_which_engine_runs_it_and_why_no_other_does(every_engine: None) -> None:
    said = results("user_nets:dense")["engines"].found
    measured = r"[\d.e+]+ frames/s, step error [\d.e-]+"
    first, second, third = said.split("; ")
    assert re.fullmatch(rf"(torch|openvino), {measured}", first)
    assert re.fullmatch(rf"not (torch|openvino) \({measured}\): it is slower", second)
    assert third == "not compile: on a CPU, compiling takes up to a minute in every process"


def test_a_check_shows_the_licence_that_its_maker_declares() -> None:
    assert "licence: MIT" in results("user_nets:dense")["weights"].found


@pytest.mark.parametrize("output", ["pooled", "map"])
@pytest.mark.parametrize(("name", "shape"), [("flat", "(B)"), ("deep", "(B, 2, 3, 4, 4)")])
def test_a_network_of_no_layout_is_not_sent_from_one_output_to_the_next(
    name: str, shape: str, output: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(f"returns {shape} for B frames. Let it")):
        results(f"user_nets:{name}", output)


def test_a_check_leaves_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    results("user_nets:dense")
    assert torch.get_num_threads() == before


def test_an_identity_says_what_was_declared() -> None:
    request = parse_request("user_nets:dense", {}, "pooled", geometry="crop")
    identity = lookup.identify(registry.build(request), request)
    assert identity.architecture == "user_nets:dense" and identity.window == 1
    assert identity.preprocessing.geometry == "squash", "a user's model declares its own"


def test_a_spec_shows_where_it_came_from_and_no_more(store: Backend) -> None:
    key = register(
        take_snapshot(store), parse_request("user_nets:dense", {}, "pooled"), 0.1
    ).spec.key
    spec = read_spec(take_snapshot(store), key)
    assert spec.timm_name == "user_nets:dense" and spec.source == "user"
    with pytest.raises(UsageError, match="module:callable"):
        request_of(spec, {"user_nets_dense": str(HERE / "user_nets.py")})
