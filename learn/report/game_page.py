"""The page of a stored game: its frames, returns, models, and similar frames.

It reads all records, but rows, frames, and embeddings of only a few segments, so a large store takes
about as long as a small one. The page says how many segments it shows.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wsa.learn.report import figures
from wsa.learn.report.document import (
    Figure,
    Gallery,
    Part,
    Picture,
    Section,
    Table,
    Text,
    shown,
    table,
    versions,
)
from wsa.learn.report.frame_sample import FrameSample, choose_segments, draw, read_pngs
from wsa.learn.report.page import page
from wsa.learn.report.probe_result import ProbeResult, probe_parts
from wsa.learn.report.similar import APART, Similar, similar_by_model
from wsa.store.common import names, terminal
from wsa.store.common.errors import redact
from wsa.store.format.records import SegmentMeta
from wsa.store.maintenance.summary import GameSummary, card, summarize
from wsa.store.objects.model_spec import describe
from wsa.store.objects.snapshot import Snapshot
from wsa.store.objects.writer import command_line

SHEET = 24  # Frames on the contact sheet, each from a different segment.
SEGMENTS = 12  # Segments that are searched for similar frames, for each model.
FRAMES = 200  # Frames of each of these segments.
POINTS = 150  # Points in the curve of returns; more would overlap.

Pngs = dict[tuple[str, int], bytes]
"""PNG files by segment id and frame number."""


def make_page(
    snapshot: Snapshot,
    game: str,
    *,
    remark: str = "",
    probe: ProbeResult | None = None,
    on_segment: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Return the page as HTML, with a remark about the rewards, and the result of a probe if there
    is one.

    `on_segment` is called after each segment with the number of segments read, and their total.

    Raises:
        MissingError: If the store has no frames of the game.
        DamagedError: If stored bytes differ from what was committed.
    """
    summary = summarize(snapshot, game)
    metas = snapshot.segments(game)
    pictured = {frames.segment for frames in snapshot.frames(game)}
    shown = [meta for meta in metas if meta.segment in pictured]
    sheet = draw(snapshot, choose_segments(shown, SHEET), 1) if shown else None
    found = similar_by_model(snapshot, game, list(summary.encoded), shown, SEGMENTS, FRAMES)
    pictures = [(sheet, n) for n in range(len(sheet))] if sheet else []
    pictures += [(s.sample, one.n) for s in found for group in s.groups for one in group]
    pngs = _read(snapshot, pictures, on_segment)
    about = card(snapshot, game)
    sections = [
        _contents(snapshot, about),
        Section("frames", "Frames", (_contact_sheet(sheet, pngs, summary),)),
        Section("rewards", "Rewards", tuple(_rewards(snapshot, about, remark))),
        Section("models", "Models", (_coverage(snapshot, summary),)),
    ]
    if found:
        parts = _galleries(found, pngs, summary)
        sections.append(Section("similar", "What a model considers similar", tuple(parts)))
    if probe:
        tables = tuple(probe_parts(probe))
        sections.append(Section("probe", "What a linear probe reads", tables))
    return page(f"{game} in {redact(snapshot.backend.url)}", sections)


def _contents(snapshot: Snapshot, about: Mapping[str, Any]) -> Section:
    """Return the section of counts and sizes, from the values that `wsa show` prints."""
    rows = [(title, f"{about[name]:,}") for name, title in _COUNTS.items()]
    rows += [(f"bytes of {what}", terminal.size(about[name])) for name, what in _SIZES.items()]
    rows += [(name, "; ".join(about[name]) or "-") for name in ("screens", "emulator", "authors")]
    protocols = [
        (p["name"], ", ".join(f"{k} {shown(v)}" for k, v in p.items() if k != "name"))
        for p in about["protocols"]
    ]
    facts = {
        "command": command_line(),
        "store": redact(snapshot.backend.url),
        "page written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "versions": versions(),
    }
    parts = (table("In the store", ("", ""), rows), table("Protocols", ("name", ""), protocols))
    return Section("contents", "Contents", parts, facts)


_COUNTS = {
    "segments": "segments",
    "pictured": "segments with frames",
    "steps": "steps",
    "emulator_frames": "emulator frames",
    "frames": "distinct frames",
    "episodes": "episodes that ended",
}
_SIZES = {"bytes": "segments", "embedded": "embeddings"}


def _contact_sheet(sheet: FrameSample | None, pngs: Pngs, summary: GameSummary) -> Part:
    """Show one frame from each of a few segments."""
    if sheet is None:
        return Text(
            "The store has the rows of these segments but not their frames. Fetch them: wsa pull "
            f"URL --game {summary.game}"
        )
    pictures = [
        Picture(pngs[_key(sheet, n)], f"{sheet.segments[sheet.owners[n]].policy}, {sheet.name(n)}")
        for n in range(len(sheet))
    ]
    note = f"A random frame of each of {len(sheet):,} of {summary.pictured:,} segments with frames."
    return Gallery("Contact sheet", tuple(pictures), note)


def _rewards(snapshot: Snapshot, about: Mapping[str, Any], remark: str) -> list[Part]:
    """Show the returns of the episodes in the order of play, and by policy."""
    parts: list[Part] = [Text(remark)] if remark else []
    by_policy: dict[str, list[tuple[int, float]]] = defaultdict(list)
    number = 0
    for meta in _in_order(snapshot, snapshot.segments(about["game"])):
        for _, returned in meta.episodes:
            by_policy[meta.policy].append((number, returned))
            number += 1
    if not number:
        parts.append(Text("No episode ended in these segments, so there are no returns yet."))
    else:
        parts.append(_returns(by_policy, number))
    columns = ("steps", "episodes", "mean_return", "least_return", "highest_return")
    rows = [
        (policy, *(_number(played[name]) for name in columns))
        for policy, played in about["policies"].items()
    ]
    heads = ("policy", *(name.replace("_", " ") for name in columns))
    return [*parts, table("By policy", heads, rows, "Returns are raw: sums of the game's rewards.")]


def _number(value: float | None) -> str | None:
    return None if value is None else terminal.number(value)


def _returns(by_policy: Mapping[str, Sequence[tuple[int, float]]], episodes: int) -> Figure:
    """Plot returns over episodes; many are averaged, with a band from the lowest to the highest."""
    size = -(-episodes // POINTS)
    most = len(figures.SERIES)
    lines = []
    for policy, pairs in sorted(by_policy.items(), key=lambda one: -len(one[1]))[:most]:
        x, y = np.array(pairs, np.float64).T
        cuts = range(size, len(x), size)
        parts = np.split(y, cuts)
        lines.append(
            figures.Line(
                policy,
                [part.mean() for part in np.split(x, cuts)],
                [part.mean() for part in parts],
                [part.min() for part in parts] if size > 1 else None,
                [part.max() for part in parts] if size > 1 else None,
            )
        )
    note = f"{terminal.plural(episodes, 'episode')}, in the order in which their runs began."
    if size > 1:
        note += f" A point is the mean of {size:,} episodes; the band is from least to highest."
    if len(by_policy) > most:
        note += f" Only the {most} of {len(by_policy):,} policies with the most episodes are drawn."
    return Figure("Return of each episode", figures.curves(lines, "episode", "raw return"), note)


def _in_order(snapshot: Snapshot, metas: Sequence[SegmentMeta]) -> list[SegmentMeta]:
    """Sort segments by the time of their run's first commit, and within a run by step."""
    began: dict[str, str] = {}
    for meta in metas:
        written = snapshot.commit(names.segment_path(meta.game, meta.segment)).time
        began[meta.run] = min(written, began.get(meta.run, written))
    return sorted(metas, key=lambda meta: (began[meta.run], meta.run, meta.start, meta.env))


def _coverage(snapshot: Snapshot, summary: GameSummary) -> Table:
    """Tabulate how many segments each model has encoded."""
    rows: list[tuple[Any, ...]] = []
    for key, count in summary.encoded.items():
        about = describe(snapshot, key) if key in snapshot.models else {}
        made = snapshot.embeddings(summary.game, key)
        rows.append(
            (
                key,
                f"{count:,} of {summary.segments:,}",
                f"{100 * count // summary.segments}%",
                about.get("model"),
                about.get("license"),
                about.get("output"),
                " x ".join(map(str, made[0].shape[1:])),
                f"{sum(e.passes for e in made):,}",
                f"{sum(e.copied for e in made):,}",
            )
        )
    note = "" if rows else f"None yet: wsa encode --game {summary.game}"
    heads = ("key", "segments", "", "model", "license", "output", "shape", "passes", "copies")
    return table("Segments that each model has encoded", heads, rows, note)


def _galleries(found: Sequence[Similar], pngs: Pngs, summary: GameSummary) -> list[Part]:
    """Show some frames for each model, with the frames that it finds most similar."""
    parts: list[Part] = [
        Text(
            "Each row starts with a frame of the store. The frames with the nearest embeddings "
            "follow, by cosine distance of standardized embeddings. All frames of a row are "
            f"distinct, and no two come from the same {APART} steps."
        )
    ]
    for model, sample, groups in found:
        looked = len(np.unique(sample.owners))
        for i, group in enumerate(groups):
            pictures = [
                Picture(
                    pngs[_key(sample, n)],
                    f"{f'{distance:.3f}' if at else 'query'}: {sample.name(n)}",
                )
                for at, (n, distance) in enumerate(group)
            ]
            note = (
                f"Searched: {terminal.plural(len(sample), 'frame')} of "
                f"{terminal.plural(looked, 'segment')}, of "
                f"{summary.encoded[model]:,} that the model has encoded."
            )
            title = f"{model}, frame {i + 1}"
            parts.append(Gallery(title, tuple(pictures), "" if i else note))
    return parts


def _key(sample: FrameSample, n: int) -> tuple[str, int]:
    return sample.segments[sample.owners[n]].segment, int(sample.frames[n])


def _read(
    snapshot: Snapshot,
    shown: Sequence[tuple[FrameSample, int]],
    on_segment: Callable[[int, int], None],
) -> Pngs:
    """Read the PNG files of sampled frames, and each segment only once."""
    wanted: dict[SegmentMeta, set[int]] = defaultdict(set)
    for sample, n in shown:
        wanted[sample.segments[sample.owners[n]]].add(int(sample.frames[n]))
    pngs: Pngs = {}
    for done, (meta, frames) in enumerate(wanted.items(), 1):
        for frame, png in read_pngs(snapshot, meta, frames).items():
            pngs[meta.segment, frame] = png
        on_segment(done, len(wanted))
    return pngs
