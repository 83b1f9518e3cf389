"""`wsa models`, `wsa models check`, and the estimates of `wsa encode --dry-run`."""

import sys

import pytest
import safetensors.torch
import timm
from command_kit import ALIAS, LEARN, MODEL, read_json

from wsa.encode.jobs.dry_run import estimate, measure_model
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.models.registry import alias_of, parse_request
from wsa.encode.registration import probe_frames
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

NETWORKS = """
import torch
from wsa.encode.models.custom import Input, UserModel

class Noisy(torch.nn.Module):
    def forward(self, pixels):
        return torch.rand(len(pixels), 8) + pixels.mean()

class Steady(torch.nn.Module):
    def forward(self, pixels):
        return pixels.mean(dim=3).flatten(1)

def noisy():
    return UserModel(Noisy(), Input(32, 32))

def steady():
    return UserModel(Steady(), Input(32, 32, channels="gray", interpolation="area"), license="MIT")
"""


@pytest.fixture
def networks(wsa, tmp_path):
    """A module of networks in the current folder."""
    (tmp_path / "cli_networks.py").write_text(NETWORKS)
    yield
    sys.modules.pop("cli_networks", None)


@pytest.mark.slow
@pytest.mark.usefixtures("all_probe_frames", "networks")
def test_check_passes_a_steady_model_and_fails_a_noisy_one(wsa):
    code, out, _ = wsa("models", "check", "cli_networks:steady")
    assert code == 0 and len(out.splitlines()) == 14
    assert all(line.startswith("ok ") for line in out.splitlines())
    code, out, _ = wsa("models", "check", "cli_networks:noisy", "--json")
    report = read_json(out)
    failed = [point["what"] for point in report["points"] if not point["ok"]]
    assert code == 4 and report["ok"] is False and "the same again" in failed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("check", 2, "wsa models check NAME"),
        ("check vitt", 2, "did you mean vit?"),
        ("check no_such_module_of_mine:make", 3, "cannot be imported on"),
        ("check timm:test_resnet:random --output cls", 2, "has no class token"),
        ("check timm:test_resnet:random --output grid:9", 2, "Ask for grid:5"),
        (
            "check ae --weights aee=ae.safetensors",
            2,
            "--weights aee=ae.safetensors: none of the models",
        ),
        ("check ae:random --weights ae=ae.safetensors", 2, "none of the models uses it"),
        (
            "check ae-0123456789ab --output map",
            2,
            "the key ae-0123456789ab has its own",
        ),
        ("list ae", 2, "wsa models check ae"),
        ("list --precision bf16", 2, "it is for 'wsa models check'"),
        ("chekc vit", 2, "chekc"),
    ],
)
def test_a_model_that_cannot_be_checked_is_refused(wsa, arguments, code, message):
    outcome = wsa("models", *arguments.split())
    assert outcome.code == code
    assert message in outcome.err and "Traceback" not in outcome.err


def test_a_dry_run_reports_a_fitted_output_and_writes_nothing(wsa, tmp_path, kit):
    store = open_store(str(tmp_path / "store"), create=True)
    kit.add_segment(store, height=64, width=48)
    outcome = wsa(
        "encode", "--models", "timm:test_vit:random", "--dry-run", "--json", "--scheduler", "inproc",
        "--output", "grid:2+pca:2@Pong", "--geometry", "crop",
    )  # fmt: skip
    (line,) = outcome.json["models"].values()
    assert line["objects"] == 1 and line["passes"] > 0 and line["bytes"] > 0
    assert line["fit"] == line["passes"], "the basis is fitted on all frames of the game"
    assert not list((tmp_path / "store").glob("models/*"))


@pytest.mark.parametrize(
    ("output", "numbers", "fitted"),
    [
        ("pooled", 64, False),
        ("cls", 64, False),
        ("map", 10 * 10 * 64, False),
        ("grid:2+pca:8", 8, True),
        ("grid:2+rp:8", 8, False),
    ],
)
def test_every_output_is_estimated(output, numbers, fitted, in_memory, kit):
    kit.add_segment(in_memory, height=64, width=48)
    request = parse_request("timm:test_vit:random", {}, output, geometry="pad")
    snapshot = take_snapshot(in_memory)
    asked = (snapshot, request, ["Pong"])
    how = Encoding([request], ["Pong"], "cpu", "torch")
    found = estimate(*asked, measure_model(snapshot, request, how)[0])
    (meta,) = snapshot.segments()
    fit = sum(len(part.frames) for part in probe_frames.load_frames())
    assert found.bytes == 2 * numbers * meta.frames
    assert found.fit == (fit if fitted else 0)
    assert take_snapshot(in_memory).models == []


def test_every_model_of_a_dry_run_has_its_own_estimate(filled, key):
    """Even if several have an alias in common; a model that is named twice has one."""
    palettes = "palette,palette@map+palette:3"
    command = ("encode", "--scheduler", "inproc", "--dry-run", "--json", "--models")
    models = filled(*command, f"{palettes},objects,{MODEL}@pooled,{key}").json["models"]
    assert sorted(models) == [
        *("objects of Breakout", "palette@map+palette:3@Breakout"),
        *("palette@map+palette:5@Breakout", ALIAS),
    ]
    assert [one["objects"] for one in models.values()] == [4, 4, 4, 0]
    models = filled(*command, f"{MODEL}@pooled,{MODEL}@grid:2").json["models"]
    assert list(models) == [key, f"{ALIAS}:random@grid:2"]


@pytest.mark.parametrize(
    "command",
    [
        (*LEARN, "--eval-frequency", "1", "--dry-run"),
        ("eval", "run", "--dry-run"),
        ("collect", "--game", "Breakout", "--steps", "8", "--policy", "run"),
        ("study", "attend", "run"),
        ("bench", "--games", "Breakout", "--fusions", "wsa", "--models", MODEL, "--dry-run"),
    ],
    ids=lambda command: command[0],
)
def test_weights_that_no_model_uses_are_refused(filled, unchanged, command):
    refused = f"wsa {command[0]}: --weights typo=w.pt: none of the models uses it. Name one of "
    with unchanged():
        outcome = filled(*command, "--weights", "typo=w.pt")
        assert outcome.code == 2 and outcome.error.startswith(refused), outcome.err
        assert ALIAS in outcome.error


def test_weights_are_named_by_the_model_as_typed_with_or_without_its_output(filled, tmp_path):
    network = timm.create_model("test_resnet", pretrained=False)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    name = "timm:test_resnet.r160_in1k"
    for alias in (name, ALIAS):
        command = ("encode", "--models", f"{name}@pooled", "--weights", f"{alias}=w.safetensors")
        assert filled(*command, "--scheduler", "inproc", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("typed", "alias"),
    [
        ("vit:random", "vit"),
        ("timm:test_resnet@pooled", ALIAS),
        ("mine=timm:test_resnet@pooled", "mine"),
        ("lab.nets:make", "lab_nets_make"),
    ],
)
def test_a_model_as_typed_has_an_alias(typed, alias):
    assert alias_of(typed) == alias
