"""Stop a training when asked to, at the end of a step, with its state saved."""

from __future__ import annotations

import signal
import threading
from typing import Any, Self

from wsa.store.common.errors import Terminated


class StopRequest:
    """While entered, Ctrl-C and SIGTERM ask to stop after the update at hand; a second one stops.

    Attributes:
        asked: What to raise once all is saved, if it was asked to stop.
    """

    def __init__(self) -> None:
        self.asked: KeyboardInterrupt | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: it was set by something other than Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise self.asked
        self.asked = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
