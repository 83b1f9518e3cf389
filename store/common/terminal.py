"""Terminal output: progress with rate and time left, log messages, tables, and results.

Progress and log messages go to standard error and results to standard output, so that a script reads
only results. If standard error is not a terminal, progress is a plain line every few seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import msgspec

from wsa.store.common.errors import WsaError

PLAIN_LINE_EVERY_S = 10.0
_UNWRAPPED_COLUMNS = 100_000  # Columns of a pipe or a file, so that no line wraps.
# Lines of a `rich.box.Box`: spaces between columns, and dashes below the column names.
_BOX = "    \n    \n -  \n" + 5 * "    \n"


def say(text: str) -> None:
    """Print a message for the user, not part of the result."""
    print(plain(text, keep="\n"), file=sys.stderr, flush=True)


@contextlib.contextmanager
def show_log() -> Iterator[None]:
    """Print what wsa's modules log, until the block ends."""
    logger, handler = logging.getLogger("wsa"), _Remarks()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


class _Remarks(logging.Handler):
    """Log handler that prints messages to the current standard error and marks warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        say(mark + record.getMessage())


def say_event(event: object) -> None:
    """Print an event and the time as one line of JSON to standard error, for `--json`.

    Standard output stays one JSON document: the result.
    """
    fields = dataclasses.asdict(event)  # type: ignore[call-overload]
    values = {"event": type(event).__name__, "time": round(time.time(), 3), **fields}
    print(json.dumps(values, default=_json), file=sys.stderr, flush=True)


def _json(value: object) -> object:
    """Convert a value for JSON: an error to kind and message, a struct to its fields, else text."""
    if isinstance(value, WsaError):
        return {"kind": value.kind, "message": str(value)}
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    return str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns, numbers to the right; lines wrap only on a narrow terminal."""
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    ruled = Table(box=Box(_BOX, ascii=True), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        number = any(isinstance(row[i], (int, float)) for row in rows)
        ruled.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        ruled.add_row(*(Text(_text(value)) for value in row))  # A str could contain rich markup.
    drawn = io.StringIO()  # On stdout itself, rich would exit if the reader has gone.
    Console(file=drawn, width=None if sys.stdout.isatty() else _UNWRAPPED_COLUMNS).print(ruled)
    if title:
        print(title)
    for line in drawn.getvalue().splitlines():
        print(line.rstrip())


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns."""
    cells = [[plain(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "".join(
        f"| {' | '.join(c.ljust(w) for c, w in zip(row, widths, strict=True))} |\n" for row in cells
    )


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    return plain(str(value))


def plain(text: str, keep: str = "") -> str:
    """Escape control characters: anyone may have written the text of a store.

    Args:
        keep: Unprintable characters to keep.
    """
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def plural(number: int, what: str) -> str:
    """Format a number of things, such as `2 workers`."""
    ending = "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{'' if number == 1 else ending}"


def were(number: int, what: str) -> str:
    """Format a number of things as the subject of a sentence: `1 object was`, `2 objects were`."""
    return f"{plural(number, what)} {'was' if number == 1 else 'were'}"


def numbers(*values: float, signed: bool = False) -> list[str]:
    """Format numbers that belong together, such as a mean and its interval, alike.

    The largest has three significant digits, and none has more than two decimals: 0.27, 20.4, 7,242.
    Whole numbers have none.
    """
    largest = max(map(abs, values), default=0.0)
    decimals = 2 if largest < 10 else 1 if largest < 100 else 0
    if all(float(value).is_integer() for value in values):
        decimals = 0
    sign = "+" if signed else ""
    return [f"{value:{sign}z,.{decimals}f}" for value in values]


def number(value: float) -> str:
    """Format one number, such as a return; see `numbers`."""
    return numbers(value)[0]


def size(count: float) -> str:
    """Format a number of bytes: 1.4 MB."""
    from rich.filesize import decimal

    return decimal(round(count))


def duration(seconds: float) -> str:
    """Format seconds: 1:02:03."""
    return str(datetime.timedelta(seconds=round(max(0.0, seconds))))


class Progress:
    """Progress as a bar on a terminal and as plain lines elsewhere: done, total, rate, time left.

    Args:
        unit: Plural of the thing counted.
        total: Number of units; 0 if unknown.
        shown: Whether to print anything.
    """

    def __init__(self, what: str, unit: str, total: int = 0, shown: bool = True) -> None:
        self._what, self._unit, self._total = what, unit, total
        self._shown = shown
        self._printed_s = time.monotonic()
        self._done = self._printed = 0
        self._first: tuple[int, float] | None = None
        self._bar = None
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(f"{unit} {{task.fields[rate]}}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(what, total=total or None, rate="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and self._done != self._printed:
            self._print_line(time.monotonic())

    def update(self, done: int, total: int | None = None) -> None:
        """Report units done and in total; both include those done before this command."""
        self._done = done
        self._total = self._total if total is None else total
        now = time.monotonic()
        if self._first is None:
            self._first, self._printed_s = (done, now), now
        if self._bar is not None:
            rate = self._rate(now)
            rate_text = f"{rate:,.1f}/s" if rate else ""
            self._bar.update(self._task, completed=done, total=self._total, rate=rate_text)
        elif self._shown and done and now - self._printed_s > PLAIN_LINE_EVERY_S:
            self._print_line(now)

    def _rate(self, now: float) -> float:
        """Units per second since the first update; the time of those before it is unknown."""
        done, since = self._first or (0, now)
        return (self._done - done) / max(now - since, 1e-9)

    def _print_line(self, now: float) -> None:
        self._printed_s, self._printed = now, self._done
        rate = self._rate(now)
        of = f" of {self._total:,}" if self._total else ""
        speed = f", {rate:,.1f}/s" if rate else ""
        if rate and self._total:
            speed += f", {duration((self._total - self._done) / rate)} left"
        say(f"{self._what}: {self._done:,}{of} {self._unit}{speed}")


def result(as_json: bool, values: dict[str, Any]) -> int:
    """Print a command's result, as JSON or one line per value, and return exit code 0."""
    if as_json:
        print(json.dumps(_finite(values), indent=2, default=str))
    else:
        _values(values, "")
    return 0


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have, NaN and infinity, by None."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _values(values: dict[str, Any], indent: str) -> None:
    width = max(map(len, values), default=0)
    for name, value in values.items():
        # A name that is not an identifier is a value, such as a model key, and keeps its `_`.
        words = name.replace("_", " ") if name.isidentifier() else name
        label = f"{indent}{plain(words):<{width}}  "
        if isinstance(value, dict):
            print(label.rstrip())
            _values(value, indent + "  ")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            print(label.rstrip())
            for number, one in enumerate(value):
                if number:
                    print()
                _values(one, indent + "  ")
        else:
            print(label + _value(value))


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return plain(", ".join(map(str, value))) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return number(value) if abs(value) >= 1 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else plain(str(value))
