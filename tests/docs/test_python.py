"""The pages about Python: their examples run, and the reference is up to date."""

import json
import logging
import re
import runpy
from pathlib import Path

import pytest
from command_kit import blank_figures

import wsa

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with its own store and cache; figures are blank."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("WSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with blank_figures():
        yield tmp_path


def test_the_examples_of_the_guide_run(folder):
    blocks = BLOCK.findall((ROOT / "docs/howto/python.md").read_text())
    assert len(blocks) > 6
    scope = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"howto/python.md, block {number}", "exec"), scope)  # noqa: S102
    assert (folder / "runs/first/config.json").exists()


@pytest.mark.slow
def test_the_notebook_runs(folder, capsys):
    notebook = json.loads((ROOT / "docs/tutorial/python.ipynb").read_text())
    assert notebook["nbformat"] == 4
    scope = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(compile(source, f"python.ipynb, {cell['id']}", "exec"), scope)  # noqa: S102
    assert "Did you mean updates?" in capsys.readouterr().out


def test_the_reference_describes_the_code():
    """`python docs/reference/make_python.py` writes it again."""
    script = runpy.run_path(str(ROOT / "docs/reference/make_python.py"))
    assert (ROOT / "docs/reference/python.md").read_text() == script["page"]()
    listed = [name for names in script["GROUPS"].values() for name in names]
    assert sorted([*listed, "__version__"]) == list(wsa.__all__)
