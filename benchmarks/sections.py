"""Run the sections of a long benchmark, each in a process of its own and within its time.

Rows are written to `results.json` and `results.md` as they come, so that a killed script keeps what
it has. A section that fails, hangs, or dies does not stop the others: its error is written instead,
and `run` returns 1.

Processes are forked, so they start at once. Until then, this process must not use a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from benchmarks.kit import markdown_table

Add = Callable[..., None]
"""Adds a row to a section's table: `add(model="vit", rate=1234.5)`."""


@dataclasses.dataclass(frozen=True)
class Section:
    """One measurement.

    Attributes:
        title: Heading of its table.
        seconds: Time after which it is killed.
        work: Measures, and adds rows.
    """

    title: str
    seconds: float
    work: Callable[[Add], None]


@dataclasses.dataclass
class Result:
    """What a section has measured so far.

    Attributes:
        title: Heading of its table.
        state: Whether it has ended, and how.
        seconds: Time it took.
        error: What went wrong; empty if nothing did.
        rows: Rows of its table.
    """

    title: str
    state: Literal["running", "done", "failed"] = "running"
    seconds: float = 0.0
    error: str = ""
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def run(sections: Sequence[Section], folder: Path, about: dict[str, Any]) -> int:
    """Run sections one by one.

    Args:
        sections: Sections, in order.
        folder: Folder for the results.
        about: What was measured, and how; it is written with the results.

    Returns:
        1 if any section failed, else 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for section in sections:
        results.append(Result(section.title))
        _run(section, results[-1], lambda: _write(folder, about, results))
        print(as_text(results[-1]), flush=True)
    return int(any(result.state == "failed" for result in results))


def _run(section: Section, result: Result, written: Callable[[], None]) -> None:
    """Run a section in a process of its own; call `written` after each change of the result."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(section.work, theirs))
    began = time.monotonic()
    written()
    process.start()
    theirs.close()  # So that the end of the process ends the pipe.
    try:
        while result.state == "running":
            left = section.seconds - (time.monotonic() - began)
            if not ours.poll(max(0.0, left)):
                result.state, result.error = "failed", f"It took more than {section.seconds:g} s."
            else:
                _take(ours, process, result)
            result.seconds = round(time.monotonic() - began, 1)
            written()
    finally:
        with contextlib.suppress(ProcessLookupError):  # It may have ended, or not yet begun.
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _take(pipe: Connection, process: Any, result: Result) -> None:
    """Take the next message of a section's process."""
    try:
        kind, value = pipe.recv()
    except EOFError:
        process.join()
        result.state, result.error = "failed", f"Its process ended with code {process.exitcode}."
        return
    if kind == "row":
        result.rows.append(value)
    else:
        result.state, result.error = kind, value


def _measure(work: Callable[[Add], None], pipe: Connection) -> None:
    os.setpgid(0, 0)  # So that the processes that it starts can be killed with it.
    try:
        work(lambda **row: pipe.send(("row", row)))
    except BaseException as error:  # noqa: BLE001  Any error is a result.
        traceback.print_exc()
        pipe.send(("failed", " ".join(f"{type(error).__name__}: {error}".split())[:500]))
    else:
        pipe.send(("done", ""))


def _write(folder: Path, about: dict[str, Any], results: Sequence[Result]) -> None:
    values = {**about, "sections": [dataclasses.asdict(result) for result in results]}
    lines = [f"- {name}: {value}" for name, value in about.items()]
    texts = ["\n".join(lines), *map(as_text, results)]
    for name, text in (
        ("results.json", json.dumps(values, indent=2)),
        ("results.md", "\n".join(texts)),
    ):
        (folder / f".{name}").write_text(text + "\n")
        (folder / f".{name}").replace(folder / name)


def as_text(result: Result) -> str:
    """A result as Markdown: heading, state, and table."""
    columns = list(dict.fromkeys(name for row in result.rows for name in row))
    lines = [f"\n## {result.title}\n"]
    if result.state != "done":
        lines.append(
            f"**{result.state}** after {result.seconds:g} s. {result.error}".rstrip() + "\n"
        )
    if columns:
        rows = [[_cell(row.get(name, "")) for name in columns] for row in result.rows]
        lines.append(markdown_table(columns, rows))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """A number with three digits, or as many as its whole part has."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
