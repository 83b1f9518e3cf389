"""The documentation is true: commands parse, links lead somewhere, and every verb is described."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from wsa import cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md")])
BLOCK = re.compile(r"^```(?:bash|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
REDIRECTION = re.compile(r" 2?> \S+")
LINK = re.compile(r"\]\(([^)#]+?\.md|[^)#]+/)\)")


def shown_commands(page):
    """The `wsa` command lines of a page's blocks, without comments and redirections."""
    lines = [line for block in BLOCK.findall(page.read_text()) for line in block.splitlines()]
    commands = [REDIRECTION.sub("", line.partition("  #")[0]) for line in lines]
    return [command for command in commands if command.startswith("wsa ")]


COMMANDS = {page: commands for page in PAGES if (commands := shown_commands(page))}


@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_shown_parses(page):
    for command in COMMANDS[page]:
        verb, *arguments = shlex.split(command)[1:]
        if not verb.startswith("-") and "--help" not in arguments:
            assert cli.parse(verb, arguments) is not None


def test_the_page_of_commands_is_the_help_of_the_commands():
    """`python docs/reference/make_commands.py` writes it again."""
    page = (DOCS / "reference/commands.md").read_text()
    assert page == runpy.run_path(str(DOCS / "reference/make_commands.py"))["page"]()
    assert not [verb for verb in cli.VERBS if f"## wsa {verb}\n" not in page]


def test_links_lead_somewhere():
    links = [(page, link) for page in PAGES for link in LINK.findall(page.read_text())]
    assert len(COMMANDS) > 10 and len(links) > 20
    dead = [(p, link) for p, link in links if "://" not in link and not (p.parent / link).exists()]
    assert not dead


def test_every_page_is_linked_from_the_index():
    index = (DOCS / "index.md").read_text()
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.glob("*/*.md")]
    assert not [page for page in pages if page not in index]
