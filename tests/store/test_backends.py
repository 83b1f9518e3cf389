"""Every backend passes the conformance suite; `MemoryBackend` is the model for the others."""

import pytest

from wsa.store.backends.local import LocalBackend
from wsa.store.testing import BackendSuite, FaultyBackend, MemoryBackend


class TestMemory(BackendSuite):
    @pytest.fixture
    def backend(self):
        return MemoryBackend()


class TestLocal(BackendSuite):
    calls = 150
    many = 200

    @pytest.fixture
    def backend(self, tmp_path):
        return LocalBackend(tmp_path)


class TestFaultyWithoutFaults(BackendSuite):
    calls = 100
    many = 200

    @pytest.fixture
    def backend(self):
        return FaultyBackend(MemoryBackend())
