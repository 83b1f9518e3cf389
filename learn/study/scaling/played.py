"""`wsa study scale --after played`: games of a trained network with sets of its models.

With up to four models all sets are played, which gives each model's exact Shapley value of the
return. With more: the whole, each model alone, and each model left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsa.learn.bench.grid import EvaluationSettings
from wsa.learn.evaluation.video import labels
from wsa.learn.report import figures
from wsa.learn.report.document import Figure, Part, Text, table
from wsa.learn.runs.config import OfflineRun, OnlineRun, read_config
from wsa.learn.runs.player import Player
from wsa.learn.study import output
from wsa.learn.study.games import (
    NO_BETTER_THAN_RANDOM,
    Games,
    PlayedGames,
    difference,
    evaluation_note,
)
from wsa.learn.study.scaling.cached_report import letters_of
from wsa.learn.study.scaling.subsets import Mask, shapley, subsets
from wsa.learn.study.trained_runs import in_text, trained_parameters
from wsa.learn.training import checkpoint

KIND, TITLE = "scale-played", "After training, in games"
MOST_EXACT = 4
COLUMNS = ("run", "game", "fusion", "seed", "parameters", "checkpoint", "present", "models", "number",
           "return", "passes")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PlayedResult:
    """A run, and its games with sets of its models.

    Attributes:
        run: The run's folder.
        config: The run.
        models: Displayed names of its models.
        checkpoint: First 12 hex digits of the network's hash.
        parameters: Number of trainable parameters, including those of absent models; None if
            unknown.
        sets: Games by set, the whole last.
        random: Games of a random policy.
    """

    run: str
    config: OfflineRun | OnlineRun
    models: tuple[str, ...]
    checkpoint: str
    parameters: int | None
    sets: dict[Mask, PlayedGames]
    random: PlayedGames

    @property
    def shapley(self) -> tuple[float, ...] | None:
        """Each model's Shapley value of the return; None unless all sets were played.

        The empty set's return is that of a random policy.
        """
        if len(self.sets) < 2 ** len(self.models) - 1:
            return None
        nothing = {(False,) * len(self.models): self.random.mean}
        values = nothing | {mask: played.mean for mask, played in self.sets.items()}
        return tuple(shapley(values).tolist())


def masks(models: int) -> list[Mask]:
    """The sets to play, the whole last."""
    all_masks = subsets(models)
    if models <= MOST_EXACT:
        return all_masks
    return [mask for mask in all_masks if sum(mask) in (1, models - 1, models)]


def left(run: Path, games: Games) -> list[Mask]:
    """Sets with which a run has not been played."""
    config, network = read_config(run), checkpoint.digest(run / "checkpoints")
    return [m for m in masks(len(config.models)) if not games.find(config, network, _condition(m))]


def measure(
    run: Path,
    games: Games,
    evaluation: EvaluationSettings,
    open_run: Callable[[Path], Player],
    on_games: Callable[[int, int], None],
) -> PlayedResult:
    """Play a run with every set of models not played before.

    Args:
        run: The run's folder.
        games: Saved games; plays new ones.
        evaluation: Settings of the games.
        open_run: Opens the run; called only if there are games to play.
        on_games: Called with (games played, games in total).
    """
    config, network = read_config(run), checkpoint.digest(run / "checkpoints")
    todo = left(run, games)
    player = open_run(run) if todo else None
    by_mask: dict[Mask, PlayedGames] = {}
    for mask in masks(len(config.models)):
        games_played = games.find(config, network, _condition(mask))
        if games_played is None:
            assert player is not None
            reduced, done = player.with_models(mask), todo.index(mask) * evaluation.episodes

            def on_step(_: int, finished: int, done: int = done) -> None:
                on_games(done + finished, len(todo) * evaluation.episodes)

            policy = reduced.policy(evaluation.num_envs, evaluation.epsilon, evaluation.seed)
            games_played = games.play(
                config, network, _condition(mask), policy, reduced.embedder, on_step
            )
        by_mask[mask] = games_played
    models = tuple(labels(config.models))
    parameters, chance = trained_parameters(config), games.random(config)
    return PlayedResult(str(run), config, models, network, parameters, by_mask, chance)


def _condition(mask: Mask) -> str:
    """Name of the condition for a set; "none" for all models, which is the unchanged run."""
    return "none" if all(mask) else f"models {''.join('01'[there] for there in mask)}"


def write(folder: Path, runs: Sequence[PlayedResult], evaluation: EvaluationSettings) -> str:
    """Write the tables and the page; return the study as Markdown."""
    parts = [part for one in runs for part in _parts(one)]
    note = (
        f"{evaluation_note(evaluation)}. A model that is left out is not run at all. Shapley value (exact): "
        "how much a model adds to the mean return, averaged over all orders in which models can be "
        "added. Without any model, a random policy plays."
    )
    rows = (row for one in runs for row in _rows(one))
    return output.write(folder, KIND, TITLE, parts, note, COLUMNS, rows)


def summary(one: PlayedResult) -> dict[str, Any]:
    """A run as JSON values."""
    return {
        "run": one.run,
        "parameters": one.parameters,
        "sets": {_named(one, mask): list(played.interval) for mask, played in one.sets.items()},
        "random": list(one.random.interval),
        "shapley": one.shapley and dict(zip(one.models, one.shapley, strict=True)),
    }


def _rows(one: PlayedResult) -> list[tuple[Any, ...]]:
    c = one.config
    columns = (one.run, c.game, c.network.fusion.name, c.seed, one.parameters, one.checkpoint)
    sets = [(_named(one, mask), sum(mask), played) for mask, played in one.sets.items()]
    return [
        (*columns, name, count, number, returned, played.passes)
        for name, count, played in [("", 0, one.random), *sets]
        for number, returned in enumerate(played.returns)
    ]


def _round(value: float) -> float:
    """Round to two places, without negative zeros."""
    return round(value, 2) + 0.0


def _named(one: PlayedResult, mask: Mask) -> str:
    return "+".join(m for m, there in zip(one.models, mask, strict=True) if there)


def _parts(one: PlayedResult) -> list[Part]:
    c = one.config
    name = f"{c.game}, {c.network.fusion.name}, seed {c.seed}"
    all_models = one.sets[(True,) * len(one.models)]
    learned = difference(all_models, one.random).low > 0
    counted = in_text(one.parameters)
    parts: list[Part] = [Text(f"{one.run}: {name}; network {one.checkpoint}, {counted}.")]
    if not learned:
        parts.append(Text(NO_BETTER_THAN_RANDOM))
    bars = [
        figures.Bar(_named(one, mask), *played.interval, int(not all(mask)))
        for mask, played in one.sets.items()
    ]
    bars.append(figures.Bar("random policy", *one.random.interval, 2))
    parts.append(
        Figure(
            f"Return with sets of models ({name})",
            figures.intervals(bars, "raw return", line=one.random.mean),
            "Mean with 95 % bootstrap interval over the games. Dashed: random policy.",
        )
    )
    added = one.shapley
    if added is not None:
        values = {mask: played.mean for mask, played in one.sets.items()}
        values[(False,) * len(one.models)] = one.random.mean
        letters, legend = letters_of(one.models)
        parts.append(
            Figure("Every set of models", figures.lattice(values, letters, "mean return"), legend)
        )
        parts.append(
            table(
                "What each model adds",
                ("model", "Shapley value of the return"),
                [(m, f"{_round(v):+.2f}") for m, v in zip(one.models, added, strict=True)],
                f"They sum to {_round(sum(added)):+.2f}, the difference between all models and a random policy.",
            )
        )
    parts.append(
        table(
            f"Games: {name}",
            ("models", "mean return", "loss compared with all models", "passes"),
            [
                (
                    _named(one, mask),
                    played.interval,
                    None if all(mask) else difference(all_models, played),
                    f"{played.passes:,}",
                )
                for mask, played in one.sets.items()
            ]
            + [("random policy", one.random.interval, difference(all_models, one.random), "0")],
        )
    )
    return parts
