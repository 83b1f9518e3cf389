"""`wsa eval`: play full games with a trained run."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from wsa.encode.configs import require_used, weights_files
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.configs.learn import EvalOptions
from wsa.learn.evaluation.pace import Pace
from wsa.store.common import memory, terminal, user_code

_log = logging.getLogger(__name__)


def evaluate(o: EvalOptions) -> int:
    """`wsa eval`."""
    return terminal.result(o.json, perform(o, progress=not o.json))


@memory.reported("Use a smaller --num-envs, or leave models out with --without.")
def perform(o: EvalOptions, *, progress: bool = False) -> dict[str, Any]:
    """Run `wsa eval`, and return its results as `--json` prints them."""
    from wsa.encode.inference.cores import threads_for
    from wsa.encode.inference.encoder import choose_device
    from wsa.learn.runs import evaluations, report
    from wsa.learn.runs.config import read_config
    from wsa.learn.runs.data import find_store
    from wsa.learn.runs.evaluate import evaluate_run, random_games
    from wsa.learn.runs.player import requested_mask

    user_code.type_in(o.run_options.trust)
    threads = threads_for(o.live.threads)
    folder, out = Path(o.run), Path(o.run_options.out) if o.run_options.out else None
    config = read_config(folder)
    weights = weights_files(o.live.weights)
    require_used(weights, config.inputs)
    _log.info(f"store {o.store or config.store}")
    results = out or folder
    request = EvaluationRequest(
        which=o.run_options.checkpoint,
        episodes=o.episodes,
        epsilon=o.play.epsilon,
        seed=o.play.seed,
        num_envs=o.play.num_envs,
        without=o.without,
        only=o.only,
        variant=o.variant,
        device=choose_device(o.live.device),
        engine=o.live.engine,
    )
    key = evaluations.key_of(folder, request)
    recorded = None if o.play.again or o.video else evaluations.find(folder, results, key)
    if o.dry_run:
        if o.without or o.only:  # The store has the models' names.
            requested_mask(find_store(config, o.store), request)
        games = 0 if recorded else o.episodes
        known = recorded or random_games(config, request).find() is not None
        random = 0 if known else o.episodes
        steps = (games + random) * config.protocol.max_steps
        return {"games": games, "random_games": random, "steps_at_most": steps}
    if recorded:
        _log.info(
            f"These games were played before, so none is played; they are in {results / 'eval.csv'}. "
            "--again plays them again."
        )
        if not evaluations.has_its_weights(results, recorded):
            _log.info(
                f"{results / 'eval_weights.npz'} is of another evaluation; --again writes this one's."
            )
        if (results / report.FILE).exists():  # Nothing is written: a shared run may be read-only.
            _log.info(f"report {results / report.FILE}")
        return recorded.repeated
    most = config.protocol.max_steps
    _log.info(
        f"games: the run plays {o.episodes:,}, and a random policy as many if this machine has not "
        f"played those before; each game has at most {most:,} steps"
    )
    with contextlib.ExitStack() as stack:
        paces: dict[str, Pace] = {}
        bar: Any = None

        def on_step(player: str, steps: int, finished: int) -> None:
            nonlocal bar
            if player not in paces:
                stack.close()
                name = "eval" if player == "run" else "random policy"
                bar = stack.enter_context(terminal.Progress(name, "steps", shown=progress))
                paces[player] = Pace(o.episodes, o.play.num_envs)
            bar.update(steps, paces[player].seen(steps, finished))

        evaluation = evaluate_run(
            folder,
            request,
            store=o.store,
            weights=weights,
            video=o.video,
            threads=threads,
            out=out,
            on_step=on_step,
        )
    if stopped := sum(game.truncated for game in evaluation.episodes):
        _log.warning(
            f"{stopped:,} of {o.episodes:,} games had not ended after {most:,} steps. A policy that "
            "has hardly trained may wait forever, as in Breakout if it never fires: train longer, or "
            "play with a larger --epsilon."
        )
    files = ["eval.csv", *(["eval_weights.npz"] if evaluation.player.weighs else [])]
    _log.info(f"games {', '.join(str(results / name) for name in files)}")
    if o.video:
        _log.info(f"videos {results / 'videos'}")
    _log.info(f"report {report.write(folder, o.store, out)}")
    evaluations.keep(folder, results, key, evaluation)
    return evaluation.summary()
