"""P7: no store makes wsa import a module; only the person who starts the process can name one."""

import contextlib
import sys

import pytest

from wsa import cli
from wsa.encode.jobs import tasks
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.models import networks
from wsa.encode.models.registry import parse_request
from wsa.encode.registration import check, register
from wsa.encode.registration import identity as lookup
from wsa.store.common import hashing
from wsa.store.common.errors import WsaError
from wsa.store.format.records import ModelMeta
from wsa.store.objects import model_spec
from wsa.store.objects.model_spec import GRAY, Identity, ModelSpec, Preprocessing
from wsa.store.objects.snapshot import take_snapshot

NAME = "evil_module_of_a_store:make"
ALIAS = "evil_module_of_a_store_make"


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that importing the module would create; the module is on the path."""
    folder = tmp_path / "here"
    folder.mkdir()
    file = tmp_path / "canary"
    (folder / "evil_module_of_a_store.py").write_text(
        f"import pathlib\npathlib.Path({str(file)!r}).touch()\ndef make():\n    raise ValueError\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield file
    sys.modules.pop("evil_module_of_a_store", None)


def plant_model(store, plant, *, timm_name=NAME, source="user", alias=ALIAS):
    """The key of a stored model whose spec names the module."""
    identity = Identity(
        architecture=timm_name,
        weights="0" * 64,
        random=False,
        preprocessing=Preprocessing("squash", 84, 84, "area", (0.0,), (1.0,), channels=GRAY),
        output="pooled",
        basis="",
        window=1,
        precision="fp32",
    )
    spec = ModelSpec(alias, timm_name, identity, (8,), source, "MIT", 0.0, {})
    plant(store, ModelMeta(spec.key), {"spec.json": hashing.canonical(spec)})
    return spec.key


SOURCES = ["user", f"user:{NAME}", "user: evil", f"file:{NAME}", "hub", "package", "random", NAME]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("alias", [ALIAS, "vit"])
def test_a_spec_imports_no_module(store, plant, canary, source, alias):
    key = plant_model(store, plant, source=source, alias=alias)
    snapshot = take_snapshot(store)
    spec = model_spec.read_spec(snapshot, key)
    model_spec.describe(snapshot, key)
    again = lookup.request_of(spec, {})
    ways = [
        lambda: register.open_model(snapshot, key),
        lambda: register.open_model(snapshot, key, weights={"other": NAME}),
        lambda: register.open_model(snapshot, key, source=again.source),
        lambda: networks.build(again),
        lambda: register.register(snapshot, again, 0.1),
        lambda: list(check.check(again, "cpu")),
        lambda: tasks.cached_model(store.url, key, again.source, "cpu", "auto"),
    ]
    for way in ways:
        with pytest.raises(WsaError):
            way()
    with contextlib.suppress(WsaError):  # A worker returns the error, or raises it.
        assert isinstance(
            tasks.register_model(store.url, again, Encoding([again], device="cpu"), 0), tasks.Failed
        )
    for request in ("vit", "lite0", "timm:test_vit:random", "other_module:make"):
        lookup.find_model(snapshot, parse_request(request, {}, "pooled"))
    assert not canary.exists() and "evil_module_of_a_store" not in sys.modules


@pytest.mark.parametrize("source", [pytest.param("user", marks=pytest.mark.slow), f"user:{NAME}"])
def test_commands_import_only_modules_that_users_name(store, kit, plant, canary, source, capsys):
    kit.add_segment(store, height=64, width=48)
    key = plant_model(store, plant, source=source)
    for command in (
        ["models"],
        ["show", key],
        ["encode", "--models", key, "--scheduler", "inproc"],
        ["encode", "--models", key, "--weights", f"other={NAME}", "--scheduler", "inproc"],
        ["models", "check", key],
        ["verify"],
        ["learn", "--game", "Pong", "--models", ALIAS, "--dry-run"],
    ):
        code = cli.main([*command, "--store", store.url])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        if "--weights" in command:
            assert code == 2 and "none of the models uses it" in printed.err
        elif key in command and command[0] != "show":
            assert code == 3 and "never imports a module because a store names it" in printed.err
        assert not canary.exists(), command
    # The user names it, so it is imported, and raises an error.
    code = cli.main(["models", "check", key, "--weights", f"{ALIAS}={NAME}", "--store", store.url])
    assert code == 4 and canary.exists() and "raised ValueError" in capsys.readouterr().err


@pytest.mark.parametrize("weights", ["evil.py", "os:system()", "a:b:c", "timm:vit", ""])
def test_a_named_model_must_be_a_callable_of_a_module(store, plant, canary, weights, capsys):
    key = plant_model(store, plant)
    command = ["models", "check", key, "--weights", f"{ALIAS}={weights}", "--store", store.url]
    assert cli.main(command) == 2
    assert "module:callable" in capsys.readouterr().err and not canary.exists()


def test_a_spec_cannot_get_the_weights_file_of_another_model(store, plant, canary, tmp_path):
    key = plant_model(store, plant, alias="vit")
    with pytest.raises(WsaError, match="module:callable"):
        register.open_model(
            take_snapshot(store), key, weights={"vit": str(tmp_path / "w.safetensors")}
        )
    assert not canary.exists()
