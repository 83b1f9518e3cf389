"""Test kit for authors of backends: conformance suite, fault injection, state machine."""

from __future__ import annotations

from wsa.store.testing.faults import (
    Call,
    Fault,
    FaultyBackend,
    Killed,
    MemoryBackend,
    Plan,
    random_plan,
)
from wsa.store.testing.samples import Work, check_store, read_object, same_content, unnamed
from wsa.store.testing.state_machine import StoreMachine
from wsa.store.testing.suite import BackendSuite

__all__ = [
    "BackendSuite",
    "Call",
    "Fault",
    "FaultyBackend",
    "Killed",
    "MemoryBackend",
    "Plan",
    "StoreMachine",
    "Work",
    "check_store",
    "random_plan",
    "read_object",
    "same_content",
    "unnamed",
]
