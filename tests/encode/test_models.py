from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray

from wsa.encode.inference.preprocess import preprocess
from wsa.encode.models import registry
from wsa.encode.models.registry import build, parse_request
from wsa.encode.registration import identity
from wsa.store.common.errors import ConflictError, MissingError, UsageError, WsaError

# ImageNet classes. The strip's SpaceInvaders frames show rows of marks and a score.
SCOREBOARD, WEB_SITE = 781, 916


def save(path: Path, name: str, drop: str = "-", **options: Any) -> Path:
    """A weights file of a random model, without the tensors whose names begin with `drop`."""
    model: Any = timm.create_model(name, pretrained=False, **options)
    tensors = {n: t.contiguous() for n, t in model.state_dict().items() if not n.startswith(drop)}
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.mark.parametrize("alias", registry.ALIASES)
def test_every_alias_is_a_timm_model_with_weights_and_a_licence(alias: str) -> None:
    request = parse_request(alias, {})
    assert timm.is_model(request.architecture)
    assert request.timm_name in timm.list_pretrained()
    assert request.licence in {"apache-2.0", "mit"}
    assert request.source == ("package" if alias in registry.PACKAGES else "hub")


def _named(alias: str, images: torch.Tensor) -> list[int]:
    """What ImageNet class a Lite with its classifier sees in frames."""
    request = parse_request(alias, {}, "pooled")
    model: Any = registry._create(request, None)
    registry._load_package(model, request)
    how = identity.identify(model, request).preprocessing
    with torch.inference_mode():
        found: list[int] = model.eval()(preprocess(images, how)).argmax(1).tolist()
    return found


@pytest.mark.parametrize("alias", ["lite0", "lite1", "lite2"])
def test_packaged_weights_name_what_is_in_a_picture(alias: str, frames: NDArray[Any]) -> None:
    # Row 0 is of Seaquest, 8 and 9 are of SpaceInvaders. All three models agree on these; a wrong
    # order of layers gives whatever class, with a probability of a few percent.
    assert _named(alias, torch.from_numpy(frames[[0, 8, 9]])) == [WEB_SITE, SCOREBOARD, SCOREBOARD]


@pytest.mark.parametrize("alias", ["lite0", "lite1", "lite2"])
def test_built_models_are_frozen_and_have_no_classifier(alias: str) -> None:
    model = build(parse_request(alias, {}))
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert isinstance(model.get_classifier(), torch.nn.Identity)


def test_a_changed_package_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_bytes

    def flipped(path: Path) -> bytes:
        data = real(path)
        return data[:-1] + bytes([data[-1] ^ 1]) if path.suffix == ".pth" else data

    monkeypatch.setattr(Path, "read_bytes", flipped)
    with pytest.raises(ConflictError, match="SHA-256") as caught:
        build(parse_request("lite0", {}))
    assert caught.value.kind == "other-weights"


def test_another_lites_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = registry.Package(registry.PACKAGES["lite1"].module, registry.PACKAGES["lite0"].sha256)
    monkeypatch.setitem(registry.PACKAGES, "lite0", other)
    with pytest.raises(ConflictError, match="SHA-256"):
        build(parse_request("lite0", {}))


def test_a_package_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.PACKAGES, "lite0", registry.Package("no_such_package_here", "0"))
    with pytest.raises(MissingError, match="not installed") as caught:
        build(parse_request("lite0", {}))
    assert caught.value.kind == "no-weights"


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet"])
def test_random_weights_are_the_same_every_time_and_say_so(name: str) -> None:
    request = parse_request(f"{name}:random", {"vit": "/nowhere/x.safetensors"})
    torch.manual_seed(1)
    one = identity.weights_digest(build(request))
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert identity.weights_digest(build(request)) == one
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's numbers are left alone"
    assert request.source == "random" and "random" in request.licence


def test_a_timm_name_gets_the_tag_of_its_weights() -> None:
    bare, tagged = (parse_request(f"timm:resnet18{tag}", {}) for tag in ("", ".a1_in1k"))
    assert bare == tagged
    assert (bare.alias, bare.timm_name) == ("resnet18_a1_in1k", "resnet18.a1_in1k")
    assert parse_request("timm:test_mambaout", {}).timm_name == "test_mambaout"


def test_every_timm_name_gives_an_alias_of_its_own() -> None:
    names = timm.list_pretrained()
    assert len(names) > 1000
    assert len({parse_request(f"timm:{name}", {}).alias for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "said"),
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
def test_an_unknown_model_is_answered_with_what_is_near(name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request(name, {})
    assert caught.value.kind == "unknown-model" and said in str(caught.value)


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
def test_a_weights_file_is_taken_with_any_classifier_or_none(
    name: str, classes: int, tmp_path: Path
) -> None:
    file = save(tmp_path / "w.safetensors", name, num_classes=classes)
    request = parse_request(f"timm:{name}", {f"timm:{name}": str(file)})
    assert request.source == f"file:{file}"
    ours = build(request).state_dict()
    theirs = safetensors.torch.load_file(file)
    assert ours.keys() <= theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert request.licence.endswith(f"as stated for {request.timm_name}")


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
def test_weights_that_do_not_fit_are_refused_in_one_line(
    asked: str, saved: str, drop: str, classes: int, tmp_path: Path
) -> None:
    file = save(tmp_path / "w.safetensors", saved, drop, num_classes=classes)
    with pytest.raises(ConflictError) as caught:
        build(parse_request(f"timm:{asked}", {f"timm:{asked}": str(file)}))
    assert caught.value.kind == "other-weights" and caught.value.exit_code == 4
    message = str(caught.value)
    assert str(file) in message and asked in message and "\n" not in message
    assert len(message) < 600


def test_tensors_that_belong_nowhere_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "w.safetensors", "test_resnet")
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({**tensors, "adapter.weight": torch.zeros(3)}, file)
    with pytest.raises(ConflictError, match="adapter"):
        build(parse_request("timm:test_resnet", {"timm:test_resnet": str(file)}))


def test_rubbish_in_a_weights_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"\x80\x04rubbish" * 50)
    with pytest.raises(ConflictError, match="does not hold"):
        build(parse_request("timm:test_resnet", {"timm:test_resnet": str(file)}))


@pytest.mark.parametrize("name", ["w.bin", "gone.safetensors", "."])
def test_only_weights_files_that_exist_are_taken(name: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises((UsageError, MissingError)) as caught:
        parse_request("vit", {"vit": str(tmp_path / name)})
    assert caught.value.kind == ("bad-option" if name == "w.bin" else "no-weights")


# The hub. What its library reads at import is its environment, so by night these run apart.

APART = pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])


class Answer(NamedTuple):
    code: int
    said: str


ASK = """
import sys, wsa.encode.models.registry as m
from wsa.encode.registration.identity import weights_digest
from wsa.store.common.errors import WsaError
try:
    print(weights_digest(m.build(m.parse_request(sys.argv[1], {}))))
except WsaError as error:
    print(error.kind, error)
    sys.exit(error.exit_code)
"""


def ask(name: str, home: Path, apart: bool, patch: pytest.MonkeyPatch) -> Answer:
    """Build a model with this Hugging Face home and no hub, and say what its weights are."""
    if not apart:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        try:
            return Answer(0, identity.weights_digest(build(parse_request(name, {}))))
        except WsaError as error:
            return Answer(error.exit_code, f"{error.kind} {error}")
    found = subprocess.run(
        [sys.executable, "-c", ASK, name],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Answer(found.returncode, found.stdout.strip())


@APART
def test_weights_are_found_in_the_hugging_face_cache(
    apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    for folder in ("blobs", "refs", "snapshots/abc123"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc123")
    file = save(tmp_path / "w.safetensors", "test_resnet")
    blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(blob)
    (repo / "snapshots" / "abc123" / "model.safetensors").symlink_to(blob)
    (tmp_path / "direct.safetensors").symlink_to(blob)
    found = ask("timm:test_resnet", tmp_path, apart, monkeypatch)
    weights = {"timm:test_resnet": str(tmp_path / "direct.safetensors")}
    wanted = identity.weights_digest(build(parse_request("timm:test_resnet", weights)))
    assert found == (0, wanted)


WAYS_OUT = ("--weights vit=", "HF_HOME", "lite0", "vit:random")


@APART
def test_without_cache_and_hub_every_way_out_is_named(
    apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ask("vit", tmp_path, apart, monkeypatch)
    assert found.code == 3 and found.said.startswith("no-weights"), found
    assert all(way in found.said for way in WAYS_OUT)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_hub_out_of_reach_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens on port 1, as on a machine without a network.
    nobody = functools.partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub, "HfApi", nobody)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    started = time.perf_counter()
    with pytest.raises(MissingError, match="could not be fetched") as caught:
        build(parse_request("vit", {}))
    assert time.perf_counter() - started < 10
    assert all(way in str(caught.value) for way in WAYS_OUT)
    with pytest.raises(MissingError, match=r"untrained weights as timm:resnet18\.a1_in1k:random"):
        build(parse_request("timm:resnet18.a1_in1k", {}))


def test_sizes_and_normalisation_of_the_lites_are_their_own() -> None:
    for alias, side in (("lite0", 224), ("lite1", 240), ("lite2", 260)):
        request = parse_request(alias, {}, "pooled")
        how = identity.identify(build(request), request).preprocessing
        assert (how.height, how.width, how.mean, how.std) == (side, side, (0.5,) * 3, (0.5,) * 3)
