"""`wsa study generalise`: how trained runs play games that they were not trained on."""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from wsa.learn.bench.grid import EvaluationSettings
from wsa.learn.configs.study import GeneraliseOptions
from wsa.learn.envs.variants import Variant
from wsa.learn.evaluation.video import labels
from wsa.learn.runs.config import OfflineRun, OnlineRun, read_config
from wsa.learn.runs.player import Player
from wsa.learn.study.costs import seconds_per_step, steps_per_game
from wsa.learn.study.games import RANDOM, Games, condition_of, random_condition
from wsa.learn.study.generalising import report
from wsa.learn.study.generalising.report import Failed, VariantResult
from wsa.learn.study.generalising.shift import Shift, Shifts
from wsa.learn.study.generalising.suites import SUITES, variants_of
from wsa.learn.study.trained_runs import (
    evaluation_of,
    open_run,
    policy_of,
    print_results,
    runs_of,
    trained_parameters,
)
from wsa.learn.training import checkpoint
from wsa.store.common import atomic_files, terminal
from wsa.store.common.errors import UsageError, WsaError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

UNCHANGED = "none"  # Condition of a run without any intervention, as in the other studies.
QUICK_GAMES, QUICK_STATES = 3, 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run, and the variants that it plays.

    Attributes:
        folder: The run's folder.
        config: The run.
        network: First 12 hex digits of its checkpoint's hash.
        suites: By suite, the variants that the run's game has.
    """

    folder: Path
    config: OfflineRun | OnlineRun
    network: str
    suites: dict[str, tuple[Variant, ...]]

    @property
    def variants(self) -> list[Variant]:
        """Variants of all suites."""
        return [variant for suite in self.suites.values() for variant in suite]


class SavedResults:
    """Saved results of runs, and what is left to play and to measure.

    Args:
        folder: The study's folder.
        evaluation: Settings of the games.
        states: Number of states to compare with and without a change of looks.
    """

    def __init__(self, folder: Path, evaluation: EvaluationSettings, states: int) -> None:
        self.games = Games(folder, evaluation)
        self.shifts = Shifts(folder, evaluation, states)

    def games_left(self, plan: Plan) -> list[Variant | None]:
        """Variants in which a run has not been played; None stands for the unchanged game."""
        find = self.games.find
        return [
            variant
            for variant in (None, *plan.variants)
            if not find(plan.config, plan.network, _condition(variant))
        ]

    def shifts_left(self, plan: Plan) -> list[Variant]:
        """Variants for which the run's states have not been compared."""
        comparable = [v for v in plan.variants if self.shifts.wanted(plan.config, v)]
        return [v for v in comparable if not self.shifts.find(plan.config, plan.network, v)]


def generalise(o: GeneraliseOptions) -> int:
    """`wsa study generalise`; the exit code is that of the first failed run, or 0."""
    if o.quick:
        few = min(o.episodes, QUICK_GAMES), min(o.states, QUICK_STATES)
        o = dataclasses.replace(o, episodes=few[0], states=few[1])
    runs = runs_of(o)
    if not o.episodes:
        raise UsageError("bad-option", "wsa study generalise: --episodes must be at least 1.")
    plans = [_plan(o, run) for run in runs]  # Check all runs before playing the first.
    missing_suites = _missing_suites(plans, SUITES if o.suite == "all" else (o.suite,))
    for remark in missing_suites:
        terminal.say(remark)
    if not any(plan.suites for plan in plans):
        raise UsageError(
            "bad-option",
            f"--suite {o.suite}: no run's game has variants in this suite. authors is for Breakout and "
            "Pong; look, noise and sticky are for every game.",
        )
    evaluation, folder = evaluation_of(o), Path(o.study_dir)
    saved = SavedResults(folder, evaluation, o.states)
    if o.dry_run:
        return _dry(o, plans, saved)
    results: list[VariantResult] = []
    failed: list[Failed] = []
    for plan in plans:
        with terminal.Progress(plan.folder.name, "games", shown=not o.json) as progress:
            outcome = _attempt(o, plan, saved, progress.update)
        (failed if isinstance(outcome, Failed) else results).append(outcome)  # type: ignore[arg-type]
    text = report.write(folder, results, failed, missing_suites, evaluation)
    summaries = [report.summary(one) for one in results]
    print_results(
        o, text, {"runs": summaries, "failed": [dataclasses.asdict(one) for one in failed]}
    )
    for one in failed:
        terminal.say(f"failed: {one.run}: {one.message}")
    return failed[0].exit_code if failed else 0


def _plan(o: GeneraliseOptions, run: Path) -> Plan:
    config = read_config(run)
    requested = SUITES if o.suite == "all" else (o.suite,)
    by_suite = {suite: variants_of(suite, config.game, config.protocol) for suite in requested}
    suites = {suite: variants for suite, variants in by_suite.items() if variants}
    return Plan(run, config, checkpoint.digest(run / "checkpoints"), suites)


def _missing_suites(plans: list[Plan], suites: tuple[str, ...]) -> list[str]:
    """Remarks on games that have no variant in a suite."""
    games = {plan.config.game: plan.suites for plan in plans}
    return [
        f"{game} has no variants in the suite {suite}."
        for game, has in games.items()
        for suite in suites
        if suite not in has
    ]


def _condition(variant: Variant | None) -> str:
    return condition_of(variant) if variant else UNCHANGED


def _dry(o: GeneraliseOptions, plans: list[Plan], saved: SavedResults) -> int:
    games = states = 0
    minutes = 0.0
    of_random: set[tuple[str, ...]] = set()
    rows = []
    for plan in plans:
        config = plan.config
        left, shifts = saved.games_left(plan), saved.shifts_left(plan)
        compared = o.states * (len(shifts) + bool(shifts))
        snapshot = take_snapshot(open_store(config.store))
        per_step = seconds_per_step(snapshot, config.inputs)
        base = saved.games.find(config, plan.network, UNCHANGED)
        length = base.steps / o.episodes if base else steps_per_game(snapshot, config.game)
        for variant in (None, *plan.variants):
            condition = random_condition(variant)
            if not saved.games.find(config, RANDOM, condition):
                of_random.add((config.game, repr(config.protocol), condition))
        games += len(left) * o.episodes
        states += compared
        minutes += (len(left) * o.episodes * length + compared) * per_step / 60
        rows.append((str(plan.folder), len(plan.variants), len(left) * o.episodes, compared))
    total = {
        "runs": len(plans),
        "games_left": games,
        "random_games_left": len(of_random) * o.episodes,
        "states_left": states,
        # NaN if the store does not have the game, whose length is then unknown.
        "minutes": None if math.isnan(minutes) else minutes,
    }
    columns = ("run", "variants", "games_left", "states_left")
    if o.json:
        grid = [dict(zip(columns, row, strict=True)) for row in rows]
        return terminal.result(True, {**total, "grid": grid})
    terminal.table("", columns, rows)
    print()
    return terminal.result(False, total)


def _attempt(
    o: GeneraliseOptions, plan: Plan, saved: SavedResults, on_games: Callable[[int, int], None]
) -> VariantResult | Failed:
    """Study a run; return a failure instead of raising it, so that the other runs continue."""
    run = str(plan.folder)
    try:
        return _study_run(o, plan, saved, on_games)
    except WsaError as error:
        return Failed(run, error.kind, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  For example memory or a driver.
        path = Path(o.study_dir) / "error.txt"
        atomic_files.replace(path, traceback.format_exc().encode())
        message = " ".join(str(error).split())[:300]
        why = f"{type(error).__name__}: {message}. See the traceback in {path}."
        return Failed(run, type(error).__name__, why, 1)


def _study_run(
    o: GeneraliseOptions, plan: Plan, saved: SavedResults, on_games: Callable[[int, int], None]
) -> VariantResult:
    """Play a run and a random policy in every variant, and compare states."""
    config, games = plan.config, saved.games
    left = saved.games_left(plan)
    player = open_run(o, plan.folder) if left or saved.shifts_left(plan) else None
    for done, variant in enumerate(left):
        assert player is not None

        def on_step(_: int, finished: int, before: int = done * o.episodes) -> None:
            on_games(before + finished, len(left) * o.episodes)

        # Frames of one variant must not be remembered in the next.
        fresh = player.with_models(None)
        policy = policy_of(o, fresh)
        condition = _condition(variant)
        games.play(
            config, plan.network, condition, policy, fresh.embedder, on_step, variant=variant
        )
    pairs = {}
    for variant in (None, *plan.variants):
        played = games.find(config, plan.network, _condition(variant))
        assert played is not None
        pairs[variant.spec if variant else ""] = played, games.random(config, variant)
    suites = {
        suite: {v.spec: pairs[v.spec] for v in variants} for suite, variants in plan.suites.items()
    }
    shifts = dict(_shifts(plan, saved, player))
    models = tuple(labels(config.models))
    return VariantResult(
        str(plan.folder), config, models, plan.network, trained_parameters(config), pairs[""],
        suites, shifts,
    )  # fmt: skip


def _shifts(plan: Plan, saved: SavedResults, player: Player | None) -> Iterator[tuple[str, Shift]]:
    """Effect of each change of looks, by variant."""
    left = saved.shifts_left(plan)
    if left:
        assert player is not None
        compare = saved.shifts.measure(player)
        for variant in left:
            compare(variant)
    for variant in plan.variants:
        shift = saved.shifts.find(plan.config, plan.network, variant)
        if shift and saved.shifts.wanted(plan.config, variant):
            yield variant.spec, shift
