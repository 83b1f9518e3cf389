"""Files of a study: raw tables, a report, and a page for all studies.

STUDY/
    KIND.csv      raw results, one row for each unit
    KIND.md       tables, evaluation settings, the command, versions
    KIND.json     the study's section of the page
    index.html    all studies in the folder, in one file
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from wsa.learn.bench.run_cell import Failure
from wsa.learn.report.document import Part, Section, Table, csv_table, markdown, table, versions
from wsa.learn.report.page import page
from wsa.store.common import atomic_files
from wsa.store.format import records
from wsa.store.objects.writer import command_line

PAGE = "index.html"
Raw = tuple[Sequence[str], Iterable[Sequence[Any]]]
# In the order of sections on the page.
ORDER = ("combine", "scale-cached", "scale-played", "scale-during", "generalize", "attend")


def write(
    folder: Path,
    kind: str,
    title: str,
    parts: Sequence[Part],
    evaluation: str,
    tables: Mapping[str, Raw],
) -> str:
    """Write a study's tables, and the page of all studies in the folder.

    `kind` is one of `ORDER`; `tables` has columns and rows of the raw tables, by file name.

    Returns:
        The study as Markdown.

    Raises:
        DamagedError: If another study's section cannot be read.
        StorageError: If there is no room, or the folder refuses access.
    """
    facts = {"evaluation": evaluation, "command": command_line(), "versions": versions()}
    section = Section(kind, title, tuple(parts), facts)
    text = markdown(section)
    for name, (columns, rows) in tables.items():
        atomic_files.replace(folder / f"{name}.csv", csv_table(columns, rows))
    atomic_files.replace(folder / f"{kind}.md", text.encode())
    atomic_files.replace(folder / f"{kind}.json", msgspec.json.encode(section))
    atomic_files.replace(folder / PAGE, page("wsa study", _sections(folder)).encode())
    return text


def failures_table(failures: Sequence[Failure]) -> Table:
    """Tabulate the runs of a grid that failed."""
    rows = [(failure.cell, failure.kind, failure.message) for failure in failures]
    return table("Runs that failed", ("run", "kind", "reason"), rows)


def _sections(folder: Path) -> list[Section]:
    paths = [folder / f"{kind}.json" for kind in ORDER]
    return [records.read_json(p.read_bytes(), Section, str(p)) for p in paths if p.exists()]
