"""Users' weights files: prefixes, classifiers, torch archives, names, and licenses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from wsa.encode.models import registry
from wsa.encode.models.networks import build
from wsa.encode.models.registry import parse_request, typed_modules
from wsa.encode.models.weights import say_taken
from wsa.encode.registration.identity import request_of
from wsa.encode.registration.register import register
from wsa.encode.registration.select import stored_name
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.snapshot import take_snapshot

NAME = "test_resnet"


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(5)
    model: Any = timm.create_model(NAME, pretrained=False, num_classes=7)
    return dict(model.state_dict())


@pytest.fixture(autouse=True)
def logs(caplog):
    say_taken.cache_clear()
    caplog.set_level(logging.INFO, "wsa")
    return caplog


def load_weights(file):
    return dict(build(parse_request(f"timm:{NAME}", {f"timm:{NAME}": str(file)})).state_dict())


def add_prefix(tensors, prefix):
    return {prefix + name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "prefix", ["model.", "backbone.", "encoder.", "student.", "module.", "module.student.backbone."]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_prefix_is_removed_and_logged(prefix, suffix, weights, tmp_path, logs):
    file = tmp_path / f"w{suffix}"
    saved = add_prefix(weights, prefix) | {"head.mlp.weight": torch.zeros(2, 2)}
    if suffix == ".pth":
        torch.save({"epoch": 3, "state_dict": saved}, file)
    else:
        safetensors.torch.save_file(saved, file)
    loaded = load_weights(file)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.items())
    assert f"took the tensors below '{prefix}'; left out" in logs.text
    assert "head.mlp.weight" in logs.text


def test_an_archive_of_plain_tensors_is_read(weights, tmp_path):
    torch.save(weights, tmp_path / "w.pt")
    loaded = load_weights(tmp_path / "w.pt")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.items())


def test_of_a_student_and_a_teacher_only_the_student_is_read(weights, tmp_path):
    file = tmp_path / "w.safetensors"
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    safetensors.torch.save_file(
        add_prefix(weights, "student.") | add_prefix(other, "teacher."), file
    )
    assert all(torch.equal(t, weights[n]) for n, t in load_weights(file).items())


def test_missing_unexpected_and_misshapen_tensors_are_named(weights, tmp_path):
    file = tmp_path / "w.safetensors"
    saved = add_prefix(weights, "model.")
    saved["model.adapter.weight"] = torch.zeros(3)
    del saved["model.conv1.0.weight"]
    saved["model.layer1.0.conv1.weight"] = torch.zeros(1)
    safetensors.torch.save_file(saved, file)
    with pytest.raises(ConflictError) as caught:
        load_weights(file)
    message = str(caught.value)
    assert "missing: conv1.0.weight" in message and "unexpected: adapter.weight" in message
    assert "of another shape: layer1.0.conv1.weight" in message and len(message) < 700


class Bomb:
    def __init__(self, canary):
        self._canary = canary

    def __reduce__(self):
        return (Path.touch, (self._canary,))


@pytest.mark.parametrize("kind", ["bomb", "text", "numbers"])
def test_an_archive_of_anything_but_tensors_is_refused_without_running_it(kind, weights, tmp_path):
    file, canary = tmp_path / "w.pth", tmp_path / "canary"
    if kind == "text":
        file.write_bytes(b"garbage" * 20)
    else:
        torch.save({**weights, "x": Bomb(canary) if kind == "bomb" else 3}, file)
    with pytest.raises(ConflictError, match="does not hold the weights") as caught:
        load_weights(file)
    assert "more than tensors" in str(caught.value) and "weights_only" not in str(caught.value)
    assert not canary.exists()


def test_an_archive_is_read_only_if_the_user_names_it(weights, tmp_path, store):
    file = tmp_path / "w.pth"
    torch.save(weights, file)
    request = parse_request(f"timm:{NAME}", {f"timm:{NAME}": str(file)}, "pooled")
    key = register(take_snapshot(store), request, 0.1).spec.key
    spec = read_spec(take_snapshot(store), key)
    assert spec.source == f"file:{file}"
    for untrusted in (
        request_of(spec, {}),
        registry.dataclasses.replace(request, source=spec.source),
    ):
        with pytest.raises(ConflictError, match="Name it yourself"):
            build(untrusted)
    assert build(request_of(spec, {spec.alias: str(file)}))


def test_users_weights_may_have_their_own_name_and_license(weights, tmp_path, store):
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(weights, file)
    text, files = f"mine=timm:{NAME}", {"mine": str(file)}
    request = parse_request(text, files, "pooled", licenses={"mine": "CC-BY-4.0"})
    assert (request.alias, request.license) == ("mine", "CC-BY-4.0")
    spec = register(take_snapshot(store), request, 0.1).spec
    assert spec.key.startswith("mine-") and spec.license == "CC-BY-4.0"
    snapshot = take_snapshot(store)
    assert stored_name(snapshot, "mine") == "mine" == stored_name(snapshot, text)
    assert stored_name(snapshot, f"{text}@pooled") == spec.key
    for parse, message in (
        (lambda: parse_request(text, {}), "published weights keep their name"),
        (lambda: parse_request(f"vit=timm:{NAME}", {"vit": str(file)}), "published model"),
        (lambda: parse_request("vit", {}, licenses={"vit": "MIT"}), "their publisher's license"),
    ):
        with pytest.raises(UsageError, match=message):
            parse()


def test_a_model_may_have_its_own_output():
    request = parse_request(f"timm:{NAME}:random@grid:2+rp:8", {}, "pooled")
    assert request.output == "grid:2+rp:8" and request.source == "random"
    with pytest.raises(UsageError, match="is not an output"):
        parse_request(f"timm:{NAME}@gird:2", {})


def test_named_modules_are_found_by_the_alias_of_their_model():
    names = ["lab.nets:make", "mine=lab.nets:other@map", "vit", "timm:resnet18", "vit:random", ""]
    assert typed_modules(names) == {"lab_nets_make": "lab.nets:make", "mine": "lab.nets:other"}


def test_only_models_of_timm_make_workers_import_it():
    own = [parse_request(name, {}) for name in ("palette", "sr", "vos:random", "some.module:make")]
    assert registry.libraries(own) == []
    assert registry.libraries([*own, parse_request("lite0", {})]) == ["timm"]
