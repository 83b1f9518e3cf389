"""What a report says, apart from how it looks: text, tables and figures in sections.

`markdown` is its plain form; `wsa.learn.report.page` makes a page of several sections. A section is
kept as JSON beside what it is about, so that a page can be made again of all that are there.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence

import msgspec

from wsa.store.common import terminal
from wsa.store.common.version import __version__

# What a result may depend on.
LIBRARIES = ("torch", "numpy", "ale-py", "gymnasium")


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A paragraph."""

    text: str


class Table(msgspec.Struct, frozen=True, tag="table"):
    """A table.

    Attributes:
        title: What it is of.
        columns: Names of the columns.
        rows: Cells, as they are to be read.
        note: How to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class Figure(msgspec.Struct, frozen=True, tag="figure"):
    """A figure, as `wsa.learn.report.figures` draws them.

    Attributes:
        title: What it shows; read aloud in its place.
        svg: The drawing.
        note: How to read it.
    """

    title: str
    svg: str
    note: str = ""


class Film(msgspec.Struct, frozen=True, tag="film"):
    """A film.

    Attributes:
        title: What it shows.
        mp4: The file, of a codec that browsers play.
    """

    title: str
    mp4: bytes


Part = Text | Table | Figure | Film


class Section(msgspec.Struct, frozen=True):
    """A part of a report that stands by itself.

    Attributes:
        name: Short and unique within a report: its anchor.
        title: Its heading.
        parts: What it says.
        facts: How this was made, by name: how it was judged, the command, versions.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    facts: dict[str, str]


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = ""
) -> Table:
    """A table of values as they are to be read: None is a dash, other values are as `str` has them."""
    cells = tuple(tuple("-" if cell is None else str(cell) for cell in row) for row in rows)
    return Table(title, tuple(columns), cells, note)


def versions() -> str:
    """Versions of wsa and of the libraries that a result may depend on."""
    found = {"wsa": __version__, "Python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in LIBRARIES}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def markdown(section: Section) -> str:
    """A section as Markdown; its figures and films are on the page alone."""
    lines = [f"# {section.title}\n"]
    for part in section.parts:
        match part:
            case Text():
                lines.append(f"{part.text}\n")
            case Table():
                lines.append(f"## {part.title}\n")
                if part.note:
                    lines.append(f"{part.note}\n")
                lines.append(terminal.markdown(part.columns, part.rows))
            case Figure() | Film():
                pass
    if section.facts:
        lines.append("## How this was made\n")
        lines += [f"- {name}: {terminal.plain(fact)}" for name, fact in section.facts.items()]
    return "\n".join([*lines, ""])
