"""Hashes: equal values have equal names, and different values different ones."""

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


def reorder(value, order):
    """The same value with the keys of all its dictionaries in another order."""
    if isinstance(value, dict):
        return {key: reorder(value[key], order) for key in order(value)}
    return [reorder(item, order) for item in value] if isinstance(value, list) else value


@given(JSON)
def test_json_has_one_spelling_that_loses_nothing(value):
    shuffled = reorder(value, reversed)
    assert hashing.canonical(shuffled) == hashing.canonical(value)
    assert hashing.identity(shuffled) == hashing.identity(value)
    back = json.loads(hashing.canonical(value))
    # By `repr`, because True equals 1.
    assert repr(reorder(back, sorted)) == repr(reorder(value, sorted))


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_the_digest_of_a_frame_depends_on_its_pixels_alone(frame):
    digest = hashing.frame_digest(frame)
    assert digest == blake3(frame.tobytes()).digest(16)
    assert hashing.frame_digest(np.asfortranarray(frame)) == digest
    frame[-1, -1, -1] ^= 1
    assert hashing.frame_digest(frame) != digest


def test_the_digest_of_tensors_depends_on_names_types_shapes_and_values():
    base = {"a": np.arange(6, dtype=np.float32), "b": np.zeros((2, 3), np.int64)}
    digests = {hashing.tensors_digest(base)}
    assert hashing.tensors_digest(dict(reversed(base.items()))) in digests
    others = [
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "a": base["a"].astype(np.float64)},
        {**base, "a": base["a"].view(np.int32)},
        {**base, "a": base["a"] + 1},
        {"a": base["b"], "b": base["a"]},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
        {**base, "c": np.zeros(0, np.float32)},
    ]
    digests |= {hashing.tensors_digest(other) for other in others}
    assert len(digests) == 1 + len(others)
