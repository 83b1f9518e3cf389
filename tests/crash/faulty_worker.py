"""Preloaded by worker processes (`distributed.worker.preload`): counts attempts, and injects faults.

`WSA_TEST_FAULTS` is a folder. Each worker creates `started-PID` there, and each attempt at a segment
appends a byte to `ran-SEGMENT`. `table.json` names segments whose first attempts kill the worker or
raise an error; a module named in `blocked` cannot be imported.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["WSA_TEST_FAULTS"])


class Blocked:
    def find_spec(self, name: str, *rest: Any) -> None:
        if name == (FOLDER / "blocked").read_text():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def dask_setup(worker: Any) -> None:
    if (FOLDER / "blocked").exists():
        sys.meta_path.insert(0, Blocked())
        return
    from wsa.encode.jobs import tasks

    (FOLDER / f"started-{os.getpid()}").touch()
    table = json.loads((FOLDER / "table.json").read_text())
    real = tasks._run

    def run(setting: Any, item: Any, *rest: Any) -> Any:
        file = FOLDER / f"ran-{item.meta.segment}"
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, b"x")
        os.close(handle)
        how, times = table.get(item.meta.segment, ("", 0))
        if file.stat().st_size <= times:
            if how == "exit":
                os._exit(1)
            if how == "segfault":
                ctypes.string_at(0)
            raise RuntimeError("a fault")
        return real(setting, item, *rest)

    tasks._run = run
