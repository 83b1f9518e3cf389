"""`wsa encode --watch` as real processes, which the fixture `service` of `tests/conftest.py` starts."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Service:
    """`wsa encode --watch` in its own process; its log goes to a file."""

    def __init__(
        self, start: Callable[..., Any], log: Path, *arguments: str, scheduler: str = "inproc"
    ) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = start(
                [
                    *("-m", "wsa.cli", "encode", "--watch", "--device", "cpu"),
                    *("--output", "pooled", "--scheduler", scheduler, "--poll", "0.3"),
                    *arguments,
                ],
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(
        self, happened: Callable[[], object], seconds: float = 200, pause_s: float = 0.3
    ) -> None:
        """Wait until something has happened while the service runs.

        Args:
            happened: Whether it has happened. It may read the whole store, so it is not asked often.
            seconds: How long to wait at most.
            pause_s: Seconds between two questions.
        """
        end = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(pause_s)

    def until_said(self, words: str, seconds: float = 200) -> None:
        self.until(lambda: words in self.said, seconds, 0.05)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal, and return its exit code."""
        self.process.send_signal(how)
        code: int = self.process.wait(120)
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def services(folder: Path, begin: Callable[..., Any]) -> Iterator[Callable[..., Service]]:
    """`start(*arguments)` starts a service by `begin`; all are killed in the end."""
    started: list[Service] = []
    # Tests that run in the background of a script ignore Ctrl-C, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(*arguments: str, scheduler: str = "inproc") -> Service:
        log = folder / f"service{len(started)}.log"
        started.append(Service(begin, log, *arguments, scheduler=scheduler))
        return started[-1]

    yield start
    signal.signal(signal.SIGINT, before)
    for service in started:
        service.kill()
