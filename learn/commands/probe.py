"""`wsa probe`: probe models as the options say, and print tables."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wsa.encode.configs import refuse
from wsa.learn.configs.probe import ProbeOptions
from wsa.learn.envs import atari
from wsa.learn.probe import inputs, linear, ram_labels, tables, targets
from wsa.learn.probe import samples as probe_data
from wsa.learn.probe.probe import (
    MIN_ENTROPY,
    Plan,
    Table,
    pixel_sizes,
    probe,
    seen_before,
    untrained_kinds,
    usable_variables,
)
from wsa.learn.probe.probe import models_of as find_models
from wsa.learn.probe.samples import SampledSteps
from wsa.store.common import memory, terminal
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.common.ranges import check_ranges
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot


@memory.reported("Use fewer --samples or --models.")
def probe_models(o: ProbeOptions) -> int:
    """`wsa probe`."""
    _check(o)
    _, snapshot = open_snapshot(o.store)
    models = find_models(snapshot, o.game, o.models)
    segments = probe_data.choose(
        snapshot, o.game, list(models), o.fit.policies, probe_data.SPREAD * o.fit.samples
    )
    pictured = {meta.segment for meta in snapshot.frames(o.game)}
    frames = all(meta.segment in pictured for meta in segments)
    play = _play(segments)
    terminal.say(f"{o.game}: {', '.join(models.values())}")
    for line in _remarks_on_play(o.game, play):
        terminal.say(line)
    if not frames:
        terminal.say(
            "The store lacks the frames of some of these segments, so grayscale pixels and untrained "
            f"networks are left out. Fetch the frames: wsa pull URL --game {o.game}"
        )
    if o.dry_run:
        return terminal.result(o.json, _estimate(o, snapshot, models, segments, frames))
    segments, labeler = _labeler(o, snapshot, segments)
    sampled = probe_data.draw(snapshot, segments, labeler, o.fit.samples, o.fit.splits, o.fit.seed)
    for line in _remarks_on_samples(o, sampled):
        terminal.say(line)
    plan, left_out = _plan(o, models, sampled, frames)
    with terminal.Progress("probe", "embeddings", shown=not (o.json or o.csv)) as progress:
        table = probe(snapshot, o.game, sampled, plan, progress.update)
    if o.csv:
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerows([tables.CSV_COLUMNS, *tables.csv_rows(table)])
        return 0
    seen = seen_before(sampled, table.counted) if plan.state else {}
    if not o.json:
        print("\n".join(_printed(table, sampled, plan, seen)), end="")
        return 0
    values = {
        "game": o.game,
        "target": o.target,
        "seed": o.fit.seed,
        "samples": len(sampled),
        "judged": sum(len(split.test) for split in sampled.splits),
        "splits": len(sampled.splits),
        "split_by": sampled.groups.unit,
        "groups": len(sampled.groups),
        "segments": len(segments),
        "play": play,
        "left_out": left_out,
        "on_screen": {name: float(sampled.shown[name].mean()) for name in plan.variables},
        "seen_in_training": seen,
        **tables.as_json(table),
    }
    return terminal.result(True, values)


def _plan(
    o: ProbeOptions, models: dict[str, str], sampled: SampledSteps, frames: bool
) -> tuple[Plan, dict[str, str]]:
    """Settings of the probe, and the reasons that exclude variables.

    Raises:
        MissingError: If no variable can be tested.
    """
    ram = o.target == "ram"
    variables, left_out = usable_variables(sampled, MIN_ENTROPY if ram else 0)
    for name, why in left_out.items():
        terminal.say(f"left out: {name}, {why}")
    if not variables or not any(len(split.test) for split in sampled.splits):
        raise MissingError(
            "no-frames",
            f"No variable of {o.game} varies enough to be tested. Collect more steps, or use a policy "
            "that gets further.",
        )
    plan = Plan(
        models,
        variables,
        ordered=o.target != "action",
        state=ram,
        f1=o.fit.f1 or not ram,
        untrained=o.fit.untrained,
        frames=frames,
        seed=o.fit.seed,
    )
    return plan, left_out


def _printed(
    table: Table, sampled: SampledSteps, plan: Plan, seen: dict[str, Any]
) -> Iterator[str]:
    """Yield the tables that the command prints."""
    ram = plan.state
    if plan.ordered:
        notes = tables.notes(table, hits=ram)
        yield tables.means_table(table, hits=ram) + "\n" + "\n".join(notes) + "\n"
        title = f"R2{' / hit' if ram else ''} of each variable"
        yield f"{title}\n\n{tables.variables_table(table, hits=ram)}"
    if seen:
        shown = {
            ram_labels.object_of(name): float(sampled.shown[name].mean()) for name in table.counted
        }
        yield tables.seen_table(seen, shown)
    if plan.f1:
        what = "F1 of exact values" if ram else "F1 (plain mean over values)"
        yield f"{what}, first split\n\n{tables.f1_table(table, plain=not ram)}"


def _play(segments: Sequence[SegmentMeta]) -> dict[str, dict[str, Any]]:
    """Summarize the records of random and of better play."""
    by_kind: dict[str, dict[str, Any]] = {}
    for kind, name in ((False, "random"), (True, "better")):
        members = [meta for meta in segments if probe_data.is_better(meta) == kind]
        returns = [earned for meta in members for _, earned in meta.episodes]
        if members:
            by_kind[name] = {
                "policies": sorted({meta.policy for meta in members}),
                "segments": len(members),
                "steps": sum(meta.steps for meta in members),
                "episodes_ended": len(returns),
                "mean_return": float(np.mean(returns)) if returns else None,
            }
    return by_kind


def _remarks_on_play(game: str, play: dict[str, dict[str, Any]]) -> list[str]:
    remarks = []
    for name, summary in play.items():
        mean = "no episode ended" if summary["mean_return"] is None else (
            f"mean return {terminal.number(summary['mean_return'])}"
        )  # fmt: skip
        remarks.append(
            f"{name} play: {terminal.plural(summary['steps'], 'step')} of "
            f"{terminal.plural(summary['segments'], 'segment')}, {mean}, by "
            f"{', '.join(summary['policies'])}"
        )
    if "better" not in play:
        remarks.append(
            "There is only random play, so the table says nothing about states that better play reaches. "
            f"Collect better play: wsa collect --game {game} --policy RUN --eps 0.2, and encode it."
        )
    elif "random" not in play:
        remarks.append(
            "There is no random play, so the table says nothing about transfer from random to better "
            f"play. Collect some: wsa collect --game {game}, and encode it."
        )
    else:
        random, better = (play[kind]["mean_return"] for kind in ("random", "better"))
        if random is not None and better is not None and better <= random:
            remarks.append("Better play has no higher mean return than random play.")
    return remarks


def _remarks_on_samples(o: ProbeOptions, sampled: SampledSteps) -> list[str]:
    sizes = [len(split.test) for split in sampled.splits]
    drawn = f"{len(sampled):,} steps drawn, {int(sampled.better.sum()):,} of them better play; "
    dealt = f"{len(sampled.groups)} {sampled.groups.unit} in {len(sizes)} splits, "
    remarks = [f"{drawn}{dealt}{sum(sizes):,} steps tested"]
    if len(sizes) < o.fit.splits:
        remarks.append(f"There are too few {sampled.groups.unit} for {o.fit.splits} splits.")
    if "segments" in sampled.groups.unit:
        remarks.append(
            "There are too few episodes to hold out whole ones, so test data may be close to training "
            "data: trust the order, not the numbers. More environments give more episodes."
        )
    return remarks


def _labeler(
    o: ProbeOptions, snapshot: Snapshot, segments: Sequence[SegmentMeta]
) -> tuple[list[SegmentMeta], targets.Labeler]:
    """Segments that have labels, and the function that returns a segment's labels."""
    if o.target == "reward":
        return list(segments), targets.reward_target(targets.horizons_of(o.horizon))
    if o.target == "action":
        sets = {meta.protocol.actions for meta in segments}
        if len(sets) > 1:
            raise UsageError(
                f"The segments of {o.game} have different sets of actions. Choose policies with the same "
                "set with --policies."
            )
        if not all(map(probe_data.is_better, segments)):
            terminal.say(
                "Some segments were played at random. Such actions do not depend on the screen. Choose "
                "other policies with --policies."
            )
        return list(segments), targets.action_target
    total = sum(meta.steps for meta in segments)
    with terminal.Progress("replay", "steps", total, shown=not (o.json or o.csv)) as progress:
        replayed, labeler, why = targets.replay(snapshot, segments, progress.update)
    if why:
        terminal.say(why)
    return replayed, labeler


def _estimate(
    o: ProbeOptions,
    snapshot: Snapshot,
    models: dict[str, str],
    segments: Sequence[SegmentMeta],
    frames: bool,
) -> dict[str, Any]:
    """Estimate the cost of a probe."""
    widths = {key: inputs.width(snapshot, o.game, key) for key in models}
    samples = probe_data.max_drawn(segments, o.fit.samples)
    kinds = untrained_kinds(snapshot, models) if frames else {}
    largest = max(
        linear.memory_bytes(samples, width, o.fit.untrained if key in kinds else 1)
        for key, width in widths.items()
    )
    chosen = {meta.segment for meta in segments}
    frame_records = [m for m in snapshot.frames(o.game) if frames and m.segment in chosen]
    # A segment's frames are read all at once, and converted to RGB.
    screens = max((4 * m.frames * m.height * m.width for m in frame_records), default=0)
    return {
        "segments": len(segments),
        "steps": sum(meta.steps for meta in segments),
        "samples": samples,
        "splits": o.fit.splits,
        "numbers": widths,
        "pixels": pixel_sizes([*widths.values()]) if frames else [],
        "untrained_networks": len(kinds) * o.fit.untrained,
        "untrained_passes": len(kinds) * o.fit.untrained * samples,
        "memory_bytes": largest + screens,
    }


def _check(o: ProbeOptions) -> None:
    """Refuse impossible options, before anything is opened.

    Raises:
        UsageError: If a value is out of range.
    """
    check_ranges(o.fit)
    if o.csv and o.json:
        raise UsageError("Give --csv or --json, not both.")
    atari.check_game(o.game)
    targets.horizons_of(o.horizon)
    if o.target != "reward":
        refuse(o, ("horizon",), "it is for --target reward")
    if o.target == "ram":
        ram_labels.variables(o.game)
