"""`wsa study scale`: what is left of trained runs with fewer of their models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from wsa.encode.inference.encoder import choose_device
from wsa.learn.configs.study import ScaleOptions
from wsa.learn.study import cached, cached_report
from wsa.store.common import terminal
from wsa.store.common.errors import UsageError
from wsa.store.common.ranges import check_ranges


def scale(o: ScaleOptions) -> int:
    """`wsa study scale`."""
    check_ranges(o)
    if not o.runs:
        raise UsageError(
            "bad-option", "wsa study scale: name the folder of one run or more that was trained."
        )
    runs = [Path(run) for run in dict.fromkeys(o.runs)]
    for run in runs:  # All of them, before the first is looked at.
        cached.check(run)
    device, found = choose_device(o.device), []
    for run in runs:
        with terminal.Progress(run.name, "sets of models", shown=not o.json) as progress:
            found.append(cached.measure(run, o.states, device, progress.update))
    text = cached_report.write(Path(o.study_dir), found)
    if o.json:
        return terminal.result(True, {"runs": [dataclasses.asdict(one) for one in found]})
    print(text)
    terminal.say(f"{Path(o.study_dir) / 'index.html'}")
    return 0
