"""Palettes of collected frames: stored frames are lossless and do not depend on earlier ones."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsa.learn.collect.palette import IndexedScreens, RGBScreens
from wsa.store.common import hashing


@given(
    counts=st.lists(st.sampled_from([1, 2, 7, 200, 256, 257, 300, 400]), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_stored_frames_are_lossless_and_do_not_depend_on_earlier_ones(counts, seed):
    """Screens have the given numbers of random colors, some of them shared."""
    generator = np.random.default_rng(seed)
    pool = generator.integers(0, 256, (max(counts), 3), dtype=np.uint8)
    screens = np.stack([pool[generator.integers(0, n, (20, 21))] for n in counts])[:, None]
    new, used = IndexedScreens(), IndexedScreens()
    used.screens(generator.integers(0, 256, (3, 1, 20, 21, 3), dtype=np.uint8), [True] * 3)
    stored = []
    for kept in (new, used, RGBScreens()):
        seen = []
        for screen in screens:  # The first are kept while fewer colors are known.
            seen += kept.screens(screen[None], [True])
        assert [s.digest for s in seen] == [hashing.frame_digest(s[0]) for s in screens]
        stored.append(kept.frames(seen))
    assert stored[0].keys() == stored[1].keys() == stored[2].keys()
    for name, array in stored[0].items():
        assert array.dtype == stored[2][name].dtype == np.uint8
        np.testing.assert_array_equal(array, stored[1][name])
        np.testing.assert_array_equal(array, stored[2][name])
    frames = stored[0]["frames"]
    distinct = len(np.unique(screens.reshape(-1, 3), axis=0))
    assert ("palette" in stored[0]) == (distinct <= 256)
    if "palette" in stored[0]:
        frames = stored[0]["palette"][frames]
    np.testing.assert_array_equal(frames, screens[:, 0])
