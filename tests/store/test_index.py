"""The index of digests finds the first row of each digest."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsa.store.objects.digest_index import DigestIndex, first_seen

# Few bytes, so that digests repeat, and end in the zeros that some string types drop.
DIGEST = st.one_of(
    st.binary(min_size=16, max_size=16),
    st.lists(st.sampled_from([0, 1, 255]), min_size=16, max_size=16).map(bytes),
    # Crafted: different digests with the same first word.
    st.sampled_from([b"A" * 8 + bytes([last]) * 8 for last in range(4)]),
    st.sampled_from([bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), b"\xff" * 16]),
)
DIGESTS = st.lists(DIGEST, max_size=60)


def to_array(digests):
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


@given(DIGESTS, DIGESTS)
def test_an_index_equals_a_dictionary_of_first_rows(stored, queries):
    model = {}
    for row, digest in enumerate(stored):
        model.setdefault(digest, row)
    index = DigestIndex(to_array(stored))
    assert len(index) == len(stored)
    for asked in (queries, stored, []):
        rows = index.find(to_array(asked))
        assert rows.dtype == np.int64 and rows.shape == (len(asked),)
        assert rows.tolist() == [model.get(digest, -1) for digest in asked]
    assert first_seen(to_array(stored)).tolist() == [model[digest] for digest in stored]


def test_many_digests_in_any_memory_layout():
    wide = np.random.default_rng(0).integers(0, 256, (50_000, 32), np.uint8)
    digests = wide[::2, ::2]
    index = DigestIndex(digests)
    assert (index.find(digests) == np.arange(25_000)).all()
    assert (index.find(wide[::-2, ::2]) == -1).all()
    few = np.random.default_rng(0).integers(0, 256, (3, 16), np.uint8)
    which = np.random.default_rng(1).integers(0, 3, 5000)
    first = [int(np.argmax(which == number)) for number in range(3)]
    assert DigestIndex(few[which]).find(few).tolist() == first
