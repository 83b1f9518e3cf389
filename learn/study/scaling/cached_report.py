"""The report of `wsa study scale --after cached`."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsa.learn.report import figures
from wsa.learn.report.document import Figure, Part, Text, table
from wsa.learn.study import output, trained_runs
from wsa.learn.study.scaling.cached import CachedResult, SetResult
from wsa.learn.study.scaling.subsets import name_of

KIND, TITLE = "scale-cached", "After training, on stored states"
MOST_IN_LATTICE = 4
NOTE = (
    "The network's greedy action with a set of its models, compared with its action with all models, "
    "on the same stored states. Regret: how much value the set's action loses, by the full network's "
    "action values. KL: divergence of the set's policy from the full network's, in nats. No model: the "
    "head sees a state vector of zeros. Shapley value (exact): how much a model adds to the agreement, "
    "averaged over all orders in which models can be added. No frame went through a model, and no "
    "game was played."
)
COLUMNS = (
    *trained_runs.COLUMNS, "checkpoint", "states", "held_out", "present", "models", "agreement", "loss",
    "loss_value", "mean_weights",
)  # fmt: skip


def write(folder: Path, scaled: Sequence[CachedResult]) -> str:
    """Write the tables and the page; return the study as Markdown."""
    parts: list[Part] = [part for one in scaled for part in _parts(one)]
    rows = [_row(one, found) for one in scaled for found in one.sets]
    return output.write(folder, KIND, TITLE, parts, NOTE, {KIND: (COLUMNS, rows)})


def _row(one: CachedResult, measured: SetResult) -> tuple[Any, ...]:
    weights = measured.weights and "+".join(f"{w:.6g}" for w in measured.weights)
    return (
        one.run, one.game, one.fusion, one.seed, one.parameters, one.checkpoint, one.states,
        one.held_out, name_of(one.models, measured.present), sum(measured.present), measured.agreement, one.loss, measured.loss,
        weights or "",
    )  # fmt: skip


def _parts(one: CachedResult) -> Iterator[Part]:
    which = "held-out states" if one.held_out else "states that it may have been trained on"
    yield Text(
        f"{one.run}: {one.name}; {one.states:,} {which}, network {one.checkpoint}, "
        f"{one.parameters:,} trainable parameters."
    )
    bars = [
        figures.Bar(name, value, style=i)
        for i, (name, value) in enumerate(zip(one.models, one.shapley, strict=True))
    ]
    yield Figure(
        f"What each model adds ({one.name})",
        figures.intervals(bars, "Shapley value of the agreement", line=0.0),
        f"They sum to {sum(one.shapley):.3f}, the difference between all models and none.",
    )
    if len(one.models) <= MOST_IN_LATTICE:
        letters, legend = letters_of(one.models)
        yield Figure(
            "Every set of models",
            figures.lattice(
                {s.present: s.agreement for s in one.sets}, letters, "agreement with all models"
            ),
            legend,
        )
    yield table(
        f"Sets of models: {one.name}",
        ("models", "agreement", one.loss, "mean weights"),
        [
            (
                name_of(one.models, s.present) or "none",
                f"{s.agreement:.3f}",
                f"{s.loss:.4g}",
                _weights(one, s),
            )
            for s in one.sets
        ],
    )
    yield table(
        "What each model adds",
        ("model", "Shapley value"),
        [(m, f"{v:+.3f}") for m, v in zip(one.models, one.shapley, strict=True)],
    )


def letters_of(models: Sequence[str]) -> tuple[str, str]:
    """A letter for each model, and a legend."""
    letters = string.ascii_uppercase[: len(models)]
    named = ", ".join(f"{a} {b}" for a, b in zip(letters, models, strict=True))
    return letters, f"{named}. The larger a dot, the higher its value."


def _weights(one: CachedResult, measured: SetResult) -> str | None:
    if measured.weights is None:
        return None
    named = zip(one.models, measured.weights, measured.present, strict=True)
    return ", ".join(f"{model} {weight:.2f}" for model, weight, there in named if there)
