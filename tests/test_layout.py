"""The shape of the project: its packages, imports, and sizes, and what is in the wheel."""

import ast
import graphlib
import os
import re
import shutil
import subprocess
import symtable
import sys
import tomllib
import zipfile
from functools import cache
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


def test_the_root_has_no_other_modules():
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
    assert Path(wsa.__file__).resolve() == ROOT / "__init__.py"


def files(wrong):
    """The source files with a fault; a failure names all of them."""
    return [str(path.relative_to(ROOT)) for path in SOURCES if wrong(path)]


@cache
def parse(path):
    return ast.parse(path.read_text())


def dotted(node):
    """The text of a name or of an attribute of one, such as `torch.load`; else nothing."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@cache
def calls(path):
    """All calls, with the functions' names."""
    return [(dotted(n.func), n) for n in ast.walk(parse(path)) if isinstance(n, ast.Call)]


@cache
def imports(path, at_start=False):
    """The modules that a file imports, and the names that it imports from modules.

    Args:
        path: The file.
        at_start: Whether to leave out imports inside of functions and for type checkers.
    """
    names = set()
    pending = [parse(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif at_start and isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        elif not (at_start and isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING"):
            pending += ast.iter_child_nodes(node)
    return names


def test_a_file_has_a_docstring_and_a_long_one_a_reason():
    assert not files(lambda path: not ast.get_docstring(parse(path)))
    long = files(lambda path: len(path.read_text().splitlines()) > 600)
    reason = "in one file because"
    assert not [f for f in long if reason not in (ast.get_docstring(parse(ROOT / f)) or "").lower()]


def test_a_folder_holds_few_modules():
    folders = {path.parent for path in SOURCES}
    counts = {f: sum(p.name != "__init__.py" for p in f.glob("*.py")) for f in folders}
    assert not [str(folder) for folder, count in counts.items() if count > 14]


def test_no_code_runs_what_it_reads():
    runners = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not files(lambda path: runners & {name.partition(".")[0] for name in imports(path)})
    run = {"eval", "exec", "yaml.load", "os.system"}
    assert not files(lambda path: run & {name for name, _ in calls(path)})
    loads = [call for path in SOURCES for name, call in calls(path) if name == "torch.load"]
    assert not [call for call in loads if "weights_only=True" not in ast.unparse(call)]


def test_exported_names_exist():
    def wrong(path):
        body = parse(path).body
        defined = set(re.findall(r"^(?:def |class )?(\w+)", path.read_text(), re.MULTILINE))
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
        listed = [
            ast.literal_eval(node.value)
            for node in body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        return any(set(n) - defined or list(n) != sorted(set(n)) for n in listed)

    assert not files(wrong)


def test_modules_do_not_import_each_other_in_a_circle():
    modules = {
        "wsa." + ".".join(p.relative_to(ROOT).with_suffix("").parts): p
        for p in SOURCES
        if p.name != "__init__.py"
    }
    graph = {name: imports(path) & modules.keys() for name, path in modules.items()}
    assert sum(map(len, graph.values())) > len(graph)
    list(graphlib.TopologicalSorter(graph).static_order())  # Raises an error that names the circle.


def test_files_named_in_the_map_exist():
    """Paths start at the root: `store/objects/writer.py`."""
    named = re.findall(r"`([\w.-]+(?:/[\w.-]*)+)`", (ROOT / "docs/design/000-map.md").read_text())
    assert len(named) > 50
    assert not [name for name in named if not (ROOT / name).exists()]


def test_imports_go_one_way():
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert linted.returncode == 0 and "0 broken" in linted.stdout, linted.stdout


def import_in_a_process(*groups):
    """All modules that a new process has once it has imported each group in turn."""
    lines = [f"import {', '.join(group)}; print(*sys.modules)" for group in groups]
    code = "\n".join(["import sys", *lines])
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in ended.stdout.splitlines()]


def test_a_store_is_read_and_models_are_listed_without_torch_and_dask():
    paths = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "store").rglob("[!_]*.py")]
    library = [".".join(("wsa", *p.parts)) for p in paths if "commands" not in p.parts]
    library.remove("wsa.store.configs")
    status = ("wsa.encode.commands.status", "wsa.store.maintenance.summary")
    aliases = ("wsa.encode.commands.models",)
    store, inspected, listed = import_in_a_process(library, status, aliases)
    assert not store & {"torch", "dask", "distributed", "timm", "gymnasium", "ale_py", "tyro"}
    assert not (inspected | listed) & {"torch", "timm", "distributed"}


# Each takes seconds to import, and most commands need none of them.
SLOW = {"sklearn", "tensorboard", "timm", "torch._dynamo", "torch.utils.tensorboard", "torchvision"}
LIGHT = (
    "wsa.encode.inference.encoder",
    "wsa.encode.jobs.tasks",
    "wsa.encode.registration.select",
    "wsa.learn.commands.probe",
    "wsa.learn.runs.train",
)


def test_modules_of_commands_name_slow_libraries_only_inside_of_functions():
    pending, seen = set(LIGHT), set[str]()
    while pending:
        module = pending.pop()
        seen.add(module)
        pending |= {module.rpartition(".")[0]} - seen
        if path := source_of(module):
            pending |= imports(path, at_start=True) - seen
    assert len(seen) > 100
    assert not {m for m in seen if any(m == slow or m.startswith(f"{slow}.") for slow in SLOW)}


@pytest.mark.slow  # It imports torch in a new process.
def test_modules_of_commands_import_no_slow_libraries():
    (modules,) = import_in_a_process(LIGHT)
    assert not modules & SLOW


@pytest.mark.slow  # pip fetches setuptools to build.
def test_the_wheel_has_all_of_the_code_and_runs(tmp_path):
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
    data = {f"encode/registration/{name}.npz" for name in ("game_levels", "probe_frames")}
    assert shipped == code | weights | data | {"py.typed"}
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


def source_of(module):
    """File of a module of wsa or of the benchmarks; None for other modules."""
    parts = module.split(".")
    base = ROOT.joinpath(*(parts[1:] if parts[0] == "wsa" else parts))
    files = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in files if path.is_file()), None)


@cache
def bound(path):
    """Names that a module defines or imports at its top level."""
    symbols = symtable.symtable(path.read_text(), str(path), "exec").get_symbols()
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


def missing_names(script):
    """Names of wsa that a script imports, or reads from a module, and that do not exist."""
    missing, modules = [], dict[str, Path]()
    tree = ast.parse(script.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (path := source_of(f"{node.module}")) is None:
            continue
        for alias in node.names:
            if inner := source_of(f"{node.module}.{alias.name}"):
                modules[alias.asname or alias.name] = inner
            elif alias.name not in bound(path):
                missing.append(f"{script.name}: {node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module and node.attr not in bound(module) | {"__name__"}:
                missing.append(f"{script.name}: {node.value.id}.{node.attr}")
    return missing


def test_benchmarks_use_only_names_that_exist():
    scripts = sorted((ROOT / "benchmarks").rglob("*.py"))
    assert scripts and not [name for script in scripts for name in missing_names(script)]


def test_a_name_that_does_not_exist_is_reported(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from wsa.learn.probe import linear as probes\n"
        "from wsa.learn.probe.linear import Axes, ridge_path\n"
        "from benchmarks.kit import markdown, chart\n"
        "probes.ridge(probes.r2)\n"
    )
    assert missing_names(script) == [
        "script.py: wsa.learn.probe.linear.ridge_path",
        "script.py: benchmarks.kit.chart",
        "script.py: probes.r2",
    ]
