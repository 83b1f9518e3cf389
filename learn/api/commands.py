"""Commands as functions: the same options as keyword arguments, and what `--json` prints returned.

Nothing is printed. What the commands remark on standard error is logged below the logger `wsa`.
"""

from __future__ import annotations

import os
from typing import Any

from wsa.learn.configs.data import CollectOptions
from wsa.learn.configs.learn import EvalOptions, learn_options
from wsa.store.common.keywords import as_flags, fill

_HIDDEN = ("json",)


def collect(game: str, **options: Any) -> dict[str, Any]:
    """Play a game and keep what was seen.

    Args:
        game: ALE game.
        options: Those of `wsa collect`, with `_` for `-`: `store="/lab/wsa"`, `steps=100_000`,
            `policy="random"`, `seed=1`, `dry_run=True`, ... (`docs/reference/commands.md`).

    Returns:
        What `wsa collect --json` prints: `segments`, `steps`, `distinct_frames`, `episodes` that
        this call added, and `steps_per_s`.

    Raises:
        UsageError: There is no such option or game.
        StorageError: The store cannot be written to.
    """
    from wsa.learn.commands.collect import perform

    given = {"game": game, **options}
    return perform(fill(CollectOptions(), given, "wsa.collect", _HIDDEN))


def learn(game: str = "", **options: Any) -> dict[str, Any]:
    """Train a run on cached, and with `online=True` on live, embeddings; or continue one.

    Args:
        game: ALE game; not needed with `resume=`.
        options: Those of `wsa learn`, with `_` for `-`: `models=["vit", "clip"]`, `fusion="wsa"`,
            `algo="cql"`, `updates=10_000`, `run_dir="runs/a"`, ... (`docs/reference/commands.md`).

    Returns:
        What `wsa learn --json` prints: `run`, the folder, for `wsa.evaluate` and `wsa.load_run`; and
        what training came to.

    Raises:
        UsageError: There is no such option, or the algorithm does not have it.
        MissingError: No frames, a model has not encoded them, or no weights.
        ConflictError: Another run is in the folder.
    """
    from wsa.learn.commands.learn import perform

    given = {**({"game": game} if game else {}), **options}
    return perform(fill(learn_options(as_flags(given)), given, "wsa.learn", _HIDDEN))


def evaluate(run: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Play full games with a trained run, and as many by a random policy.

    Args:
        run: The run's folder.
        options: Those of `wsa eval`, with `_` for `-`: `episodes=10`, `video=True`, ...
            (`docs/reference/commands.md`).

    Returns:
        What `wsa eval --json` prints: `return_mean` with its interval, `human_normalised`,
        `random_return_mean`, passes made and saved, ...

    Raises:
        UsageError: There is no such option.
        MissingError: No run, no checkpoint, no weights, or data that is gone.
    """
    from wsa.learn.commands.evaluate import perform

    return perform(fill(EvalOptions(os.fspath(run)), options, "wsa.evaluate", (*_HIDDEN, "run")))
