"""The report of a run: `report.html`, one self-contained page that can be mailed.

It shows the settings, the fused models and their licenses, training curves, fusion weights, games
of `wsa eval` with their intervals, numbers of passes made and saved, and the newest video. All of it
comes from the run's folder, except the models' licenses and shapes: those come from the store, if
it can be reached.
"""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.learn.envs import atari
from wsa.learn.evaluation.scores import human_normalized, mean_score, stratified_interval
from wsa.learn.report import figures
from wsa.learn.report.document import Figure, Film, Part, Section, Text, table, versions
from wsa.learn.report.page import page
from wsa.learn.runs.config import FILE as CONFIG
from wsa.learn.runs.config import OfflineRun, OnlineRun, flat_settings, read_config
from wsa.learn.runs.network import parameters_of, windows_and_shapes
from wsa.learn.training import metrics
from wsa.learn.training.metrics import EVALUATION_RETURN, TRAINING_RETURN
from wsa.store.common import atomic_files, names
from wsa.store.common.errors import WsaError
from wsa.store.common.terminal import numbers, plural
from wsa.store.objects.model_spec import describe
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

FILE = "report.html"
POINTS = 150  # Points in a curve; more cannot be told apart.
MAX_VIDEO_BYTES = 3_000_000  # A larger video is only named.
RETURNS = (TRAINING_RETURN, EVALUATION_RETURN)
EPISODE_COLUMNS = ("env", "seed", "return", "steps", "truncated")
PASSES = {
    "cache/backbone_passes": "passes made",
    "cache/backbone_passes_saved": "passes saved",
    "cache/distinct_frames": "distinct frames seen",
    "cache/hit_rate": "share found in the store or among earlier frames",
}

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps, ascending, and values."""


def write(folder: Path, store: str = "", out: Path | None = None) -> Path:
    """Write a run's report.

    Args:
        store: Path or URL of the run's store if it has moved.
        out: Folder of the evaluations' results, and of the report; by default, the run's folder.

    Returns:
        Path of the page.

    Raises:
        MissingError: If there is no run.
        DamagedError: If its configuration cannot be read.
        StorageError: If there is no room, or the folder refuses access.
    """
    config = read_config(folder)
    scalars = _scalars(folder)
    sections = [_run_section(folder, config, store or config.store)]
    sections += [
        Section(name, title, tuple(parts), {})
        for name, title, parts in (
            ("training", "Training", _training(config, scalars)),
            ("evaluation", "Full games", _evaluation(out or folder, config)),
            ("passes", "Passes through frozen models", _passes(scalars)),
            ("film", "Video of a game", _film(out or folder)),
            ("settings", "All settings", _settings(config)),
        )
        if parts
    ]
    path = (out or folder) / FILE
    atomic_files.replace(path, page(f"{config.game}: {folder.name}", sections).encode())
    return path


def is_current(folder: Path) -> bool:
    """Whether a run has a report that is no older than the files of which it is made."""
    shown = [folder / name for name in (CONFIG, "command.txt", metrics.FILE, "eval.csv")]
    written = [path.stat().st_mtime_ns for path in shown if path.exists()]
    page_path = folder / FILE
    return page_path.exists() and page_path.stat().st_mtime_ns >= max(written, default=0)


def _run_section(folder: Path, config: OfflineRun | OnlineRun, store: str) -> Section:
    """The run's settings: data, algorithm, network, models, and command."""
    network = config.network
    data = plural(len(config.segments), "stored segment")
    if isinstance(config, OnlineRun):
        data = f"games it played; embeddings are looked up in {data}"
    rows = [
        ("game", config.game),
        ("protocol", atari.describe(config.protocol)),
        ("learned from", data),
        ("algorithm", config.hyperparameters.NAME),
        ("length", f"{config.last_step:,} {config.unit}"),
        ("seed", config.seed),
        ("fusion", network.fusion.name),
        ("context", config.context or None),
        ("frames in a state", network.frame_stack),
        ("started from", config.init or None),
    ]
    parts: list[Part] = [table("The run", ("", ""), rows), _parameters(config, store)]
    if config.inputs:
        parts.append(_models(config, store))
    command = folder / "command.txt"
    facts = {
        "command": command.read_text().strip() if command.exists() else "not recorded",
        "store": config.store,
        "page written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "versions": versions(),
    }
    return Section("run", "Settings", tuple(parts), facts)


def _parameters(config: OfflineRun | OnlineRun, store: str) -> Part:
    """Numbers of parameters; the store has the shapes of the network's inputs."""
    try:
        snapshot = take_snapshot(open_store(store))
        counted = parameters_of(config, *windows_and_shapes(config, snapshot))
    except WsaError as error:
        return Text(f"The number of parameters is unknown: {error}")
    rows = [("fusion", counted.fusion), ("head", counted.head), ("total", counted.total)]
    if counted.frozen:
        rows.append(("frozen decoders, not in the total", counted.frozen))
    return table(
        "Trainable parameters", ("", "numbers"), [(name, f"{count:,}") for name, count in rows]
    )


def _models(config: OfflineRun | OnlineRun, store: str) -> Part:
    """The frozen models; only their keys if the store cannot be reached."""
    cards: list[dict[str, Any]]
    try:
        snapshot = take_snapshot(open_store(store))
        cards, note = [describe(snapshot, key) for key in config.inputs], ""
    except WsaError as error:
        cards, note = [{"key": key} for key in config.inputs], f"Only keys are known: {error}"
    columns = ("key", "model", "weights", "license", "output")
    rows = [[card.get(c) for c in columns] for card in cards]
    return table("Frozen models", columns, rows, note)


def _settings(config: OfflineRun | OnlineRun) -> list[Part]:
    """Every hyperparameter, and every setting of the network."""
    tables = {"Hyperparameters": config.hyperparameters, "Network": config.network}
    return [
        table(title, ("name", "value"), [(k, v) for k, v in flat_settings(part) if k != "type"])
        for title, part in tables.items()
    ]


def _training(config: OfflineRun | OnlineRun, scalars: Mapping[str, Curve]) -> list[Part]:
    """Curves of returns, losses, and validation scores, and the fusion's weights over time."""
    parts: list[Part] = []
    return_lines = [
        figures.Line(title, *_averaged(scalars[name]))
        for name, title in zip(RETURNS, ("while training", "full games"), strict=True)
        if name in scalars
    ]
    if return_lines:
        parts.append(Figure("Return", figures.curves(return_lines, config.unit, "raw return")))
    weights = {n: c for n, c in scalars.items() if n.startswith("wsa/weight/")}
    if len(weights) > 1:
        lines = [_averaged(curve) for curve in weights.values()]
        steps = lines[0][0]
        shares = np.stack([np.interp(steps, *line) for line in lines])
        called = names.labels([name.removeprefix("wsa/weight/") for name in weights])
        parts.append(Figure("Fusion weights", figures.stacked(called, steps, shares, config.unit)))
    for name, curve in scalars.items():
        kind, _, title = name.partition("/")
        if kind in ("losses", "validation"):
            line = figures.Line(title, *_averaged(curve))
            caption = f"{kind}: {title.replace('_', ' ')}"
            parts.append(Figure(caption, figures.curves([line], config.unit, title)))
    return parts


def _evaluation(folder: Path, config: OfflineRun | OnlineRun) -> list[Part]:
    """Games that `wsa eval` played, grouped by all other columns of `eval.csv`."""
    path = folder / "eval.csv"
    if not path.exists():
        return []
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = [c for c in reader.fieldnames or () if c not in EPISODE_COLUMNS]
        for row in reader:
            groups[tuple(row[c] for c in columns)].append(float(row["return"]))
    rows, bars = [], []
    for group, returns in groups.items():
        mean = stratified_interval(np.array(returns)[:, None], mean_score)
        score = human_normalized(config.game, mean.value)
        value, *ends = numbers(*(number for number in mean if number is not None))
        interval = f"[{', '.join(ends)}]" if ends else None
        normalized = None if score is None else f"{score:.3f}"
        rows.append((*group, len(returns), value, interval, normalized))
        name = " ".join(v for c, v in zip(columns, group, strict=True) if v and c != "checkpoint")
        style = int("random" in group)
        bars.append(figures.Bar(name, mean.value, mean.low, mean.high, style))
    note = "Mean raw return with its 95% bootstrap interval over games; a single game has none. Human-normalized: 0 is the published score of a random policy, 1 that of a human tester."
    # An older wsa called this column `updates`, even for steps.
    named = [config.unit if c in ("trained", "updates") else c for c in columns]
    heads = (*named, "games", "mean return", "95% interval", "human-normalized")
    return [
        Figure("Mean return", figures.intervals(bars, "raw return")),
        table("Games played by wsa eval", heads, rows, note),
    ]


def _passes(scalars: Mapping[str, Curve]) -> list[Part]:
    rows = [
        (
            title,
            f"{scalars[name][1][-1]:,.4g}" if "rate" in name else f"{scalars[name][1][-1]:,.0f}",
        )
        for name, title in PASSES.items()
        if name in scalars
    ]
    return [table("", ("", "total"), rows)] if rows else []


def _film(folder: Path) -> list[Part]:
    """The newest video, if it is small enough to mail."""
    films = sorted((folder / "videos").glob("episode_*.mp4"), key=lambda p: p.stat().st_mtime)
    if not films:
        return []
    newest = films[-1]
    if newest.stat().st_size > MAX_VIDEO_BYTES:
        return [Text(f"The newest video, videos/{newest.name}, is too large for this page.")]
    return [Film(f"videos/{newest.name}", newest.read_bytes())]


def _scalars(folder: Path) -> dict[str, Curve]:
    """Read every scalar that the run logged."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in metrics.read(folder):
        for name, value in line.items():
            if name not in ("step", "time") and isinstance(value, int | float):
                points[name].append((line["step"], value))
    curves = {}
    for name, pairs in points.items():
        steps, values = np.array(pairs, np.float64).T
        curves[name] = steps, values
    return curves


def _averaged(curve: Curve) -> Curve:
    """Average neighboring points so that at most `POINTS` remain."""
    steps, values = curve
    parts: Sequence[Any] = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    return (
        np.array([steps[part].mean() for part in parts]),
        np.array([values[part].mean() for part in parts]),
    )
