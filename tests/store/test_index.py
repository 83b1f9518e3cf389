from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsa.store.objects.digest_index import DigestIndex, first_seen

# Few bytes, so that digests repeat, and end in the zeros that some string types drop.
DIGEST = st.one_of(
    st.binary(min_size=16, max_size=16),
    st.lists(st.sampled_from([0, 1, 255]), min_size=16, max_size=16).map(bytes),
    # Crafted: other digests with the same first word.
    st.sampled_from([b"A" * 8 + bytes([last]) * 8 for last in range(4)]),
    st.sampled_from([bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), b"\xff" * 16]),
)
DIGESTS = st.lists(DIGEST, max_size=60)


def array(digests):
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


@given(DIGESTS, DIGESTS)
def test_an_index_is_a_dictionary_of_first_rows(stored, wanted):
    model: dict[bytes, int] = {}
    for row, digest in enumerate(stored):
        model.setdefault(digest, row)
    index = DigestIndex(array(stored))
    assert len(index) == len(stored)
    for asked in (wanted, stored, []):
        found = index.find(array(asked))
        assert found.dtype == np.int64 and found.shape == (len(asked),)
        assert found.tolist() == [model.get(digest, -1) for digest in asked]
    assert first_seen(array(stored)).tolist() == [model[d] for d in stored]


def test_of_many_equal_digests_the_first_is_found():
    few = np.random.default_rng(0).integers(0, 256, (3, 16), np.uint8)
    which = np.random.default_rng(1).integers(0, 3, 5000)
    first = [int(np.argmax(which == i)) for i in range(3)]
    assert DigestIndex(few[which]).find(few).tolist() == first


def test_digests_may_lie_anyhow_in_memory():
    wide = np.random.default_rng(0).integers(0, 256, (50, 32), np.uint8)
    index = DigestIndex(wide[::2, ::2])
    assert index.find(wide[::-2, ::2]).tolist() == [-1] * 25
    assert index.find(wide[::2, ::2]).tolist() == list(range(25))


def test_a_million_digests():
    digests = np.random.default_rng(0).integers(0, 256, (1_000_000, 16), np.uint8)
    rows = np.random.default_rng(1).integers(0, len(digests), 1000)
    index = DigestIndex(digests)
    assert (index.find(digests[rows]) == rows).all()
