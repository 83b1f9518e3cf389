"""Stop training on a signal, at the end of a step, after its state is saved."""

from __future__ import annotations

import contextlib
from typing import Self

from wsa.store.common import signals
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
        self._handling = contextlib.ExitStack()

    def __enter__(self) -> Self:
        _active.add(self)
        self._handling.callback(_active.discard, self)
        self._handling.enter_context(signals.handled_by(self._ask))
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.close()

    def _ask(self, error: KeyboardInterrupt) -> None:
        if self.asked:
            raise self.asked
        self.asked = error
