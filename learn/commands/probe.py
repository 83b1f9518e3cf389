"""The verb `wsa probe`: from options to tables of F1 and R2."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from typing import Any

from wsa.learn.configs.studies import ProbeOptions
from wsa.learn.envs import atari
from wsa.learn.probe import ram_labels
from wsa.learn.probe import samples as probe_data
from wsa.learn.probe.probe import LEAST_ENTROPY, Judged, models_of, probe, varying
from wsa.store.common import terminal
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot


def probe_models(o: ProbeOptions) -> int:
    """`wsa probe`."""
    _check(o)
    atari.check_game(o.game)
    horizons = probe_data.horizons_of(o.horizon)
    if o.target == "ram":
        ram_labels.variables(o.game)
    _, snapshot = open_snapshot(o.store)
    models = models_of(snapshot, o.game, o.models)
    wanted = probe_data.SPREAD * o.samples
    segments = probe_data.choose(snapshot, o.game, list(models), o.policies, wanted)
    steps = sum(meta.steps for meta in segments)
    terminal.say(
        f"{o.game}: {', '.join(models)} on {steps:,} steps of {len(segments)} segments, played by "
        f"{', '.join(sorted({meta.policy for meta in segments}))}"
    )
    if o.dry_run:
        return terminal.result(o.json, _estimate(o, snapshot, list(models), segments))
    segments, target = _target(o, snapshot, segments, horizons)
    moments = probe_data.draw(snapshot, segments, target, o.samples, o.seed)
    judged_by, left_out = varying(moments, LEAST_ENTROPY if o.target == "ram" else 0)
    split = moments.split
    terminal.say(
        f"{len(split.fit):,} steps to learn from, {len(split.check):,} to choose penalties by, "
        f"{len(split.test):,} judged; split by {moments.groups[0]}, {moments.groups[1]} of them"
    )
    if moments.groups[0] == "segments":
        terminal.say(
            "There are too few episodes to hold whole ones out: what is judged may be close to what "
            "was learned from, so read the order, not the numbers. More environments make more."
        )
    if left_out:
        terminal.say(f"left out, since they hardly vary here: {', '.join(left_out)}")
    if not judged_by or not len(split.test):
        raise MissingError(
            "no-frames",
            f"Nothing varies in what would be judged of {o.game}. Collect more, or by a policy "
            "that gets further.",
        )
    with terminal.Progress("probe", "models", shown=not (o.json or o.csv)) as progress:
        lines = probe(
            snapshot,
            o.game,
            models,
            moments,
            judged_by,
            ordered=o.target != "action",
            pixels="pixels" in o.baselines,
            on_row=progress.update,
        )
    if o.csv:
        _print_csv(lines)
    elif o.json:
        values = {
            "game": o.game,
            "target": o.target,
            "seed": o.seed,
            "learned_from": len(split.fit),
            "chosen_by": len(split.check),
            "judged": len(split.test),
            "split_by": moments.groups[0],
            "groups": moments.groups[1],
            "segments": len(segments),
            "left_out": left_out,
            "models": [line.summary() for line in lines],
        }
        return terminal.result(True, values)
    else:
        _print(lines, "f1" if o.target == "ram" else "f1_macro")
    return 0


def _target(
    o: ProbeOptions,
    snapshot: Snapshot,
    segments: Sequence[SegmentMeta],
    horizons: Sequence[int],
) -> tuple[list[SegmentMeta], Any]:
    """Segments that have answers, and what gives them."""
    if o.target == "reward":
        return list(segments), probe_data.reward_target(horizons)
    if o.target == "action":
        sets = {meta.protocol.actions for meta in segments}
        if len(sets) > 1:
            raise UsageError(
                "bad-option",
                f"{o.game} was played with different sets of actions there. Name with --policies "
                "players who had the same.",
            )
        if any(meta.policy == "random" for meta in segments):
            terminal.say(
                "Some of it was played at random: there is nothing of the screen in such an action "
                "to be read out. Name other players with --policies."
            )
        return list(segments), probe_data.action_target
    total = sum(meta.steps for meta in segments)
    with terminal.Progress("play again", "steps", total, shown=not (o.json or o.csv)) as progress:
        known, memories, why = probe_data.open_memories(snapshot, segments, progress.update)
    if why:
        terminal.say(why)
    return known, probe_data.ram_target(memories)


def _estimate(
    o: ProbeOptions, snapshot: Snapshot, models: Sequence[str], segments: Sequence[SegmentMeta]
) -> dict[str, Any]:
    """What would be done."""
    numbers = {key: probe_data.width(snapshot, o.game, key) for key in models}
    steps = sum(meta.steps for meta in segments)
    samples = min(o.samples, steps)
    return {
        "segments": len(segments),
        "steps": steps,
        "samples": samples,
        "numbers": numbers,
        # Embeddings as they are stored, a copy in double precision, and products of all pairs.
        "memory_bytes": samples * max(min(n, samples) * 16 + n * 4 for n in numbers.values()),
    }


def _print(lines: Sequence[Judged], of: str) -> None:
    """Markdown: what all come to, then every variable."""
    what = "F1" if of == "f1" else "F1 (plain mean of the values')"
    rows = [
        [line.name, f"{line.numbers:,}" if line.numbers else "-", *map(_number, means)]
        for line in lines
        for means in [(line.mean(of), line.mean("r2"))]
    ]
    print(terminal.markdown(["model", "numbers", what, "R2"], rows), end="")
    for title, name in ((what, of), ("R2", "r2")):
        if lines[0].mean(name) is None:
            continue
        print(f"\n{title}\n")
        variables = list(lines[0].scores)
        body = [
            [variable, *(_number(getattr(line.scores[variable], name)) for line in lines)]
            for variable in variables
        ]
        mean = ["mean, each at least 0", *(_number(line.mean(name)) for line in lines)]
        columns = ["", *(line.name for line in lines)]
        print(terminal.markdown(columns, [*body, mean]), end="")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _print_csv(lines: Sequence[Judged]) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["model", "key", "numbers", "variable", "f1", "f1_macro", "r2"])
    for line in lines:
        for name, score in line.scores.items():
            numbers = [score.f1, score.f1_macro, score.r2]
            shown = ["" if n is None else f"{n:.4f}" for n in numbers]
            out.writerow([line.name, line.key, line.numbers, name, *shown])


def _check(o: ProbeOptions) -> None:
    """Refuse what cannot be, before anything is opened.

    Raises:
        UsageError: A value is out of range.
    """
    if not 100 <= o.samples <= 100_000:
        raise UsageError("bad-option", f"--samples must be from 100 to 100000, not {o.samples}.")
    if not 0 <= o.seed < 2**31:
        raise UsageError("bad-option", f"--seed must be from 0 to {2**31 - 1}, not {o.seed}.")
    if set(o.baselines) - {"pixels"}:
        raise UsageError(
            "bad-option",
            f"--baselines {','.join(o.baselines)}: there is pixels; an untrained network is a "
            "model, as vit:random.",
        )
