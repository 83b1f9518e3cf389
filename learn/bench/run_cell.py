"""One run of a bench: trained to its end, judged, and its result written down."""

from __future__ import annotations

import dataclasses
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from wsa.encode.configs import weights_files
from wsa.encode.inference.encoder import choose_device
from wsa.learn.bench.grid import RESULT, Cell, Result, without_judging
from wsa.learn.runs import evaluate, offline_run, online_config, online_setup, setup
from wsa.store.common import atomic_files, hashing
from wsa.store.common.errors import WsaError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

ERROR = "error.txt"

# Runs draw from torch's one generator, so a process has one run at a time, however many threads a
# Dask worker that somebody started has.
_one_at_a_time = threading.Lock()

Tell = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that did not come to its end.

    Attributes:
        cell: As it is spoken of.
        kind: The error's stable code, or an exception's name.
        message: What was found, and what to do.
        exit_code: Of such an error.
    """

    cell: str
    kind: str
    message: str
    exit_code: int


def attempt(cell: Cell, tell: Tell = lambda what, done, total: None) -> Failure | None:
    """Train and judge a run from where it stands; a failure is told, not raised.

    Args:
        cell: The run.
        tell: Called with `learn` or `eval`, what is done of it, and how much it is.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    with _one_at_a_time:
        try:
            _train(cell, lambda step, _: tell("learn", step, cell.total))
            _judge(cell, lambda _, games: tell("eval", games, cell.judging.episodes))
        except WsaError as error:
            return Failure(str(cell), error.kind, str(error), error.exit_code)
        except Exception as error:  # noqa: BLE001  Memory, a driver: the other runs go on.
            path = cell.folder / ERROR
            atomic_files.replace(path, traceback.format_exc().encode())
            said = " ".join(str(error).split())[:300]
            why = f"{type(error).__name__}: {said}. {path} says where."
            return Failure(str(cell), type(error).__name__, why, 1)
    (cell.folder / ERROR).unlink(missing_ok=True)
    return None


def _train(cell: Cell, on_update: Callable[[int, dict[str, float]], None]) -> None:
    """Train, from the beginning or the newest checkpoint, as the run was begun."""
    o, folder = cell.options, cell.folder
    device = choose_device(o.device)
    begun = (folder / "config.json").exists()
    if o.online:
        playing = (
            online_config.read_config(folder) if begun else online_setup.configure(o, device)[0]
        )
        online_setup.train(o, playing, folder, device, on_update)
        return
    config = (
        offline_run.read_config(folder)
        if begun
        else setup.configure(without_judging(o), _data(cell))
    )
    offline_run.begin(folder, config)
    files = weights_files(o.weights)
    offline_run.learn(
        folder, config, device, on_update, weights=files, engine=o.engine, compiled=o.compile
    )


def _data(cell: Cell) -> Snapshot:
    """The store, of the run's game no more than its bench was begun with."""
    o = cell.options
    whole = take_snapshot(open_store(o.store))
    return offline_run.only(whole, o.game, cell.segments)


def _judge(cell: Cell, on_step: Callable[[int, int], None]) -> None:
    o, how = cell.options, cell.judging
    seen = evaluate.evaluate(
        cell.folder,
        how.episodes,
        epsilon=how.epsilon,
        seed=how.seed,
        weights=weights_files(o.weights),
        device=choose_device(o.device),
        engine=o.engine,
        num_envs=how.num_envs,
        on_step=on_step,
    )
    result = Result(o.game, o.fusion, o.models, o.seed, how, seen.summary())
    atomic_files.replace(Path(cell.folder) / RESULT, msgspec.json.format(hashing.canonical(result)))
