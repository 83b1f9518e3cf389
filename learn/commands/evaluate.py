"""`wsa eval`: play full games with a trained run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from wsa.encode.configs import weights_files
from wsa.learn.configs.learn import EvalOptions
from wsa.store.common import terminal, user_code
from wsa.store.common.ranges import check_ranges

_log = logging.getLogger(__name__)


def evaluate(o: EvalOptions) -> int:
    """`wsa eval`."""
    return terminal.result(o.json, perform(o, progress=not o.json))


def perform(o: EvalOptions, *, progress: bool = False) -> dict[str, Any]:
    """Do what `wsa eval` does; what came of it, as `--json` prints it.

    Args:
        o: The options.
        progress: Whether to show on standard error how far it is.
    """
    from wsa.encode.inference.cores import threads_for
    from wsa.encode.inference.encoder import choose_device
    from wsa.learn.runs import report
    from wsa.learn.runs.config import read_config
    from wsa.learn.runs.evaluate import evaluate_run

    check_ranges(o)
    user_code.type_in(o.trust)
    threads = threads_for(o.threads)
    _log.info(f"store {o.store or read_config(Path(o.run)).store}")
    # The run's games, then as many of a random policy to compare with.
    with terminal.Progress("eval", "games", 2 * o.episodes, shown=progress) as shown:
        before = now = 0

        def on_step(steps: int, episodes: int) -> None:
            nonlocal before, now
            if episodes < now:
                before = o.episodes
            now = min(episodes, o.episodes)
            shown.update(before + now)

        evaluation = evaluate_run(
            Path(o.run),
            o.episodes,
            epsilon=o.epsilon,
            seed=o.seed,
            store=o.store,
            weights=weights_files(o.weights),
            video=o.video,
            device=choose_device(o.device),
            engine=o.engine,
            threads=threads,
            num_envs=o.num_envs,
            which=o.checkpoint,
            without=o.without,
            only=o.only,
            variant=o.variant,
            on_step=on_step,
        )
    _log.info(f"report {report.write(Path(o.run), o.store)}")
    return evaluation.summary()
