"""A Dask preload that writes the peak memory of a worker to a file when the worker closes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def dask_teardown(worker: Any) -> None:
    from wsa.encode.jobs.dry_run import peak_bytes

    (Path(os.environ["WSA_TEST_PEAKS"]) / f"peak-{os.getpid()}").write_text(str(peak_bytes()))
