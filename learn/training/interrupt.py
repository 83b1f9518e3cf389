"""Stop training on a signal, at the end of a step, after its state is saved."""

from __future__ import annotations

import signal
import threading
from typing import Any, Self

from wsa.store.common.errors import Terminated

_active: set[StopRequest] = set()


def ask_to_stop() -> None:
    """Ask all training in this process to stop, as SIGTERM does, from any thread."""
    for request in tuple(_active):
        request.asked = request.asked or Terminated()


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request to stop after the step; a second one stops at once.

    Active while used as a context manager.

    Attributes:
        asked: Exception to raise after everything is saved; None until a signal arrives.
    """

    def __init__(self) -> None:
        self.asked: KeyboardInterrupt | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        _active.add(self)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        _active.discard(self)
        for number, handler in self._before.items():
            # None: the handler was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise self.asked
        self.asked = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
