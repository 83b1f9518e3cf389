"""Write the report of an encoding: `summary.md` for people, `run.json` for programs."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from wsa.encode.jobs.events import AttemptFailed, SegmentDone, WorkerUnfit
from wsa.encode.registration.register import Registered
from wsa.store.common import atomic_files, terminal
from wsa.store.common.version import __version__
from wsa.store.objects.writer import author, command_line

LIBRARIES = ("torch", "torchvision", "timm", "openvino", "distributed", "zarr", "numpy")

COLUMNS = (
    "model", "run by", "objects", "frames or windows", "passes", "copied", "passes/s of a worker",
    "s reading", "s running", "s writing", "skipped",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelTotals:
    """Totals of an encoding for one model, as in `run.json`.

    Attributes:
        model: Model key.
        engine: Engine that ran it, with its measured speed and error; or that there is no network.
        random: Whether the weights are untrained.
        objects: Number of segments encoded.
        inputs: Number of their frames, or windows of frames.
        passes: Number of inputs that went through the model.
        copied: Number of inputs whose embedding was copied from an equal input.
        fit_passes: Number of frames that the basis was fitted on.
        set_aside: Number of segments that failed every attempt.
        failed_attempts: Number of attempts that failed.
        passes_a_second_of_a_worker: Passes per second while the model ran.
        seconds: Seconds in each stage of the work, summed over all workers.
    """

    model: str
    engine: str
    random: bool
    objects: int
    inputs: int
    passes: int
    copied: int
    fit_passes: int
    set_aside: int
    failed_attempts: int
    passes_a_second_of_a_worker: float
    seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class EncodeReport:
    """Results of an encoding.

    Attributes:
        models: Registered models.
        done: One entry per segment and model that was encoded now.
        failures: All attempts that failed, in order.
        present: Number of objects that were already in the store.
        seconds: Wall time.
        workers: Number of workers at the start.
        threads: Number of threads of all workers at the start.
        device: Device of the workers.
        unfit: Workers that could not open a model.
        stopped: What ended the encoding early; empty if nothing did.
    """

    models: tuple[Registered, ...]
    done: tuple[SegmentDone, ...]
    failures: tuple[AttemptFailed, ...]
    present: int
    seconds: float
    workers: int = 0
    threads: int = 0
    device: str = ""
    unfit: tuple[WorkerUnfit, ...] = ()
    stopped: str = ""

    @property
    def failed(self) -> tuple[AttemptFailed, ...]:
        """Final failures of objects that were skipped because every attempt failed."""
        return tuple(f for f in self.failures if f.last)

    @property
    def exit_code(self) -> int:
        """0, or the exit code of the first error for which an object was skipped."""
        return self.failed[0].error.exit_code if self.failed else 0

    @property
    def passes(self) -> int:
        """Number of frames, or windows of frames, that went through a model."""
        return sum(d.passes for d in self.done)

    @property
    def copied(self) -> int:
        """Number of frames or windows whose embedding was copied from an equal one."""
        return sum(d.copied for d in self.done)

    @property
    def totals(self) -> list[ModelTotals]:
        """Totals of each model."""
        return [self._totals(one) for one in self.models]

    def _totals(self, one: Registered) -> ModelTotals:
        key = one.spec.key
        done = [d for d in self.done if d.model == key]
        passes, running = sum(d.passes for d in done), sum(d.running for d in done)
        return ModelTotals(
            model=key,
            engine=str(one.choice or ""),
            random=one.spec.identity.random,
            objects=len(done),
            inputs=sum(d.inputs for d in done),
            passes=passes,
            copied=sum(d.copied for d in done),
            fit_passes=one.fitted,
            set_aside=sum(f.model == key for f in self.failed),
            failed_attempts=sum(f.model == key for f in self.failures),
            passes_a_second_of_a_worker=passes / running if running else 0.0,
            seconds={
                "reading": sum(d.reading for d in done),
                "running": running,
                "writing": sum(d.writing for d in done),
            },
        )

    def summary(self) -> dict[str, Any]:
        """Return the report as JSON values, for `--json`."""
        return {
            "models": {
                one.spec.key: {
                    "random": one.spec.identity.random,
                    "engine": one.choice.shown if one.choice else None,
                }
                for one in self.models
            },
            "objects": len(self.done),
            "present": self.present,
            "set_aside": [{"attempts": f.attempts, **_failure(f)} for f in self.failed],
            "passes": self.passes,
            "copied": self.copied,
            "fit_passes": sum(one.fitted for one in self.models),
            "seconds": self.seconds,
        }


def _failure(failed: AttemptFailed) -> dict[str, Any]:
    return {
        "model": failed.model,
        "game": failed.game,
        "segment": failed.segment,
        "kind": failed.error.kind,
        "why": str(failed.error),
    }


def write_report(folder: Path, report: EncodeReport) -> Path:
    """Write both files, replacing older ones.

    Args:
        folder: Folder to write to, created if missing.

    Returns:
        The folder.

    Raises:
        StorageError: If the folder cannot be written to.
    """
    values = run_values(report)
    atomic_files.replace(folder / "run.json", f"{json.dumps(values, indent=2)}\n".encode())
    atomic_files.replace(folder / "summary.md", summary(values).encode())
    return folder


def make_folder(folder: Path) -> None:
    """Create the folder of a report and check that it is writable.

    Raises:
        StorageError: If it is not.
    """
    with atomic_files.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def run_values(report: EncodeReport) -> dict[str, Any]:
    """Return the content of `run.json`, as JSON values."""
    return {
        "command": command_line(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "author": author(),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": {"wsa": __version__, **_versions()},
        "workers": report.workers,
        "threads": report.threads,
        "device": report.device,
        "seconds": report.seconds,
        "models": [dataclasses.asdict(one) for one in report.totals],
        "present": report.present,
        "stopped": report.stopped,
        "failed_attempts": [
            {"attempt": f.attempts, "set_aside": f.last, "worker": f.worker, **_failure(f)}
            for f in report.failures
        ],
        "unfit_workers": [
            {"worker": u.worker, "host": u.host, "kind": u.error.kind, "why": str(u.error)}
            for u in report.unfit
        ],
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def summary(values: dict[str, Any]) -> str:
    """Describe the values of `run.json` in Markdown."""
    models = values["models"]
    made, saved = (sum(m[of] for m in models) for of in ("passes", "copied"))
    libraries = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    machine = values["machine"]
    lines = [
        "# Encoding",
        "",
        f"`{values['command']}`, {values['time']}, by {values['author']}.",
        "",
        f"{terminal.plural(made, 'pass')} made and {saved:,} saved in {terminal.duration(values['seconds'])}; "
        + f"{terminal.were(values['present'], 'object')} there already.",
        "",
        f"{terminal.plural(values['workers'], 'worker')}, "
        + f"{terminal.plural(values['threads'], 'thread')}, device {values['device']}.",
        "",
    ]
    rows = []
    for m in models:
        seconds = m["seconds"]
        cells = [
            m["model"],
            m["engine"].partition(",")[0],
            *(f"{m[name]:,}" for name in ("objects", "inputs", "passes", "copied")),
            f"{m['passes_a_second_of_a_worker']:,.1f}",
            *(f"{seconds[stage]:,.1f}" for stage in ("reading", "running", "writing")),
            str(m["set_aside"]),
        ]
        rows.append(cells)
    lines.append(terminal.markdown(COLUMNS, rows).rstrip("\n"))
    if values["stopped"]:
        lines += ["", f"Stopped before all was tried: {values['stopped']}"]
    if values["failed_attempts"]:
        lines += ["", "## Failed attempts", ""]
        lines += [
            f"- {f['model']} on {f['game']} {f['segment']}, attempt {f['attempt']}"
            f"{', skipped' if f['set_aside'] else ''}: {f['why']} (`{f['kind']}`)"
            for f in values["failed_attempts"]
        ]
    if values["unfit_workers"]:
        lines += ["", "## Workers that could not open a model", ""]
        lines += [f"- {u['worker']} on {u['host']}: {u['why']}" for u in values["unfit_workers"]]
    lines += [
        "",
        f"{machine['platform']}, {machine['cores']} cores, Python {machine['python']}; {libraries}.",
        "",
    ]
    return "\n".join(lines)
