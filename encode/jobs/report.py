"""The report of an encoding: `summary.md` for people, `run.json` for programs, in one folder."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsa import __version__
from wsa.encode.jobs.events import SegmentDone
from wsa.encode.jobs.run import EncodeReport
from wsa.store.common import atomic_files, terminal
from wsa.store.objects.writer import author, command_line

LIBRARIES = ("torch", "torchvision", "timm", "openvino", "distributed", "zarr", "numpy")

COLUMNS = (
    "model", "run by", "objects", "frames or windows", "passes", "copied", "passes/s of a worker",
    "s reading", "s running", "s writing", "set aside",
)  # fmt: skip


def write_report(folder: Path, report: EncodeReport) -> Path:
    """Write both files, over older ones.

    Args:
        folder: Where; made if need be.
        report: What an encoding did.

    Returns:
        The folder.

    Raises:
        StorageError: It cannot be written.
    """
    values = run_values(report)
    make_folder(folder)
    with atomic_files.storage_errors(folder):
        (folder / "run.json").write_text(json.dumps(values, indent=2) + "\n")
        (folder / "summary.md").write_text(summary(values))
    return folder


def make_folder(folder: Path) -> None:
    """Make the folder of a report, and see that something can be written there.

    Raises:
        StorageError: It cannot.
    """
    with atomic_files.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def run_values(report: EncodeReport) -> dict[str, Any]:
    """Everything that is known of an encoding, as JSON values."""
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
        "models": [_model(report, one.spec.key) for one in report.models],
        "present": report.present,
        "stopped": report.stopped,
        "failed_attempts": [
            {
                "model": f.model,
                "game": f.game,
                "segment": f.segment,
                "attempt": f.attempts,
                "set_aside": f.last,
                "worker": f.worker,
                "kind": f.error.kind,
                "why": str(f.error),
            }
            for f in report.failures
        ],
        "unfit_workers": [
            {"worker": u.worker, "host": u.host, "kind": u.error.kind, "why": str(u.error)}
            for u in report.unfit
        ],
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _model(report: EncodeReport, key: str) -> dict[str, Any]:
    (one,) = (one for one in report.models if one.spec.key == key)
    done = [d for d in report.done if d.model == key]
    passes, running = sum(d.passes for d in done), sum(d.running for d in done)
    return {
        "model": key,
        "engine": str(one.choice or ""),
        "random": one.spec.identity.random,
        "objects": len(done),
        "inputs": sum(d.inputs for d in done),
        "passes": passes,
        "copied": sum(d.copied for d in done),
        "strip_passes": one.fitted,
        "set_aside": sum(f.model == key for f in report.failed),
        "failed_attempts": sum(f.model == key for f in report.failures),
        "passes_a_second_of_a_worker": passes / running if running else 0.0,
        "seconds": stages(done),
    }


def stages(done: Sequence[SegmentDone]) -> dict[str, float]:
    """Seconds of all workers together in each stage of the work."""
    return {
        "reading": sum(d.reading for d in done),
        "running": sum(d.running for d in done),
        "writing": sum(d.writing for d in done),
    }


def summary(values: dict[str, Any]) -> str:
    """`run.json` in words, as Markdown."""
    models = values["models"]
    made, saved = (sum(m[of] for m in models) for of in ("passes", "copied"))
    libraries = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    machine = values["machine"]
    lines = [
        "# Encoding",
        "",
        f"`{values['command']}`, {values['time']}, by {values['author']}.",
        "",
        f"{made:,} passes made and {saved:,} saved in {terminal.duration(values['seconds'])}; "
        + f"{values['present']:,} objects were there already.",
        "",
        f"{values['workers']} workers, {values['threads']} threads, device {values['device']}.",
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
            f"{', set aside' if f['set_aside'] else ''}: {f['why']} (`{f['kind']}`)"
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
