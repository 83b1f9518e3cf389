"""The output of `wsa probe --json` as tables of a page."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from wsa.learn.report.document import Table, table
from wsa.store.common.errors import UsageError

LARGEST = 64 << 20  # Bytes.


class _Mean(msgspec.Struct):
    value: float
    low: float
    high: float


class _Way(msgspec.Struct):
    mean_r2: _Mean | None = None
    mean_hit: _Mean | None = None
    r2: dict[str, float | None] = {}


class _Model(msgspec.Struct):
    name: str
    numbers: int = 0
    both: _Way = msgspec.field(default_factory=_Way)
    transfer: _Way = msgspec.field(default_factory=_Way)
    mean_f1: float | None = None


class ProbeResult(msgspec.Struct):
    """The part of a probe's result that a page shows; the best model comes first."""

    game: str
    target: str
    samples: int
    models: list[_Model]


def read_probe(path: Path, game: str) -> ProbeResult:
    """Read a file with the output of `wsa probe --json`.

    Raises:
        UsageError: If there is no such file, or it is not a probe of this game.
    """
    if not path.is_file():
        raise UsageError(
            f"--probe {path}: there is no such file. Make it: wsa probe --game {game} --json > FILE"
        )
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        # The standard library reads NaN, which `wsa probe` may print.
        result = msgspec.convert(json.loads(path.read_bytes()), ProbeResult)
    except (ValueError, RecursionError) as error:  # msgspec raises ValueErrors too.
        raise UsageError(
            f"--probe {path} is not what 'wsa probe --game {game} --json' prints ({error}). Give "
            "such a file, or leave --probe out."
        ) from None
    if result.game != game:
        raise UsageError(
            f"--probe {path} is a probe of {result.game}, not of {game}. Give one of {game}, or "
            "leave --probe out."
        )
    return result


def probe_parts(result: ProbeResult) -> list[Table]:
    """Return tables of a probe's scores."""
    means = [
        (
            model.name,
            None if not model.numbers else f"{model.numbers:,}",
            _interval(model.both.mean_r2),
            _interval(model.both.mean_hit),
            _interval(model.transfer.mean_r2),
            None if model.mean_f1 is None else f"{model.mean_f1:.2f}",
        )
        for model in result.models
    ]
    columns = ("model", "numbers", "R2", "hit", "random to better: R2", "F1")
    shown = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in means)]
    rows = [[row[i] for i in shown] for row in means]
    note = f"Linear probes of {result.samples:,} steps. Target: {result.target}. 95% intervals."
    parts = [table("Means over variables", [columns[i] for i in shown], rows, note)]
    names = list(dict.fromkeys(n for m in result.models for n in m.both.r2))
    if names:
        cells = [[m.name, *(_number(m.both.r2.get(name)) for name in names)] for m in result.models]
        parts.append(table("R2 of each variable", ["model", *names], cells))
    return parts


def _interval(mean: _Mean | None) -> str | None:
    return None if mean is None else f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
