"""Commands as functions: options are keyword arguments, and the `--json` output is returned.

Nothing is printed. Remarks of a command go to the logger `wsa` and its children.
"""

from __future__ import annotations

import os
from typing import Any

from wsa.learn.configs.data import CollectOptions
from wsa.learn.configs.learn import EvalOptions, learn_options
from wsa.store.api.keywords import as_flags, fill

_HIDDEN = ("json",)


def collect(game: str, **options: Any) -> dict[str, Any]:
    """Play a game and store its frames and steps.

    Args:
        game: ALE game.
        options: The options of `wsa collect`, with `_` for `-`: `store="/lab/wsa"`, `steps=100_000`,
            `policy="random"`, `seed=1`, `dry_run=True`, ... (`docs/reference/commands.md`).

    Returns:
        What `wsa collect --json` prints: `steps_per_s`, and the numbers of `segments`, `steps`,
        `distinct_frames`, and `episodes` that this call added.

    Raises:
        UsageError: If the option or the game does not exist.
        StorageError: If the store cannot be written to.
    """
    from wsa.learn.commands.collect import perform

    given = {"game": game, **options}
    return perform(fill(CollectOptions(), given, "wsa.collect", _HIDDEN))


def learn(game: str = "", **options: Any) -> dict[str, Any]:
    """Train a run on cached embeddings, or on live ones with `online=True`; or continue a run.

    Args:
        game: ALE game; not needed with `resume=`.
        options: The options of `wsa learn`, with `_` for `-`: `models=["vit", "clip"]`, `fusion="wsa"`,
            `algo="cql"`, `updates=10_000`, `run_dir="runs/a"`, ... (`docs/reference/commands.md`).

    Returns:
        What `wsa learn --json` prints: `run`, the folder for `wsa.evaluate` and `wsa.load_run`, and
        the results of training.

    Raises:
        UsageError: If the option does not exist, or the algorithm does not have it.
        MissingError: If there are no frames or weights, or a model has not encoded the frames.
        ConflictError: If the folder holds another run.
        StorageError: If the run needs more memory than there is.
    """
    from wsa.learn.commands.learn import perform

    given = {**({"game": game} if game else {}), **options}
    return perform(fill(learn_options(as_flags(given)), given, "wsa.learn", _HIDDEN))


def evaluate(run: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Play full games with a trained run, and as many games with a random policy.

    Args:
        run: The run's folder.
        options: The options of `wsa eval`, with `_` for `-`: `episodes=10`, `video=True`, ...
            (`docs/reference/commands.md`).

    Returns:
        What `wsa eval --json` prints: `return_mean` with its interval, `human_normalized`,
        `random_return_mean`, the numbers of forward passes made and saved, ...

    Raises:
        UsageError: If the option does not exist.
        MissingError: If the run, its checkpoint, the weights, or the data are missing.
    """
    from wsa.learn.commands.evaluate import perform

    return perform(fill(EvalOptions(os.fspath(run)), options, "wsa.evaluate", (*_HIDDEN, "run")))
