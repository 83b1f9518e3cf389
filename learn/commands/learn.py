"""`wsa learn`: train a run, offline or online, or continue one."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsa.learn.configs.learn import NEEDS_LESS_MEMORY, LearnOptions, OnlineLiveOptions, PlayOptions
from wsa.learn.envs import atari
from wsa.store.common import memory, terminal, user_code
from wsa.store.common.ranges import check_ranges
from wsa.store.objects.root import open_snapshot, require_writable
from wsa.store.objects.snapshot import Snapshot

if TYPE_CHECKING:
    from wsa.learn.runs.config import OfflineRun, OnlineRun


_log = logging.getLogger(__name__)


def learn(o: LearnOptions) -> int:
    """`wsa learn`."""
    return terminal.result(o.json, perform(o, progress=not o.json))


@memory.reported(NEEDS_LESS_MEMORY)
def perform(o: LearnOptions, *, progress: bool = False) -> dict[str, Any]:
    """Run `wsa learn`, and return its results as `--json` prints them."""
    check_ranges(o)
    user_code.type_in([*o.output.trust, o.fusion, o.algo])
    atari.check_game(o.game)
    from wsa.encode.configs import require_used, weights_files
    from wsa.encode.inference.cores import threads_for
    from wsa.encode.inference.encoder import choose_device
    from wsa.learn.networks.matching import width_of
    from wsa.learn.networks.parameters import count_parameters
    from wsa.learn.runs import report
    from wsa.learn.runs.dry_run import estimate
    from wsa.learn.runs.folder import find_run
    from wsa.learn.runs.machine import Machine
    from wsa.learn.runs.setup.models import weights_of
    from wsa.learn.runs.track import tracked
    from wsa.learn.runs.train import launch
    from wsa.learn.training import checkpoint

    device, threads = choose_device(o.compute.device), threads_for(o.live.threads)
    snapshot, config, folder = plan_run(o, device)
    require_used(weights_files(o.live.weights), [*o.models, *config.inputs])
    _log.info(f"{config.game}, {_described(config)}; run {folder}")
    if config.models and not (o.models or o.output.resume or o.start.init):
        _log.info(f"No models are named, so wsa takes these. To keep them: {_pinned(config)}")
    if o.method.match_parameters and config.models:
        _log.info(
            f"--match-parameters {o.method.match_parameters:,} chose {width_of(config.network)}"
        )
    find_run(folder, config)  # Another run is refused before anything is said of it.
    if done := checkpoint.newest_step(folder / "checkpoints"):
        _log.info(f"trained so far: {done:,} of {config.last_step:,} {config.unit}")
    if o.dry_run:
        return estimate(snapshot, config, device, done)
    newest: dict[str, float] = {}
    with (
        _naming(folder) if not o.output.run_dir else contextlib.nullcontext(),
        tracked(folder, config, o.output.wandb_project_name, o.output.wandb_entity)
        if o.output.track
        else contextlib.nullcontext(),
        terminal.Progress("learn", config.unit, config.last_step, shown=progress) as shown,
    ):

        def on_line(step: int, line: dict[str, float]) -> None:
            newest.update(line)
            shown.update(step)

        machine = Machine(device, o.live.engine, weights_of(o), threads, o.compute.compile)
        encoder = o.live.encoder if isinstance(o.live, OnlineLiveOptions) else ""
        trained = launch(folder, config, machine, on_line, encoder=encoder)
    if not report.is_current(folder):
        report.write(folder)
    _log.info(f"report {folder / report.FILE}")
    _log.info(f"Play full games with it: {_evaluate_command(o, folder)}")
    counted = count_parameters(trained.network).named()
    return {
        "run": str(folder), **trained.summary(), **mean_returns(folder), **counted,
        **_newest_metrics(newest),
    }  # fmt: skip


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Have an interrupt say how to continue a run whose folder the user did not name.

    Before the run has a configuration, there is nothing to continue.
    """
    from wsa.learn.runs.config import FILE

    try:
        yield
    except KeyboardInterrupt as stop:
        if (folder / FILE).exists():
            stop.args = (f"wsa learn --resume {shlex.quote(str(folder))}",)
        raise


def mean_returns(folder: Path) -> dict[str, float]:
    """Mean raw returns: of the last 100 games of training, and of the last evaluation on the way."""
    from wsa.learn.training import metrics

    training: deque[float] = deque(maxlen=100)
    found: dict[str, float] = {}
    for line in metrics.read(folder):
        if metrics.TRAINING_RETURN in line:
            training.append(line[metrics.TRAINING_RETURN])
            found["training_return"] = sum(training) / len(training)
        if metrics.EVALUATION_RETURN in line:
            found["evaluation_return"] = line[metrics.EVALUATION_RETURN]
    return found


def _newest_metrics(scalars: dict[str, float]) -> dict[str, dict[str, float]]:
    """A run's newest losses, validation scores, and fusion weights, by kind."""
    grouped: dict[str, dict[str, float]] = {}
    for kind in ("losses", "validation", "wsa/weight"):
        own = {
            n.removeprefix(f"{kind}/"): v for n, v in scalars.items() if n.startswith(f"{kind}/")
        }
        if own:
            grouped[kind.rpartition("/")[2]] = own
    return grouped


def plan_run(o: LearnOptions, device: str) -> tuple[Snapshot, OfflineRun | OnlineRun, Path]:
    """The store, the run to start or to resume, and its folder."""
    from wsa.learn.runs.config import read_config
    from wsa.learn.runs.data import as_started, find_store
    from wsa.learn.runs.folder import match_existing, new_folder
    from wsa.learn.runs.setup.configure import configure

    if o.output.resume:
        folder = Path(o.output.resume)
        config = find_store(read_config(folder), o.store)
        return open_snapshot(config.store)[1], config, folder
    _, snapshot = open_snapshot(
        o.store, create=o.online and not o.dry_run, or_empty=o.online and o.dry_run
    )
    if o.output.run_dir and not o.online:
        snapshot = as_started(snapshot, Path(o.output.run_dir), o.game, o.data.protocol)
    config = configure(o, snapshot, device, dry_run=o.dry_run)
    folder = (
        Path(o.output.run_dir)
        if o.output.run_dir
        else new_folder(Path("runs"), config, o.output.exp_name)
    )
    record = isinstance(o.data, PlayOptions) and o.data.record
    if record and not o.dry_run:
        require_writable(snapshot.backend)
    return snapshot, match_existing(config, folder, record), folder


def _pinned(config: OfflineRun | OnlineRun) -> str:
    """Return the options that name a run's models, so that models encoded later change nothing."""
    from wsa.learn.runs.config import MEAN_CONTEXT

    context = "" if config.context == MEAN_CONTEXT else f" --context {config.context}"
    return f"--models {','.join(config.models)}{context}"


def _described(config: OfflineRun | OnlineRun) -> str:
    from wsa.learn.fusion.build import fusion_class
    from wsa.learn.runs.config import OnlineRun

    count = terminal.plural(len(config.segments), "segment")
    if isinstance(config, OnlineRun):
        models = ", ".join(config.inputs) or "none, grayscale pixels"
        played = atari.describe(config.protocol)
        return f"{played}; models {models}; embeddings looked up in {count}"
    models = f"{count}; models {', '.join(config.models)}"
    conditioned = fusion_class(config.network.fusion.name).conditioned
    return f"{models}; context {config.context}" if conditioned else models


def _evaluate_command(o: LearnOptions, folder: Path) -> str:
    """Return the command that plays games with a run, which must name the user's own code again."""
    from wsa.encode.models.registry import parse_request

    words = ["wsa", "eval", str(folder)]
    own = [parse_request(m, {}) for m in o.models if user_code.is_name(m.partition("=")[2] or m)]
    if own:
        words += ["--weights", ",".join(f"{r.alias}={r.timm_name}" for r in own)]
    if trusted := [name for name in (o.fusion, o.algo) if user_code.is_name(name)]:
        words += ["--trust", ",".join(trusted)]
    return shlex.join(words)
