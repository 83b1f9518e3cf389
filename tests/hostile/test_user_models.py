"""No store makes wsa import a module (P7): only whoever started the process can, by its name."""

from __future__ import annotations

import contextlib
import sys

import pytest

from wsa import cli
from wsa.encode.jobs import tasks
from wsa.encode.models import registry
from wsa.encode.models.registry import parse_request
from wsa.encode.registration import check, register
from wsa.encode.registration import identity as lookup
from wsa.store.common import hashing
from wsa.store.common.errors import WsaError
from wsa.store.format.records import ModelMeta
from wsa.store.objects import model_spec
from wsa.store.objects.model_spec import Identity, ModelSpec, Preprocessing
from wsa.store.objects.snapshot import take_snapshot

NAME = "evil_module_of_a_store:make"
ALIAS = "evil_module_of_a_store_make"


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that importing the module would leave; the module lies where it would be found."""
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


def planted(store, plant, *, timm_name=NAME, source="user", alias=ALIAS):
    """The key of a model that says what an enemy would have imported."""
    identity = Identity(
        architecture=timm_name,
        weights="0" * 64,
        random=False,
        preprocessing=Preprocessing("squash", 84, 84, "area", (0.0,), (1.0,), channels="grey"),
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
@pytest.mark.parametrize("alias", [ALIAS, "vit", "lite0"])
def test_a_spec_makes_nobody_import_a_module(store, plant, canary, source, alias):
    key = planted(store, plant, source=source, alias=alias)
    snapshot = take_snapshot(store)
    spec = model_spec.read_spec(snapshot, key)
    model_spec.describe(snapshot, key)
    again = lookup.request_of(spec, {})
    ways = [
        lambda: register.open_model(snapshot, key),
        lambda: register.open_model(snapshot, key, weights={"other": NAME}),
        lambda: register.open_model(snapshot, key, source=again.source),
        lambda: registry.build(again),
        lambda: register.register(snapshot, again, 0.1),
        lambda: list(check.check(again, "cpu")),
        lambda: tasks.cached_model(store.url, key, again.source, "cpu", "auto"),
    ]
    for way in ways:
        with pytest.raises(WsaError):
            way()
    with contextlib.suppress(WsaError):  # Of the two a worker gives either.
        assert isinstance(tasks.register_model(store.url, again, 0.1, "cpu", 0), tasks.Failed)
    for request in ("vit", "lite0", "timm:test_vit:random", "other_module:make"):
        lookup.find_model(snapshot, parse_request(request, {}, "pooled"))
    assert not canary.exists() and "evil_module_of_a_store" not in sys.modules


@pytest.mark.parametrize("source", [pytest.param("user", marks=pytest.mark.slow), f"user:{NAME}"])
def test_no_command_imports_it_until_it_is_named(store, kit, plant, canary, source, capsys):
    kit.add_segment(store, height=64, width=48)
    key = planted(store, plant, source=source)
    for command in (
        ["models"],
        ["show", key],
        ["encode", "--models", key, "--scheduler", "inproc"],
        ["encode", "--models", key, "--scheduler", "inproc", "--dry-run"],
        ["encode", "--models", f"timm:test_vit:random,{key}", "--output", "pooled", "--dry-run"],
        ["encode", "--models", key, "--weights", f"other={NAME}", "--scheduler", "inproc"],
        ["models", "check", key],
        ["verify"],
        ["learn", "--game", "Pong", "--models", ALIAS, "--dry-run"],
    ):
        code = cli.main([*command, "--store", store.url])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        if "--weights" in command:
            assert code == 2 and "none of --models uses them" in said.err
        elif key in command and command[0] != "show":
            assert code == 3 and "never imports a module because a store names it" in said.err
        assert not canary.exists(), command
    # Named by whoever starts the process, it is imported: this one then raises.
    code = cli.main(["models", "check", key, "--weights", f"{ALIAS}={NAME}", "--store", store.url])
    assert code == 4 and canary.exists() and "raised ValueError" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["evil.py", "os:system()", "a:b:c", "timm:vit", ""])
def test_what_is_named_must_be_a_modules_callable(store, plant, canary, given, capsys):
    key = planted(store, plant)
    command = ["models", "check", key, "--weights", f"{ALIAS}={given}", "--store", store.url]
    assert cli.main(command) == 2
    assert "module:callable" in capsys.readouterr().err and not canary.exists()


def test_a_name_in_a_spec_cannot_stand_for_another_models_file(store, plant, canary, tmp_path):
    """A weights file that the user names for `vit` is not handed to an enemy's module."""
    key = planted(store, plant, alias="vit")
    with pytest.raises(WsaError, match="module:callable"):
        register.open_model(
            take_snapshot(store), key, weights={"vit": str(tmp_path / "w.safetensors")}
        )
    assert not canary.exists()
