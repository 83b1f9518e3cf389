"""Train one run of a bench to its end, evaluate it, and write its result."""

from __future__ import annotations

import dataclasses
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from wsa.encode.inference.cores import threads_for
from wsa.encode.inference.encoder import choose_device
from wsa.learn.bench.grid import RESULT, Cell, Result, without_live_options
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.configs.learn import NEEDS_LESS_MEMORY, OnlineLiveOptions, PlayOptions
from wsa.learn.runs import evaluations
from wsa.learn.runs.config import FILE, OfflineRun, OnlineRun, read_config
from wsa.learn.runs.data import only
from wsa.learn.runs.evaluate import OnStep, evaluate_run
from wsa.learn.runs.folder import match_existing
from wsa.learn.runs.machine import Machine
from wsa.learn.runs.setup.configure import configure
from wsa.learn.runs.setup.models import weights_of
from wsa.learn.runs.train import launch
from wsa.learn.training import interrupt
from wsa.learn.training.loop import OnLine
from wsa.store.common import atomic_files, hashing, memory, terminal, user_code
from wsa.store.common.errors import Terminated, WsaError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

ERROR = "error.txt"

# Runs draw from torch's global generator, so a process has one run at a time, even if a user's Dask
# worker has several threads.
_one_at_a_time = threading.RLock()

# The bench whose run trains in this Dask worker, and those that were stopped.
_running = ""
_stopped: set[str] = set()

OnProgress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that failed. Its `kind` is the error's stable code, or the exception's name."""

    cell: str
    kind: str
    message: str
    exit_code: int


def expected(cell: object, error: WsaError) -> Failure:
    """Describe a run that failed with one of wsa's own errors."""
    return Failure(str(cell), error.kind, str(error), error.exit_code)


def failure(cell: object, error: BaseException, trace: Path) -> Failure:
    """Describe a run that failed; write a traceback to `trace` if the error is not one of wsa's."""
    if isinstance(error, WsaError):
        return expected(cell, error)
    if memory.ran_out(error):
        return expected(cell, memory.too_little(error, NEEDS_LESS_MEMORY))
    atomic_files.replace(trace, traceback.format_exc().encode())
    message = " ".join(str(error).split())[:300]
    why = f"{type(error).__name__}: {message}. See the traceback in {trace}."
    return Failure(str(cell), type(error).__name__, why, 1)


def say_failed(failures: Sequence[Failure]) -> int:
    """Print the runs that failed; return the exit code of the first, or 0."""
    for one in failures:
        terminal.say(f"failed: {one.cell}: {one.message}")
    return failures[0].exit_code if failures else 0


def attempt(cell: Cell, on_progress: OnProgress = lambda what, done, total: None) -> Failure | None:
    """Train and evaluate a run from its current state; return a failure instead of raising it.

    `on_progress` is called with `learn` or `eval`, the progress, and the total.

    Raises:
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after saving a checkpoint.
    """
    with _one_at_a_time:
        try:
            _train(cell, lambda step, _: on_progress("learn", step, cell.total))
            _evaluate(
                cell, lambda player, _, games: on_progress("eval", games, cell.evaluation.episodes)
            )
        except user_code.ERRORS as error:  # Memory, a driver, ...: other runs continue.
            return failure(cell, error, cell.folder / ERROR)
    (cell.folder / ERROR).unlink(missing_ok=True)
    return None


def attempt_on_worker(cell: Cell, bench: str) -> Failure | None:
    """`attempt` in a Dask worker, which would print warnings unmarked, and no other remarks.

    `bench` identifies the process that started the run, for `stop_on_worker`.
    """
    global _running
    with _one_at_a_time, terminal.show_log():
        if bench in _stopped:
            return None
        _running = bench

        def check_stop(what: str, done: int, total: int) -> None:
            # `interrupt` reaches no run that is being set up or evaluated.
            if bench in _stopped:
                if what == "eval":
                    raise Terminated
                interrupt.ask_to_stop()

        try:
            return attempt(cell, check_stop)
        except KeyboardInterrupt:  # The checkpoint is saved, and the bench has ended.
            return None
        finally:
            _running = ""


def stop_on_worker(bench: str) -> None:
    """Stop a bench's run in this Dask worker after saving a checkpoint, and start no other."""
    _stopped.add(bench)
    if _running == bench:
        interrupt.ask_to_stop()


def configured(cell: Cell, device: str) -> OfflineRun | OnlineRun:
    """The configuration of a run: its own if it has begun, or else that of the bench.

    Raises:
        WsaError: See `wsa.learn.runs.setup.configure.configure`.
    """
    request, folder = cell.request, cell.folder
    user_code.type_in([request.fusion, request.algo])  # The user who started the bench named them.
    if (folder / FILE).exists():
        return read_config(folder)
    snapshot = take_snapshot(open_store(request.store))
    if not request.online:  # Only the data that the bench was started with.
        snapshot = only(snapshot, request.game, cell.segments)
    config = configure(without_live_options(request), snapshot, device)
    record = isinstance(request.data, PlayOptions) and request.data.record
    return match_existing(config, folder, record)


def _train(cell: Cell, on_line: OnLine) -> None:
    """Train a run from the start or its newest checkpoint, with its original settings."""
    request = cell.request
    device = choose_device(cell.compute.device)
    config = configured(cell, device)
    live = request.live
    machine = Machine(
        device,
        live.engine,
        weights_of(request),
        threads_for(live.threads or 1),
        cell.compute.compile,
    )
    encoder = live.encoder if isinstance(live, OnlineLiveOptions) else ""
    launch(cell.folder, config, machine, on_line, encoder=encoder)


def _evaluate(cell: Cell, on_step: OnStep) -> None:
    """Write the result of a trained run, of games that it has played before if there are such."""
    request, settings = cell.request, cell.evaluation
    asked = EvaluationRequest(
        **msgspec.structs.asdict(settings),
        device=choose_device(cell.compute.device),
        engine=request.live.engine,
    )
    key = evaluations.key_of(cell.folder, asked)
    if recorded := evaluations.find(cell.folder, cell.folder, key):
        summary = recorded.result
    else:
        evaluation = evaluate_run(
            cell.folder,
            asked,
            weights=weights_of(request),
            threads=threads_for(request.live.threads or 1),
            on_step=on_step,
        )
        evaluations.keep(cell.folder, cell.folder, key, evaluation)
        summary = evaluation.summary()
    result = Result(request.game, request.fusion, request.models, request.seed, settings, summary)
    atomic_files.replace(cell.folder / RESULT, msgspec.json.format(hashing.canonical(result)))
