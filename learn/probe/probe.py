"""Compare encoders by linear probes of their embeddings, and check whether to trust the ranking.

Without training a policy, `wsa probe` measures how well a linear map reads positions from each
model's embedding of one step (`wsa.learn.probe.linear`, `wsa.learn.probe.scores`). Untrained
networks, grayscale pixels, and the *true state* (the variables in the emulator's memory) serve as
references. No embedding can contain more than the true state, so a measure that does not rank it
first does not measure the state, and is not used for ranking.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsa.encode.models.registry import parse_request
from wsa.encode.registration.select import choose_models
from wsa.learn.evaluation.scores import Interval
from wsa.learn.probe import inputs, linear, ram_labels, scores
from wsa.learn.probe.linear import Axes
from wsa.learn.probe.samples import SampledSteps
from wsa.learn.probe.scores import Scores, Sums
from wsa.store.common import names
from wsa.store.common.errors import MissingError
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.snapshot import Snapshot

# Anand et al. skip variables whose values have less entropy, in nats: they hardly vary.
MIN_ENTROPY = 0.6
MIN_SHOWN = 50  # Steps with the object on the screen that are needed to test its position.
READABLE = 0.1  # R2 of the best encoder below which a variable counts as unreadable.
NARROW = 64  # Number of axes in the comparison at equal width.
MAX_PIXELS = 84 * 84
# Places in a ranking of the kinds that are always first or last.
ENDS = {"state": 0, "floor": 2}
TRUE_STATE, FLOOR = "(true state)", "(mean)"

# both: fitted and tested on random and better play; transfer: fitted on random play, tested on
# better play; narrow: like both, on `NARROW` axes.
Way = Literal["both", "transfer", "narrow"]
WAYS: tuple[Way, ...] = ("both", "transfer", "narrow")
Kind = Literal["state", "floor", "pixels", "model", "untrained"]


@dataclasses.dataclass(frozen=True)
class F1:
    """F1 of the exact values of a variable: the mean of the values' F1, weighted by frequency as in
    Anand et al. (2019), and the plain mean.
    """

    weighted: float
    macro: float


@dataclasses.dataclass(frozen=True)
class Line:
    """Probe results of one embedding.

    Attributes:
        name: Displayed name.
        key: The model's key; empty for anything but a stored model.
        kind: Kind of embedding.
        numbers: Length of the embedding.
        kept: Share of the embedding's variance that probes see (`linear.Axes`).
        sums: By way, sums of each group and each of the table's `ordered` variables.
        f1: By variable, F1 in the first split that tests a step; empty if it was not requested.
    """

    name: str
    key: str
    kind: Kind
    numbers: int
    kept: float
    sums: dict[Way, Sums]
    f1: dict[str, F1]

    def scores(self, way: Way) -> Scores | None:
        """Scores of each of the table's `ordered` variables; None if nothing is tested that way."""
        return scores.score(self.sums[way].sum(axis=0)) if way in self.sums else None

    def mean_f1(self, of: Literal["weighted", "macro"]) -> float | None:
        """Mean F1 over variables."""
        values = [getattr(one, of) for one in self.f1.values()]
        return float(np.mean(values)) if values else None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Whether a measure ranks the true state first."""

    true_state: float
    best_other: float
    best_name: str

    @property
    def ranks(self) -> bool:
        """Whether the measure may rank lines."""
        return self.true_state >= self.best_other - 1e-3


@dataclasses.dataclass(frozen=True)
class Table:
    """All lines, and the conclusions from them.

    Attributes:
        lines: The true state first if there is one, then the floor, then the others.
        ordered: Variables whose values have an order; columns of `Line.sums`.
        counted: Variables that count in means: positions on the screen, or all reward variables.
        better: Whether each group of steps is of better play, shape (groups,).
        seed: Seed for the intervals.
    """

    lines: list[Line]
    ordered: list[str]
    counted: list[str]
    better: NDArray[np.bool_]
    seed: int

    @functools.cached_property
    def unread(self) -> list[str]:
        """Counted variables that no embedding predicts; they are left out of means."""
        r2 = [s.r2 for line in self._encoders if (s := line.scores("both"))]
        if not r2:
            return []
        best = np.nanmax(np.nan_to_num(r2, nan=-np.inf), axis=0)
        return [n for n in self.counted if best[self.ordered.index(n)] < READABLE]

    @functools.cached_property
    def means(self) -> dict[tuple[str, Way], tuple[Interval, Interval]]:
        """By line and way, means of R2 and of hits over the variables that are not `unread`."""
        columns = [self.ordered.index(n) for n in self.counted if n not in self.unread]
        result = {}
        for line in self.lines:
            for way, sums in line.sums.items():
                mean = scores.mean(sums, columns, self.better, self.seed) if columns else None
                if mean is not None:
                    result[line.name, way] = mean
        return result

    @functools.cached_property
    def calibrations(self) -> dict[str, Calibration]:
        """By measure: `r2`, `hit`, each with ` transfer` and ` narrow` too, and `f1`."""
        result: dict[str, Calibration] = {}
        if not self.lines or self.lines[0].kind != "state":
            return result
        for way in WAYS:
            for i, measure in enumerate(("r2", "hit")):
                values = {n: pair[i].value for (n, w), pair in self.means.items() if w == way}
                name = measure if way == "both" else f"{measure} {way}"
                result |= self._calibrated(name, values)
        return result | self._calibrated(
            "f1",
            {line.name: f for line in self.lines if (f := line.mean_f1("weighted")) is not None},
        )

    def _calibrated(self, measure: str, values: Mapping[str, float]) -> dict[str, Calibration]:
        others = {n: v for n, v in values.items() if n != TRUE_STATE}
        if TRUE_STATE not in values or not others:
            return {}
        best = max(others, key=lambda name: others[name])
        return {measure: Calibration(values[TRUE_STATE], others[best], best)}

    @functools.cached_property
    def ranked_by(self) -> str:
        """The measure that ranks lines; empty if there is none.

        R2, or hits if R2 does not rank the true state first. For rewards, lines are ranked by R2
        and for actions by F1, without a true state: the memory does not say what a player will do.
        """
        if self.lines and self.lines[0].kind == "state":
            known = self.calibrations
            return next((m for m in ("r2", "hit") if m in known and known[m].ranks), "")
        return "r2" if self.means else "f1"

    def ranked(self) -> list[Line]:
        """The true state, the encoders from best to worst, and the floor.

        The encoders keep their given order if no measure can rank them.
        """
        return sorted(self.lines, key=lambda line: (ENDS.get(line.kind, 1), -self.rank(line)))

    def rank(self, line: Line) -> float:
        """Value that ranks a line; the same for all lines if no measure can rank them."""
        if self.ranked_by == "f1":
            return line.mean_f1("macro") or 0.0
        pair = self.means.get((line.name, "both"))
        if pair is None or not self.ranked_by:
            return 0.0
        return pair[("r2", "hit").index(self.ranked_by)].value

    @property
    def _encoders(self) -> list[Line]:
        return [line for line in self.lines if line.kind not in ("state", "floor")]


def models_of(snapshot: Snapshot, game: str, requested: Sequence[str]) -> dict[str, str]:
    """Keys of the requested models, with the name to display for each.

    An alias selects every model with that alias that has encoded frames of the game: trained
    models, or untrained ones if it ends in `:random`.

    Raises:
        MissingError: If there is no such model.
        UsageError: If the model does not exist.
    """
    encoded = sorted({meta.model for meta in snapshot.embeddings(game)})
    if not requested:
        chosen = encoded or choose_models(snapshot, game, ())  # It raises an error with advice.
    else:
        chosen = [
            key for name in requested for key in _matching_keys(snapshot, game, encoded, name)
        ]
    specs = {key: read_spec(snapshot, key) for key in dict.fromkeys(chosen)}
    labels = {
        key: spec.alias + (":random" if spec.identity.random else "") for key, spec in specs.items()
    }
    duplicates = [name for name in labels.values() if list(labels.values()).count(name) > 1]
    return {key: key if name in duplicates else name for key, name in labels.items()}


def _matching_keys(snapshot: Snapshot, game: str, encoded: Sequence[str], name: str) -> list[str]:
    if names.is_model_key(name):
        keys = [name] if name in encoded else []
    else:
        alias, random = parse_request(name, {}).alias, name.endswith(":random")
        keys = [
            key
            for key in encoded
            if names.key_alias(key) == alias and read_spec(snapshot, key).identity.random == random
        ]
    if not keys:
        available = f" Available: {', '.join(encoded)}." if encoded else ""
        raise MissingError(
            "not-encoded",
            f"{name} has not encoded frames of {game} in {snapshot.backend.url}.{available} Run: wsa "
            f"encode --game {game} --models {name}",
        )
    return keys


def untrained_kinds(snapshot: Snapshot, models: Mapping[str, str]) -> dict[str, str]:
    """Models to compare with untrained networks, with the name to display for the latter.

    Of several models with the same network, such as one trained and one untrained, one is chosen.
    """
    first_keys: dict[tuple[str, str], str] = {}
    for key in models:
        spec = read_spec(snapshot, key)
        if inputs.has_untrained(spec):
            first_keys.setdefault((spec.alias, spec.identity.output.partition("+")[0]), key)
    several = [alias for alias, _ in first_keys]
    return {
        key: f"{alias} untrained" + (f" ({output})" if several.count(alias) > 1 else "")
        for (alias, output), key in first_keys.items()
    }


def pixel_sizes(widths: Sequence[int]) -> list[int]:
    """Numbers of grayscale pixels to compare with embeddings of some widths.

    Of numbers that give the same small screen, one is kept.
    """
    numbers = sorted({min(width, MAX_PIXELS) for width in widths})
    return sorted({inputs.pixel_grid(number): number for number in numbers}.values())


def usable_variables(sampled: SampledSteps, least: float) -> tuple[list[str], dict[str, str]]:
    """Variables that can be tested, and the reasons that exclude the others.

    The values of a variable must have an entropy of `least` nats while its object is on the screen.
    """
    usable, reasons = [], {}
    for name, values in sampled.target.items():
        shown = sampled.shown[name]
        if shown.sum() < min(MIN_SHOWN, len(sampled) // 4):
            reasons[name] = f"on the screen at only {int(shown.sum()):,} of {len(sampled):,} steps"
            continue
        entropy = linear.entropy(values[shown])
        if entropy > 0 and entropy >= least:
            usable.append(name)
        else:
            reasons[name] = f"hardly varies (entropy {entropy:.2f})"
    return usable, reasons


def seen_before(sampled: SampledSteps, places: Sequence[str]) -> dict[str, dict[str, float]]:
    """By object and kind of play, the share of tested steps whose exact position was in training.

    If it is high, a probe may look positions up instead of reading them.
    """
    result: dict[str, dict[str, float]] = {}
    for thing in dict.fromkeys(map(ram_labels.object_of, places)):
        coordinates = [name for name in places if ram_labels.object_of(name) == thing]
        shown = sampled.shown[coordinates[0]]
        place = np.stack([sampled.target[name] for name in coordinates], axis=1)
        _, number = np.unique(place, axis=0, return_inverse=True)
        number = number.reshape(-1)
        counts = np.zeros((2, 2))
        for split in sampled.splits:
            part = split.within(shown)
            repeated = np.isin(number[part.test], number[part.train])
            for kind in (0, 1):
                selected = sampled.better[part.test] == kind
                counts[kind] += repeated[selected].sum(), selected.sum()
        result[thing] = {
            kind: float(seen / count)
            for kind, (seen, count) in zip(("random", "better"), counts, strict=True)
            if count
        }
    return result


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of a probe, with models from `models_of` and variables from `usable_variables`.

    `ordered` values have an order, so that R2 is meaningful. With `state`, the variables are those
    of the true state, which is then probed too, and means are over positions only. `untrained` is a
    number of networks for each of wsa's own encoders; these and pixels need `frames` in the store.
    """

    models: dict[str, str]
    variables: list[str]
    ordered: bool
    state: bool
    f1: bool
    untrained: int
    frames: bool
    seed: int


# Name, key, kind, and rows (n, width) of an embedding.
Named = tuple[str, str, Kind, NDArray[Any]]


def probe(
    snapshot: Snapshot,
    game: str,
    sampled: SampledSteps,
    plan: Plan,
    on_line: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """Probe every model of a store, and what it is compared with.

    `on_line` is called with (embeddings done, embeddings in total).

    Raises:
        DamagedError: If stored bytes are not what was committed.
        MissingError: If frames are not in this store.
    """
    widths = [inputs.width(snapshot, game, key) for key in plan.models]
    kinds = untrained_kinds(snapshot, plan.models) if plan.frames and plan.untrained else {}
    sizes = pixel_sizes(widths) if plan.frames else []
    total = len(plan.models) + len(sizes) + len(kinds) * plan.untrained
    embeddings = _embeddings(snapshot, game, sampled, plan, sizes, kinds)
    return compare(sampled, plan, embeddings, lambda done: on_line(done, total))


def compare(
    sampled: SampledSteps,
    plan: Plan,
    embeddings: Iterable[Named],
    on_line: Callable[[int], None] = lambda done: None,
) -> Table:
    """Probe embeddings of some steps, and the true state. Only one embedding is in memory at a
    time.

    `on_line` is called with the number of embeddings done.
    """
    lines = [_probe_one(FLOOR, "", "floor", None, sampled, plan)]
    if plan.state:
        state = np.stack([*sampled.target.values()], axis=1).astype(np.float64)
        spread = state.std(axis=0)
        scaled = (state - state.mean(axis=0)) / np.where(spread > 0, spread, 1)
        lines.insert(0, _probe_one(TRUE_STATE, "", "state", scaled, sampled, plan))
    for done, (name, key, kind, rows) in enumerate(embeddings, 1):
        lines.append(_probe_one(name, key, kind, rows, sampled, plan))
        on_line(done)
    ordered = plan.variables if plan.ordered else []
    counted = [n for n in ordered if not plan.state or ram_labels.is_position(n)]
    return Table(lines, ordered, counted, sampled.groups.better, plan.seed)


def _embeddings(
    snapshot: Snapshot,
    game: str,
    sampled: SampledSteps,
    plan: Plan,
    sizes: Sequence[int],
    kinds: Mapping[str, str],
) -> Iterator[Named]:
    """Yield the embeddings to compare, one at a time, because each may be large."""
    for key, name in plan.models.items():
        yield name, key, "model", inputs.embeddings(snapshot, game, key, sampled)
    for key, name in kinds.items():
        seeds = range(plan.untrained)
        of_seeds = inputs.untrained(snapshot, sampled, read_spec(snapshot, key), seeds)
        for seed in seeds:
            yield f"{name}, seed {seed}", "", "untrained", of_seeds[seed]
    for size in sizes:
        rows = inputs.pixels(snapshot, sampled, size)
        yield f"pixels {rows.shape[1]}", "", "pixels", rows


def _probe_one(
    name: str, key: str, kind: Kind, rows: NDArray[Any] | None, sampled: SampledSteps, plan: Plan
) -> Line:
    """Probe every variable in one embedding; if `rows` is None, predict the mean."""
    axes = None if rows is None else linear.principal(rows)
    sums: dict[Way, Sums] = {}
    if plan.ordered:
        sums["both"] = scores.fit_and_test(axes, sampled, plan.variables, sampled.splits)
        if sampled.better.any() and not sampled.better.all():
            across = [split.across(sampled.better) for split in sampled.splits]
            sums["transfer"] = scores.fit_and_test(axes, sampled, plan.variables, across)
        narrow = axes and axes.leading(NARROW)
        sums["narrow"] = scores.fit_and_test(narrow, sampled, plan.variables, sampled.splits)
    numbers = 0 if rows is None else rows.shape[1]
    f1 = _f1(axes, sampled, plan.variables) if plan.f1 else {}
    return Line(name, key, kind, numbers, axes.kept if axes else 1.0, sums, f1)


def _f1(axes: Axes | None, sampled: SampledSteps, variables: Sequence[str]) -> dict[str, F1]:
    """F1 of each variable in the first split that tests a step; without axes, predict the most
    frequent value.
    """
    # A split tests nothing if all its frames are in training, as in games that repeat each other.
    split, result = next(split for split in sampled.splits if len(split.test)), {}
    for name in variables:
        values = sampled.target[name]
        if axes is None:
            distinct, counts = np.unique(values[split.train], return_counts=True)
            predicted = np.full(len(split.test), distinct[counts.argmax()])
        else:
            predicted = linear.classify(axes, values, split)
        result[name] = F1(*linear.f1(values[split.test], predicted))
    return result
