"""Which encoder tells what of a game: linear probes on embeddings that are in the store.

Before anything is trained, `wsa probe` says how much of what matters, the ball's place or whether a
reward comes, a linear map reads out of each model's embedding of one moment (`wsa.learn.probe.linear`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.encode.models.registry import parse_request
from wsa.encode.registration.select import choose_models
from wsa.learn.probe import linear, samples
from wsa.learn.probe.linear import Split
from wsa.learn.probe.samples import Moments
from wsa.store.common import names
from wsa.store.common.errors import MissingError
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.snapshot import Snapshot

# Anand et al. judge no variable whose values have less entropy, in nats: it hardly varies.
LEAST_ENTROPY = 0.6
FLOOR = "(most frequent, mean)"
MOST_PIXELS = 84 * 84


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a variable is read out of an embedding.

    Attributes:
        f1: Mean of the values' F1 by how often each occurs, as in Anand et al. (2019).
        f1_macro: Plain mean of the values' F1.
        r2: R2 of ridge regression; None where values have no order, or do not vary.
    """

    f1: float
    f1_macro: float
    r2: float | None


@dataclasses.dataclass(frozen=True)
class Judged:
    """One line of the result.

    Attributes:
        name: The model as it is shown.
        key: Its key; empty of pixels and of the floor.
        numbers: In its embedding.
        kept: Share of the embedding's variance that probes see (`linear.Axes`).
        scores: By variable.
    """

    name: str
    key: str
    numbers: int
    kept: float
    scores: dict[str, Score]

    def mean(self, of: str) -> float | None:
        """Mean over the variables of `f1`, `f1_macro` or `r2`, each at least 0."""
        values = [v for s in self.scores.values() if (v := getattr(s, of)) is not None]
        return float(np.mean(np.maximum(values, 0))) if values else None

    def summary(self) -> dict[str, Any]:
        """As JSON values."""
        means = {f"mean_{of}": self.mean(of) for of in ("f1", "f1_macro", "r2")}
        return {**dataclasses.asdict(self), **means}


def models_of(snapshot: Snapshot, game: str, asked: Sequence[str]) -> dict[str, str]:
    """Keys of the models that are meant, and how each is shown.

    An alias means every model of that alias that has encoded frames of the game, trained ones only
    unless it ends in `:random`.

    Raises:
        MissingError: None has.
        UsageError: Nobody knows such a model.
    """
    encoded = sorted({meta.model for meta in snapshot.embeddings(game)})
    if not asked:
        chosen = encoded or choose_models(snapshot, game, ())  # Which says what to do.
    else:
        chosen = [key for name in asked for key in _meant(snapshot, game, encoded, name)]
    specs = {key: read_spec(snapshot, key) for key in dict.fromkeys(chosen)}
    shown = {
        key: spec.alias + (":random" if spec.identity.random else "") for key, spec in specs.items()
    }
    alike = [name for name in shown.values() if list(shown.values()).count(name) > 1]
    return {key: key if name in alike else name for key, name in shown.items()}


def _meant(snapshot: Snapshot, game: str, encoded: Sequence[str], name: str) -> list[str]:
    if names.is_model_key(name):
        found = [name] if name in encoded else []
    else:
        alias, random = parse_request(name, {}).alias, name.endswith(":random")
        found = [
            key
            for key in encoded
            if names.key_alias(key) == alias and read_spec(snapshot, key).identity.random == random
        ]
    if not found:
        there = f" There is {', '.join(encoded)}." if encoded else ""
        raise MissingError(
            "not-encoded",
            f"{name} has not encoded frames of {game} in {snapshot.backend.url}.{there} Run: wsa "
            f"encode --game {game} --models {name}",
        )
    return found


def judge(
    rows: NDArray[Any], target: dict[str, NDArray[np.int64]], split: Split, *, ordered: bool
) -> tuple[float, dict[str, Score]]:
    """Probe one embedding for every variable.

    Args:
        rows: (n, width), embeddings.
        target: (n,) of each variable.
        split: Which are learned from and judged.
        ordered: Whether values have an order, so that R2 means something.

    Returns:
        Share of the variance that probes saw, and scores by variable.
    """
    axes = linear.principal(rows, split)
    wanted = np.stack(list(target.values()), axis=1)
    found = linear.ridge(axes, wanted, split) if ordered else None
    return axes.kept, {
        name: _score(
            values[split.test],
            linear.classify(axes, values, split),
            None if found is None else found[:, i],
        )
        for i, (name, values) in enumerate(target.items())
    }


def floor(target: dict[str, NDArray[np.int64]], split: Split, *, ordered: bool) -> dict[str, Score]:
    """What is had without looking: the most frequent value, and the mean."""
    scores = {}
    for name, values in target.items():
        known, counts = np.unique(values[split.train], return_counts=True)
        likely = np.full(len(split.test), known[counts.argmax()])
        mean = np.full(len(split.test), values[split.train].mean()) if ordered else None
        scores[name] = _score(values[split.test], likely, mean)
    return scores


def _score(
    truth: NDArray[np.int64], classes: NDArray[Any], numbers: NDArray[np.float64] | None
) -> Score:
    weighted, macro = linear.f1(truth, classes)
    r2 = math.nan if numbers is None else float(linear.r2(truth[:, None], numbers[:, None])[0])
    return Score(weighted, macro, None if math.isnan(r2) else r2)


def varying(
    moments: Moments, least: float
) -> tuple[dict[str, NDArray[np.int64]], dict[str, float]]:
    """Variables that vary enough to be judged, and the entropies of the others."""
    entropies = {name: linear.entropy(values) for name, values in moments.target.items()}
    kept = {n: v for n, v in moments.target.items() if entropies[n] > 0 and entropies[n] >= least}
    return kept, {name: e for name, e in entropies.items() if name not in kept}


def probe(
    snapshot: Snapshot,
    game: str,
    models: dict[str, str],
    moments: Moments,
    target: dict[str, NDArray[np.int64]],
    *,
    ordered: bool,
    pixels: bool,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> list[Judged]:
    """Judge every model, and what it is compared with.

    Args:
        snapshot: The store.
        game: ALE game.
        models: From `models_of`.
        moments: From `probe_data.draw`.
        target: The variables to judge by.
        ordered: Whether their values have an order.
        pixels: Whether to judge grey pixels, of as many numbers as each model gives.
        on_row: Called with the lines that are done, and how many there will be.

    Returns:
        The floor, the pixels, and the models from the best mean F1 on.

    Raises:
        DamagedError: Stored bytes are not what was committed.
        MissingError: Pixels are asked for and frames are not here.
    """
    widths = {key: samples.width(snapshot, game, key) for key in models}
    sizes = sorted({min(width, MOST_PIXELS) for width in widths.values()}) if pixels else []
    total = len(models) + len(sizes)
    below = [Judged(FLOOR, "", 0, 1.0, floor(target, moments.split, ordered=ordered))]
    for size in sizes:
        shown = samples.pixels(snapshot, moments, size)
        kept, scores = judge(shown, target, moments.split, ordered=ordered)
        below.append(Judged(f"pixels {shown.shape[1]}", "", shown.shape[1], kept, scores))
        on_row(len(below) - 1, total)
    lines = []
    for key, name in models.items():
        rows = samples.embeddings(snapshot, game, key, moments)
        kept, scores = judge(rows, target, moments.split, ordered=ordered)
        lines.append(Judged(name, key, widths[key], kept, scores))
        on_row(len(sizes) + len(lines), total)
    return [*below, *sorted(lines, key=lambda line: -(line.mean("f1") or 0))]
