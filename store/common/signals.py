"""Handle Ctrl-C and SIGTERM for a while, then give them back their handlers."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from wsa.store.common.errors import Terminated

_STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM at the end, whatever the block sets.

    Only the main thread can set handlers. Outside it, this does nothing.
    """
    before = {number: signal.getsignal(number) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items() if _in_main_thread() else ():
            # None: the handler was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def handled_by(handle: Callable[[KeyboardInterrupt], None]) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM call `handle` during the block.

    Outside the main thread, this does nothing.

    Args:
        handle: Gets what the signal would raise: `KeyboardInterrupt` or `Terminated`.
    """

    def call(number: int, frame: object) -> None:
        handle(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())

    with restored():
        for number in _STOPPING if _in_main_thread() else ():
            # A shell's background job ignores Ctrl-C, which is for another command.
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, call)
        yield


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
