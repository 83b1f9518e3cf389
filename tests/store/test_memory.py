"""Running out of memory is one of wsa's own errors."""

import numpy as np
import pytest

from wsa.store.common import memory
from wsa.store.common.errors import StorageError

CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 102400000000 bytes. Error code 12 (Cannot allocate memory)"
)


class OutOfMemoryError(RuntimeError):
    """Like torch's for a GPU."""


GPU = OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (MemoryError(), ""),
        (RuntimeError(CPU), " for 102.4 GB"),
        (GPU, " for 20.00 GiB"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), None),
        (RuntimeError("CUDA error: out of memory"), ""),
        (RuntimeError("Storage size calculation overflowed with sizes=[9007199254740992, 4]"), ""),
    ],
)  # fmt: skip
def test_errors_of_allocations_become_one_kind(error, size):
    @memory.reported("Use fewer.")
    def fail():
        raise error

    with pytest.raises(StorageError) as caught:
        fail()
    assert (caught.value.kind, caught.value.exit_code) == ("no-memory", 6)
    if size is not None:
        assert str(caught.value) == f"there is not enough memory{size}. Use fewer."


def test_numpy_says_how_much_it_wanted():
    match = r"not enough memory for [\d.]+ PiB\. Use fewer\."
    with pytest.raises(StorageError, match=match), memory.reported("Use fewer."):
        np.zeros((2**20, 2**20, 2**10), np.float64)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), memory.reported("Use fewer."):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
