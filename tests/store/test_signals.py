import os
import signal
import threading

import pytest

from wsa.store.common import signals
from wsa.store.common.errors import Terminated

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_each_signal_calls_the_handler_with_what_it_would_raise():
    before, got = [signal.getsignal(number) for number in BOTH], []
    with signals.handled_by(got.append):
        for number in BOTH:
            os.kill(os.getpid(), number)
    assert [type(error) for error in got] == [KeyboardInterrupt, Terminated]
    assert [signal.getsignal(number) for number in BOTH] == before


def test_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    got = []
    with signals.handled_by(got.append):
        os.kill(os.getpid(), signal.SIGINT)
    assert not got and signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_handlers_are_restored_after_an_error_and_after_the_block_sets_its_own():
    before = [signal.getsignal(number) for number in BOTH]
    with pytest.raises(ValueError), signals.handled_by(print):
        raise ValueError
    with signals.restored():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    assert [signal.getsignal(number) for number in BOTH] == before


def test_another_thread_leaves_handlers_alone():
    seen = []

    def block():
        with signals.handled_by(print), signals.restored():
            seen.extend(signal.getsignal(number) for number in BOTH)

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(number) for number in BOTH]
