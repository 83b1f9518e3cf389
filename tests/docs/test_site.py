"""Faults of the site that `make docs` does not report: navigation, links, and lists."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CLOSE_LIST = re.compile(r"^(?![-*] |\d+\. |#|\s|$).*\n(?:[-*]|\d+\.) .*", re.MULTILINE)


def pages_of(entry):
    """The pages of a navigation, in its order."""
    if isinstance(entry, str):
        yield entry
        return
    assert isinstance(entry, list | dict)
    for inner in entry.values() if isinstance(entry, dict) else entry:
        yield from pages_of(inner)


def test_the_navigation_names_every_page_once():
    config = tomllib.loads((ROOT / "zensical.toml").read_text())
    pages = [page.relative_to(DOCS).as_posix() for page in PAGES]
    assert sorted(pages_of(config["project"]["nav"])) == sorted(pages)


def test_links_stay_inside_the_site():
    """A link to a file outside docs/ works in the repository and is dead on the site."""
    dead = []
    for page in PAGES:
        for target in LINK.findall(FENCED.sub("", page.read_text())):
            place = (page.parent / target).resolve()
            if "://" not in target and not (place.is_relative_to(DOCS) and place.exists()):
                dead.append(f"{page.name}: {target}")
    assert not dead


def test_a_blank_line_precedes_every_list():
    """Without it, Python-Markdown, unlike GitHub, continues the paragraph."""
    close = {page.name: CLOSE_LIST.findall(FENCED.sub("", page.read_text())) for page in PAGES}
    assert not {name: found for name, found in close.items() if found}
