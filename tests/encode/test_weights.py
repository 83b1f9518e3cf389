"""Weights files as people have them: prefixes, heads, torch archives, names and licences of their own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from wsa.encode.models import registry
from wsa.encode.models.registry import build, parse_request, typed_modules
from wsa.encode.models.weights import say_taken
from wsa.encode.registration.identity import request_of
from wsa.encode.registration.register import register
from wsa.encode.registration.select import stored_name
from wsa.store.common.errors import ConflictError, MissingError, UsageError
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.snapshot import take_snapshot

NAME = "test_resnet"


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    model: Any = timm.create_model(NAME, pretrained=False, num_classes=7)
    return dict(model.state_dict())


@pytest.fixture(autouse=True)
def said(caplog):
    say_taken.cache_clear()
    caplog.set_level(logging.INFO, "wsa")
    return caplog


def built(file: Path) -> dict[str, torch.Tensor]:
    return dict(build(parse_request(f"timm:{NAME}", {f"timm:{NAME}": str(file)})).state_dict())


def under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "prefix",
    ["model.", "backbone.", "encoder.", "student.", "module.", "module.student.backbone."],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_prefix_is_taken_off_and_said(prefix, suffix, theirs, tmp_path, said):
    file = tmp_path / f"w{suffix}"
    saved = under(theirs, prefix) | {"head.mlp.weight": torch.zeros(2, 2)}
    if suffix == ".pth":
        torch.save({"epoch": 3, "state_dict": saved}, file)
    else:
        safetensors.torch.save_file(saved, file)
    ours = built(file)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert f"took the tensors below '{prefix}'; left out" in said.text
    assert "head.mlp.weight" in said.text


def test_an_archive_of_tensors_alone_is_read(theirs, tmp_path):
    torch.save(theirs, tmp_path / "w.pt")
    ours = built(tmp_path / "w.pt")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_of_a_student_and_a_teacher_one_is_taken_whole(theirs, tmp_path):
    file = tmp_path / "w.safetensors"
    other = {name: torch.zeros_like(tensor) for name, tensor in theirs.items()}
    safetensors.torch.save_file(under(theirs, "student.") | under(other, "teacher."), file)
    assert all(torch.equal(t, theirs[n]) for n, t in built(file).items())


def test_what_lacks_and_what_is_in_vain_is_named(theirs, tmp_path):
    file = tmp_path / "w.safetensors"
    saved = under(theirs, "model.")
    saved["model.adapter.weight"] = torch.zeros(3)
    del saved["model.conv1.0.weight"]
    saved["model.layer1.0.conv1.weight"] = torch.zeros(1)
    safetensors.torch.save_file(saved, file)
    with pytest.raises(ConflictError) as caught:
        built(file)
    message = str(caught.value)
    assert "missing: conv1.0.weight" in message and "unexpected: adapter.weight" in message
    assert "of another shape: layer1.0.conv1.weight" in message and len(message) < 700


class Bomb:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._canary,))


@pytest.mark.parametrize("kind", ["bomb", "text", "numbers"])
def test_an_archive_runs_nothing_and_holds_tensors(kind, theirs, tmp_path):
    file, canary = tmp_path / "w.pth", tmp_path / "canary"
    if kind == "text":
        file.write_bytes(b"rubbish" * 20)
    else:
        torch.save({**theirs, "x": Bomb(canary) if kind == "bomb" else 3}, file)
    with pytest.raises(ConflictError, match="does not hold the weights"):
        built(file)
    assert not canary.exists()


def test_a_missing_file_is_missing_and_another_kind_is_none(tmp_path):
    with pytest.raises(MissingError, match="there is no such file"):
        parse_request("vit", {"vit": str(tmp_path / "gone.safetensors")})
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"\.safetensors, \.pth, \.pt"):
        parse_request("vit", {"vit": str(tmp_path / "w.bin")})


def test_an_archive_is_read_only_where_it_is_named(theirs, tmp_path, store):
    file = tmp_path / "w.pth"
    torch.save(theirs, file)
    asked = parse_request(f"timm:{NAME}", {f"timm:{NAME}": str(file)}, "pooled")
    key = register(take_snapshot(store), asked, 0.1).spec.key
    spec = read_spec(take_snapshot(store), key)
    assert spec.source == f"file:{file}"
    for stated in (request_of(spec, {}), registry.dataclasses.replace(asked, source=spec.source)):
        with pytest.raises(ConflictError, match="Name it yourself"):
            build(stated)
    assert build(request_of(spec, {spec.alias: str(file)}))


def test_weights_of_ones_own_have_a_name_and_a_licence_of_their_own(theirs, tmp_path, store):
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(theirs, file)
    text, weights = f"mine=timm:{NAME}", {"mine": str(file)}
    asked = parse_request(text, weights, "pooled", licences={"mine": "CC-BY-4.0"})
    assert (asked.alias, asked.licence) == ("mine", "CC-BY-4.0")
    spec = register(take_snapshot(store), asked, 0.1).spec
    assert spec.key.startswith("mine-") and spec.licence == "CC-BY-4.0"
    snapshot = take_snapshot(store)
    assert stored_name(snapshot, "mine") == "mine" == stored_name(snapshot, text)
    assert stored_name(snapshot, f"{text}@pooled") == spec.key
    for refused, why in (
        (lambda: parse_request(text, {}), "published weights keep their name"),
        (lambda: parse_request(f"vit=timm:{NAME}", {"vit": str(file)}), "published model"),
        (lambda: parse_request("vit", {}, licences={"vit": "MIT"}), "their publisher's license"),
    ):
        with pytest.raises(UsageError, match=why):
            refused()


def test_a_model_may_have_an_output_of_its_own():
    asked = parse_request(f"timm:{NAME}:random@grid:2+rp:8", {}, "pooled")
    assert asked.output == "grid:2+rp:8" and asked.source == "random"
    with pytest.raises(UsageError, match="is not an output"):
        parse_request(f"timm:{NAME}@gird:2", {})


def test_typed_modules_are_known_by_the_names_of_their_models():
    typed = ["lab.nets:make", "mine=lab.nets:other@map", "vit", "timm:resnet18", "vit:random", ""]
    assert typed_modules(typed) == {"lab_nets_make": "lab.nets:make", "mine": "lab.nets:other"}
