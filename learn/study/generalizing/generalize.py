"""`wsa study generalize`: how trained runs play games that they were not trained on."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

from wsa.learn.bench.grid import print_grid
from wsa.learn.bench.run_cell import ERROR, Failure, failure, say_failed
from wsa.learn.configs.study import GeneralizeOptions
from wsa.learn.envs.variants import Variant
from wsa.learn.runs.data import find_store
from wsa.learn.study.costs import seconds_per_step, steps_per_game
from wsa.learn.study.games import UNCHANGED, Condition, Games, variant_condition
from wsa.learn.study.generalizing import report
from wsa.learn.study.generalizing.report import VariantResult
from wsa.learn.study.generalizing.shift import Shifts
from wsa.learn.study.generalizing.suites import SUITES, variants_of
from wsa.learn.study.trained_runs import TrainedRun, open_run, print_results, runs_of
from wsa.learn.training import checkpoint
from wsa.store.common import terminal, user_code
from wsa.store.common.errors import UsageError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

QUICK_GAMES, QUICK_STATES = 3, 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run, and the variants that it plays."""

    run: TrainedRun
    suites: dict[str, tuple[Variant, ...]]

    @property
    def variants(self) -> list[Variant]:
        """Variants of all suites."""
        return [variant for suite in self.suites.values() for variant in suite]

    @property
    def conditions(self) -> dict[str, Condition]:
        """The unchanged game, and every variant by its SPEC."""
        return {"": UNCHANGED} | {v.spec: variant_condition(v) for v in self.variants}


def generalize(o: GeneralizeOptions) -> int:
    """`wsa study generalize`; the exit code is that of the first failed run, or 0."""
    if o.quick:
        few = min(o.episodes, QUICK_GAMES), min(o.states, QUICK_STATES)
        o = dataclasses.replace(o, episodes=few[0], states=few[1])
    runs = runs_of(o)
    if not o.episodes:
        raise UsageError("--episodes must be at least 1.")
    plans = [_plan(o, run) for run in runs]  # Check all runs before playing the first.
    missing_suites = _missing_suites(plans, _suites(o))
    for remark in missing_suites:
        terminal.say(remark)
    if not any(plan.suites for plan in plans):
        raise UsageError(
            f"--suite {o.suite}: no run's game has variants in this suite. authors is for Breakout "
            "and Pong; look, noise, and sticky are for every game."
        )
    evaluation, folder = o.final_games.settings(o.episodes), Path(o.study_dir)
    games, shifts = Games(folder, evaluation), Shifts(folder, evaluation, o.states)
    if o.dry_run:
        return _dry(o, plans, games, shifts)
    results: list[VariantResult] = []
    failed: list[Failure] = []
    for plan in plans:
        run = plan.run.folder
        with terminal.Progress(run.name, "games", shown=not o.json) as progress:
            try:
                results.append(_study_run(o, plan, games, shifts, progress.update))
            except user_code.ERRORS as error:  # Memory, a driver, ...: other runs continue.
                failed.append(failure(run, error, folder / ERROR))
    text = report.write(folder, results, failed, missing_suites, evaluation)
    summaries = [report.summary(one) for one in results]
    print_results(o, text, {"runs": summaries, "failed": [report.failed(one) for one in failed]})
    return say_failed(failed)


def _suites(o: GeneralizeOptions) -> tuple[str, ...]:
    return SUITES if o.suite == "all" else (o.suite,)


def _plan(o: GeneralizeOptions, run: TrainedRun) -> Plan:
    checkpoint.latest(run.folder / "checkpoints")  # An error if there is none.
    game, protocol = run.config.game, run.config.protocol
    by_suite = {suite: variants_of(suite, game, protocol) for suite in _suites(o)}
    return Plan(run, {suite: variants for suite, variants in by_suite.items() if variants})


def _missing_suites(plans: list[Plan], suites: tuple[str, ...]) -> list[str]:
    """Remarks on games that have no variant in a suite."""
    games = {plan.run.config.game: plan.suites for plan in plans}
    return [
        f"{game} has no variants in the suite {suite}."
        for game, has in games.items()
        for suite in suites
        if suite not in has
    ]


def _dry(o: GeneralizeOptions, plans: list[Plan], games: Games, shifts: Shifts) -> int:
    games_left = states_left = 0
    minutes = 0.0
    of_random: set[Path] = set()
    rows = []
    for plan in plans:
        run = plan.run
        played = len(games.left(run, plan.conditions.values())) * o.episodes
        changes = len(shifts.left(run, plan.variants))
        compared = o.states * (changes + bool(changes))
        snapshot = take_snapshot(open_store(find_store(run.config).store))
        per_step = seconds_per_step(snapshot, run.config.inputs)
        base = games.find(run, UNCHANGED)
        length = base.steps / o.episodes if base else steps_per_game(snapshot, run.config.game)
        of_random |= {games.random_path(run, variant) for variant in (None, *plan.variants)}
        games_left += played
        states_left += compared
        minutes += (played * length + compared) * per_step / 60
        rows.append((str(run.folder), len(plan.variants), played, compared))
    total = {
        "runs": len(plans),
        "games_left": games_left,
        "random_games_left": sum(not path.exists() for path in of_random) * o.episodes,
        "states_left": states_left,
        # NaN if the store does not have the game, whose length is then unknown.
        "minutes": None if math.isnan(minutes) else minutes,
    }
    return print_grid(o.json, total, ("run", "variants", "games_left", "states_left"), rows)


def _study_run(
    o: GeneralizeOptions,
    plan: Plan,
    games: Games,
    shifts: Shifts,
    on_games: Callable[[int, int], None],
) -> VariantResult:
    """Play a run and a random policy in every variant, and compare states."""
    run = plan.run
    player = functools.cache(functools.partial(open_run, o, run))
    played = games.play_all(run, plan.conditions, player, on_games)
    pairs = {
        spec: (played[spec], games.random(run, condition.variant))
        for spec, condition in plan.conditions.items()
    }
    suites = {
        suite: {v.spec: pairs[v.spec] for v in variants} for suite, variants in plan.suites.items()
    }
    if left := shifts.left(run, plan.variants):
        shifts.measure(run, player(), left)
    return VariantResult(run, pairs[""], suites, shifts.of(run, plan.variants))
