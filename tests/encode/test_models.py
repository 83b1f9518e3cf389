"""Models by name: aliases, packaged weights, weights files, and the hub."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from wsa.encode.inference.preprocess import preprocess
from wsa.encode.models import hub, networks, registry
from wsa.encode.models.networks import build
from wsa.encode.models.registry import parse_request
from wsa.encode.registration import identity
from wsa.store.common.errors import ConflictError, MissingError, UsageError

# ImageNet classes. The probe frames of SpaceInvaders show rows of marks and a score.
SCOREBOARD, WEB_SITE = 781, 916


def save_weights(path, name, drop="-", **options):
    """Save a random model without the tensors whose names begin with `drop`."""
    model: Any = timm.create_model(name, pretrained=False, **options)
    tensors = {n: t.contiguous() for n, t in model.state_dict().items() if not n.startswith(drop)}
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.mark.parametrize("alias", registry.ALIASES)
def test_every_alias_is_a_timm_model_with_weights_and_the_license_that_timm_states(alias):
    request, published = parse_request(alias, {}), registry.ALIASES[alias]
    assert timm.is_model(request.architecture)
    assert request.timm_name in timm.list_pretrained()
    config = timm.get_pretrained_cfg(request.timm_name)
    assert config and request.license == config.license == published.license
    assert hub._page(request.timm_name) == (published.page, hub._FILES)
    assert request.source == ("package" if alias in registry.PACKAGES else "hub")


@pytest.mark.parametrize(("alias", "side"), [("lite0", 224), ("lite1", 240), ("lite2", 260)])
def test_a_packaged_model_recognizes_frames_with_its_size_and_normalization(alias, side, frames):
    request = parse_request(alias, {}, "pooled")
    classifier: Any = networks._create(request, None)
    networks._load_package(classifier, request)
    how = identity.identify(classifier, request).preprocessing
    assert (how.height, how.width, how.mean, how.std) == (side, side, (0.5,) * 3, (0.5,) * 3)
    # Row 0 is of Seaquest, 8 and 9 are of SpaceInvaders. All three models agree on these classes; a
    # wrong order of layers would give any class, with a probability of a few percent.
    with torch.inference_mode():
        pixels = preprocess(torch.from_numpy(frames[[0, 8, 9]]), how)
        classes = classifier.eval()(pixels).argmax(1).tolist()
    assert classes == [WEB_SITE, SCOREBOARD, SCOREBOARD]
    model = build(request)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    assert identity.identify(model, request).preprocessing == how


def test_a_changed_package_file_is_refused(monkeypatch):
    real = Path.read_bytes

    def flipped(path):
        data = real(path)
        return data[:-1] + bytes([data[-1] ^ 1]) if path.suffix == ".pth" else data

    monkeypatch.setattr(Path, "read_bytes", flipped)
    with pytest.raises(ConflictError, match="SHA-256") as caught:
        build(parse_request("lite0", {}))
    assert caught.value.kind == "other-weights"


def test_a_package_that_is_not_installed_is_missing(monkeypatch):
    monkeypatch.setitem(registry.PACKAGES, "lite0", registry.Package("no_such_package_here", "0"))
    with pytest.raises(MissingError, match="not installed") as caught:
        build(parse_request("lite0", {}))
    assert caught.value.kind == "no-weights"


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet"])
def test_random_weights_are_reproducible_and_labeled(name):
    request = parse_request(f"{name}:random", {"vit": "/nowhere/x.safetensors"})
    torch.manual_seed(1)
    one = identity.weights_digest(build(request))
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert identity.weights_digest(build(request)) == one
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's generator is unchanged"
    assert request.source == "random" and "random" in request.license


def test_a_timm_name_gets_the_tag_of_its_weights():
    bare, tagged = (parse_request(f"timm:resnet18{tag}", {}) for tag in ("", ".a1_in1k"))
    assert bare == tagged
    assert (bare.alias, bare.timm_name) == ("resnet18_a1_in1k", "resnet18.a1_in1k")
    assert parse_request("timm:test_mambaout", {}).timm_name == "test_mambaout"


def test_every_timm_name_gives_an_alias_of_its_own():
    names = timm.list_pretrained()
    assert len(names) > 1000
    assert len({parse_request(f"timm:{name}", {}).alias for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vitt", "did you mean vit?"),
        ("vitt", "timm:<name>"),
        ("resnet18", "timm:<name>"),
        ("timm:resnte18", "resnet18"),
        ("timm:resnet18.a1_in1kk", "resnet18.a1_in1k"),
        ("timm:", "no architecture"),
        ("", "not a model"),
        ("vit:random:random", "not a model"),
    ],
)
def test_an_unknown_model_is_refused_with_suggestions(name, message):
    with pytest.raises(UsageError) as caught:
        parse_request(name, {})
    assert caught.value.kind == "unknown-model" and message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("test_vit", 1000),
        ("test_vit", 0),
        ("test_vit", 10),
        ("test_resnet", 0),
        ("test_efficientnet", 0),
        ("test_convnext", 0),
    ],
)
def test_a_weights_file_may_have_any_classifier_or_none(name, classes, tmp_path):
    file = save_weights(tmp_path / "w.safetensors", name, num_classes=classes)
    request = parse_request(f"timm:{name}", {f"timm:{name}": str(file)})
    assert request.source == f"file:{file}"
    weights = build(request).state_dict()
    saved = safetensors.torch.load_file(file)
    assert weights.keys() <= saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in weights.items())
    assert request.license.endswith(f"as stated for {request.timm_name}")


@pytest.mark.parametrize(
    ("asked", "saved", "drop", "classes"),
    [
        ("test_vit", "test_resnet", "-", 1000),
        ("test_vit", "test_vit2", "-", 0),
        ("test_vit", "test_vit", "blocks.0.attn.qkv.bias", 0),
        ("test_resnet", "test_resnet", "layer1.0.bn1.running_mean", 1000),
        ("test_resnet", "test_resnet", "conv1", 0),
    ],
)
def test_weights_of_another_architecture_are_refused(asked, saved, drop, classes, tmp_path):
    file = save_weights(tmp_path / "w.safetensors", saved, drop, num_classes=classes)
    with pytest.raises(ConflictError) as caught:
        build(parse_request(f"timm:{asked}", {f"timm:{asked}": str(file)}))
    assert caught.value.kind == "other-weights" and caught.value.exit_code == 4
    message = str(caught.value)
    assert str(file) in message and asked in message and "\n" not in message
    assert len(message) < 600


def test_unexpected_tensors_are_refused(tmp_path):
    file = save_weights(tmp_path / "w.safetensors", "test_resnet")
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({**tensors, "adapter.weight": torch.zeros(3)}, file)
    with pytest.raises(ConflictError, match="adapter"):
        build(parse_request("timm:test_resnet", {"timm:test_resnet": str(file)}))


def test_garbage_in_a_weights_file_is_refused(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"\x80\x04garbage" * 50)
    with pytest.raises(ConflictError, match="does not hold"):
        build(parse_request("timm:test_resnet", {"timm:test_resnet": str(file)}))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("w.bin", UsageError(""), r"\.safetensors, \.pth, \.pt"),
        ("gone.safetensors", MissingError("no-weights", ""), "there is no such file"),
        (".", MissingError("no-weights", ""), "that is a folder"),
    ],
)
def test_a_weights_file_must_exist_and_have_a_known_format(name, error, message, tmp_path):
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(type(error), match=message) as caught:
        parse_request("vit", {"vit": str(tmp_path / name)})
    assert caught.value.kind == error.kind


# The hub.


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """The user's Hugging Face cache is in `tmp_path`, and there is no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_weights_are_found_in_the_hugging_face_cache(no_hub, tmp_path):
    repo = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    for folder in ("blobs", "refs", "snapshots/abc123"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc123")
    file = save_weights(tmp_path / "w.safetensors", "test_resnet")
    blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(blob)
    (repo / "snapshots" / "abc123" / "model.safetensors").symlink_to(blob)
    (tmp_path / "direct.safetensors").symlink_to(blob)
    found = build(parse_request("timm:test_resnet", {}))
    weights = {"timm:test_resnet": str(tmp_path / "direct.safetensors")}
    expected = build(parse_request("timm:test_resnet", weights))
    assert identity.weights_digest(found) == identity.weights_digest(expected)


ALTERNATIVES = ("--weights vit=", "HF_HOME", "lite0", "vit:random")


def test_without_cache_and_hub_the_error_names_every_alternative(no_hub, tmp_path):
    with pytest.raises(MissingError) as caught:
        build(parse_request("vit", {}))
    assert caught.value.kind == "no-weights"
    assert all(way in str(caught.value) for way in ALTERNATIVES)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_unreachable_hub_is_given_up_with_the_same_alternatives(monkeypatch):
    # Nothing listens on port 1, as on a machine without a network.
    unreachable = functools.partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub, "HfApi", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(MissingError, match="could not be fetched") as caught:
        build(parse_request("vit", {}))
    assert all(way in str(caught.value) for way in ALTERNATIVES)
    with pytest.raises(MissingError, match=r"untrained weights as timm:resnet18\.a1_in1k:random"):
        build(parse_request("timm:resnet18.a1_in1k", {}))
