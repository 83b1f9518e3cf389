"""Each backend keeps the promises of the protocol; `MemoryBackend` is the model of the others."""

from __future__ import annotations

import pytest

from wsa.store.backends.local import LocalBackend
from wsa.store.testing import BackendSuite, FaultyBackend, MemoryBackend


class TestMemory(BackendSuite):
    @pytest.fixture
    def backend(self):
        return MemoryBackend()


class TestLocal(BackendSuite):
    @pytest.fixture
    def backend(self, tmp_path):
        return LocalBackend(tmp_path / "store")


class TestFaultyWithoutFaults(BackendSuite):
    @pytest.fixture
    def backend(self):
        return FaultyBackend(MemoryBackend())
