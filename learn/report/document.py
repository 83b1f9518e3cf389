"""Content of a report, apart from its layout: text, tables, and figures in sections.

`markdown` is its plain form; `wsa.learn.report.page` makes a page of several sections. A section is
stored as JSON beside its results, so that a page can be made again from all sections.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import platform
from collections.abc import Iterable, Sequence

import msgspec

from wsa.store.common import terminal
from wsa.store.common.version import __version__

# Libraries that may affect results.
LIBRARIES = ("torch", "numpy", "ale-py", "gymnasium")


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A paragraph."""

    text: str


class Table(msgspec.Struct, frozen=True, tag="table"):
    """A table of cells as displayed; `note` says how to read it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class Figure(msgspec.Struct, frozen=True, tag="figure"):
    """A figure, drawn by `wsa.learn.report.figures`. Its title is also its text for screen readers."""

    title: str
    svg: str
    note: str = ""


class Film(msgspec.Struct, frozen=True, tag="film"):
    """A video: an MP4 file with a codec that browsers play."""

    title: str
    mp4: bytes


class Picture(msgspec.Struct, frozen=True):
    """A small picture, a PNG file."""

    png: bytes
    caption: str


class Gallery(msgspec.Struct, frozen=True, tag="gallery"):
    """Pictures side by side, as many in a row as fit."""

    title: str
    pictures: tuple[Picture, ...]
    note: str = ""


Part = Text | Table | Figure | Film | Gallery


class Section(msgspec.Struct, frozen=True):
    """A self-contained part of a report.

    Attributes:
        name: Short name, unique within a report; used as the anchor.
        title: Heading.
        parts: Content.
        facts: How the section was made, by name: the evaluation, the command, versions.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    facts: dict[str, str] = {}


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = ""
) -> Table:
    """Make a table of values as `shown` displays them."""
    cells = tuple(tuple(map(shown, row)) for row in rows)
    return Table(title, tuple(columns), cells, note)


def shown(value: object) -> str:
    """Display a value: a dash for None, commas between the elements of a list, or else `str`."""
    if value is None:
        return "-"
    named = hasattr(value, "_fields")  # A named tuple, such as an interval, has its own `str`.
    if isinstance(value, list | tuple) and not named:
        return ", ".join(map(str, value))
    return str(value)


def csv_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Write a table as a CSV file."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue().encode()


def versions() -> str:
    """Versions of wsa and of libraries that may affect results."""
    known = {"wsa": __version__, "Python": platform.python_version()}
    known |= {name: importlib.metadata.version(name) for name in LIBRARIES}
    return ", ".join(f"{name} {version}" for name, version in known.items())


def markdown(section: Section) -> str:
    """Write a section as Markdown; figures, videos, and pictures appear only on the page."""
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
            case Figure() | Film() | Gallery():
                pass
    if section.facts:
        lines.append("## How this was made\n")
        lines += [f"- {name}: {terminal.plain(fact)}" for name, fact in section.facts.items()]
    return "\n".join([*lines, ""])
