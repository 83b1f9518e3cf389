"""The shape of the project: rooms, sizes, imports, and what is in the wheel."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import wsa

ROOT = Path(__file__).parent.parent
ROOMS = ("encode", "learn", "store")
SOURCES = [
    ROOT / "__init__.py",
    ROOT / "cli.py",
    *(p for r in ROOMS for p in (ROOT / r).rglob("*.py")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_only_the_package_and_the_command_stand_at_the_root():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "cli.py"}


def test_every_folder_of_code_is_a_listed_package():
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    packages = PROJECT["tool"]["setuptools"]["packages"]
    assert packages == [
        "wsa",
        *sorted("wsa." + ".".join(f.relative_to(ROOT).parts) for f in folders),
    ]
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_type_checkers_find_the_package_through_a_link():
    assert (ROOT / ".typing" / "wsa").readlink() == Path("..")
    assert Path(wsa.__file__) == ROOT / "__init__.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_source_file(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file opens with what it is for"
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert not imported & {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "marshal",
        "shelve",
    }
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {"eval", "exec", "yaml.load", "os.system"} & set(called)
    loads = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    allowed = ["torch.load(files[0], map_location='cpu', weights_only=True)"]
    assert loads == (allowed if path == ROOT / "encode/models/registry.py" else [])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_exported_names_exist(path):
    tree = ast.parse(path.read_text())
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    defined = set(re.findall(r"^(?:def |class )?(\w+)", path.read_text(), re.MULTILINE)) | {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for names in listed:
        assert set(names) <= defined
        assert list(names) == sorted(set(names))


def test_imports_go_one_way():
    ended = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert "0 broken" in ended.stdout


def test_the_store_is_read_without_torch_and_dask():
    paths = [p.relative_to(ROOT) for p in (ROOT / "store").rglob("[!_]*.py")]
    modules = ", ".join(
        "wsa." + ".".join(p.with_suffix("").parts)
        for p in paths
        if "commands" not in p.parts and p.name != "configs.py"
    )
    code = f"import sys, {modules}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert not loaded & {"torch", "dask", "distributed", "timm", "gymnasium", "ale_py", "tyro"}


def test_a_store_is_looked_at_without_torch():
    code = (
        "import sys, wsa.encode.commands.status, wsa.store.maintenance.summary; print(*sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(ended.stdout.split()) & {"torch", "timm", "distributed"}


@pytest.mark.slow  # pip fetches setuptools to build.
def test_the_wheel(tmp_path):
    source = tmp_path / "source"  # setuptools leaves its build folder where it builds.
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info"))
    build = [*(sys.executable, "-m", "pip", "wheel", "--quiet"), *(str(source), "--no-deps")]
    subprocess.run([*build, "-w", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    code = {str(p.relative_to(ROOT)) for p in SOURCES}
    shipped = {name.removeprefix("wsa/") for name in names if name.startswith("wsa/")}
    weights = {
        f"encode/models/paper/weights/{p.name}"
        for p in (ROOT / "encode/models/paper/weights").iterdir()
    }
    assert shipped == code | weights | {"py.typed", "encode/registration/probe_frames.npz"}
    assert {name.partition("/")[0] for name in names} == {"wsa", f"wsa-{wsa.__version__}.dist-info"}
    target = tmp_path / "site"
    install = [*(sys.executable, "-m", "pip", "install", "--quiet"), *(str(wheel), "--no-deps")]
    subprocess.run([*install, "--target", str(target)], check=True)
    ended = subprocess.run(
        [sys.executable, "-c", "import wsa, wsa.cli; print(wsa.__file__); wsa.cli.main(['-V'])"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.split("\n")[:2] == [
        str(target / "wsa" / "__init__.py"),
        f"wsa {wsa.__version__}",
    ]


def test_modules_of_commands_import_slow_libraries_only_where_they_use_them():
    """Each of these takes seconds to import, and most commands need none of them."""
    modules = (
        "wsa.encode.inference.encoder",
        "wsa.encode.jobs.tasks",
        "wsa.encode.registration.select",
        "wsa.learn.commands.probe",
        "wsa.learn.runs.train",
    )
    slow = {
        *("sklearn", "tensorboard", "timm"),
        *("torch._dynamo", "torch.utils.tensorboard", "torchvision"),
    }
    code = f"import sys, {', '.join(modules)}; print(*sorted({slow!r} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []
