"""The documentation says what is true: commands parse, links lead somewhere, verbs are described."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from wsa import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(?:bash|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
REDIRECTION = re.compile(r" 2?> \S+")
LINK = re.compile(r"\]\(([^)#]+?\.md|[^)#]+/)\)")


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            for line in block.splitlines():
                if line.startswith("wsa "):
                    found.append((page.relative_to(ROOT).as_posix(), line.partition("  #")[0]))
    return list(dict.fromkeys(found))


def test_there_are_commands_to_check():
    assert len(commands()) > 20


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_shown_parses(page, line):
    name, *arguments = shlex.split(REDIRECTION.sub("", line))[1:]
    if name.startswith("-") or "--help" in arguments:
        return
    assert cli.parse(name, arguments) is not None


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_is_described(name):
    assert f"## wsa {name}\n" in (ROOT / "docs/reference/commands.md").read_text()


def test_the_page_of_commands_is_the_help_of_the_commands():
    """`python docs/reference/make_commands.py` writes it anew."""
    scope: dict[str, object] = {"__name__": "make_commands"}
    source = (ROOT / "docs/reference/make_commands.py").read_text()
    exec(compile(source, "make_commands.py", "exec"), scope)  # noqa: S102
    page = scope["page"]
    assert callable(page)
    assert (ROOT / "docs/reference/commands.md").read_text() == page()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_is_linked_from_the_index():
    index = (ROOT / "docs/index.md").read_text()
    for page in ROOT.glob("docs/*/*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in index
