from __future__ import annotations

import json

import hypothesis.extra.numpy as hnp
import numpy as np
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from wsa.store.common import hashing

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def ordered(value):
    """The same value, its dictionaries in order."""
    if isinstance(value, dict):
        return {k: ordered(value[k]) for k in sorted(value)}
    return [ordered(v) for v in value] if isinstance(value, list) else value


def shuffled(value):
    """The same value, its dictionaries filled in the opposite order."""
    if isinstance(value, dict):
        return {k: shuffled(v) for k, v in reversed(value.items())}
    return [shuffled(v) for v in value] if isinstance(value, list) else value


@given(JSON)
def test_equal_values_have_one_spelling(value):
    assert hashing.canonical(shuffled(value)) == hashing.canonical(value)
    assert hashing.identity(shuffled(value)) == hashing.identity(value)


@given(JSON)
def test_different_values_have_different_spellings(value):
    back = json.loads(hashing.canonical(value))
    assert repr(ordered(back)) == repr(ordered(value))  # True and 1 are equal, and spelled apart.


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_a_frame_is_named_by_its_bytes(frame):
    digest = hashing.frame_digest(frame)
    assert digest == blake3(frame.tobytes()).digest(16)
    assert hashing.frame_digest(np.asfortranarray(frame)) == digest
    frame[-1, -1, -1] ^= 1
    assert hashing.frame_digest(frame) != digest


def test_tensors_are_named_by_name_type_shape_and_values():
    base = {"a": np.arange(6, dtype=np.float32), "b": np.zeros((2, 3), np.int64)}
    found = {hashing.tensors_digest(base)}
    assert hashing.tensors_digest(dict(reversed(base.items()))) in found
    for other in (
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "a": base["a"].astype(np.float64)},
        {**base, "a": base["a"].view(np.int32)},
        {**base, "a": base["a"] + 1},
        {"a": base["b"], "b": base["a"]},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
        {**base, "c": np.zeros(0, np.float32)},
    ):
        digest = hashing.tensors_digest(other)
        assert digest not in found
        found.add(digest)
