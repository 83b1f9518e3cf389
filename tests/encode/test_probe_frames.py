"""The probe frames that wsa ships: the file, its frames, and the emulator that shows them."""

import collections
import io

import numpy as np
import pytest

from benchmarks.making import make_probe_frames
from wsa.encode.registration import probe_frames
from wsa.learn.envs import atari as games
from wsa.store.common import hashing

DIGEST = "26a8970622fb07500c3fd4c331b05da3afa2082894f8198413eff2319842edcf"


pytestmark = pytest.mark.usefixtures("all_probe_frames")


def test_the_file_never_changes():
    assert probe_frames.frames_digest() == DIGEST
    assert probe_frames.PATH.stat().st_size < 1 << 20


def test_there_are_eight_frames_of_every_game(shipped):
    assert [part.game for part in shipped] == list(games.games())
    assert all(part.frames.dtype == np.uint8 for part in shipped)
    shapes = collections.Counter(part.frames.shape for part in shipped)
    heights = {210: 91, 214: 1, 220: 1, 230: 1, 250: 10}
    assert shapes == {(8, height, 160, 3): count for height, count in heights.items()}


def test_all_frames_of_a_game_differ(shipped):
    for part in shipped:
        assert len({hashing.frame_digest(frame) for frame in part.frames}) == 8, part.game


@pytest.mark.variants
@pytest.mark.parametrize("game", ["Pong", "Tetris", "Adventure"])
def test_the_emulator_shows_the_same_frames(game, shipped):
    frames = next(part.frames for part in shipped if part.game == game)
    np.testing.assert_array_equal(frames, make_probe_frames.play(game))


@pytest.mark.slow
def test_packing_the_frames_gives_the_same_bytes(shipped):
    packed = make_probe_frames.pack({part.game: part.frames for part in shipped})
    # Compressed bytes depend on the version of zlib, so compare the arrays.
    other = np.load(io.BytesIO(packed), allow_pickle=False)
    with np.load(probe_frames.PATH, allow_pickle=False) as own:
        assert own.files == other.files
        for name in own.files:
            np.testing.assert_array_equal(own[name], other[name])


def test_probe_frames_are_pairs_that_differ():
    frames = probe_frames.probe_inputs()
    assert frames.shape == (16, 210, 160, 3) and frames.dtype == np.uint8
    assert len({hashing.frame_digest(frame) for frame in frames}) == 16
    pairs = frames.reshape(8, 2, -1)
    changed = (pairs[:, 0] != pairs[:, 1]).mean(axis=1)
    assert (changed > 0).all() and (changed < 0.5).all()
