"""The table of embeddings that an online run has seen: distinct, growing, and checked on resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learn_kit import Walk, WalkEncoder

from wsa.encode.live.frame_history import FrameHistory
from wsa.learn.networks.nature import Ready
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner
from wsa.store.common.errors import DamagedError


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr("wsa.learn.online.digest_table.GROWTH", 16)
    monkeypatch.setattr("wsa.learn.online.digest_table.RECENT", 3)


class CornerEncoder:
    """Embeds a frame as the number in its corner."""

    width, dtype, found, passes, places = 1, np.dtype(np.float32), 0, 0, (slice(0, 1),)

    def __init__(self):
        self.lookups = {1: self}

    def begin(self, digests, inputs):
        self.passes += len(digests)
        return Ready(inputs(list(range(len(digests))))[:, 0, 0, :1].astype(np.float32))


def test_a_table_embeds_each_distinct_frame_once(tmp_path):
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (30, 4, 5, 3)).astype(np.uint8)
    encoder: Any = CornerEncoder()
    table = Table(tmp_path, encoder)

    def see(table, frames):
        """Rows of frames, each the first of an episode."""
        count = len(frames)
        pushed = FrameHistory(1).push(frames, np.ones(count, np.bool_), np.arange(count))
        return table.see(pushed)

    for _ in range(60):
        chosen = generator.integers(0, 30, size=5)
        rows = see(table, frames[chosen])
        np.testing.assert_array_equal(table.gather(rows)[:, 0], frames[chosen, 0, 0, 0])
    assert encoder.passes == len(table) == 30 and table.asked == 300 and table.known == 270
    table.flush()
    resumed = Table(tmp_path, encoder)
    resumed.restore(table.state())
    assert (see(resumed, frames) == see(table, frames)).all() and encoder.passes == 30


def test_a_table_grows_with_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("wsa.learn.online.digest_table.FIRST", 16)
    monkeypatch.setattr("wsa.learn.online.digest_table.GROWTH", 64)
    encoder: Any = CornerEncoder()
    table = Table(tmp_path, encoder)
    sizes = {(tmp_path / "embeddings.bin").stat().st_size}
    for number in range(100):
        frame = np.full((1, 4, 5, 3), number, np.uint8)
        table.see(FrameHistory(1).push(frame, np.ones(1, np.bool_), np.arange(1)))
        sizes.add((tmp_path / "embeddings.bin").stat().st_size)
    assert sorted(sizes)[:4] == [16, 40, 88, 156]
    assert max(sizes) <= 400 + 64, "100 rows of 4 bytes, and room for 16"


def test_a_damaged_file_of_a_table_is_found(tmp_path):
    windows = (4, 1, 2)
    table = Table(tmp_path / "whole", WalkEncoder(windows))
    runner = EnvRunner([Walk(2)], table, 2, seed=1)
    runner.begin()
    for _ in range(20):
        runner.step(np.array([0, 1]))
    table.flush()
    state, rows = table.state(), np.arange(len(table))[:, None]
    resumed = Table(tmp_path / "whole", WalkEncoder(windows))
    resumed.restore(state)
    assert torch.equal(resumed.gather(rows), table.gather(rows)) and len(resumed) > 5

    def flip_a_bit(path):
        data = bytearray(path.read_bytes())
        data[2] ^= 1
        path.write_bytes(data)

    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.bin")]
    assert len(files) == 3 * 2 + 1  # Digests and embeddings of each window, and the rows.
    for file in files:
        for damage in (Path.unlink, flip_a_bit):
            shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
            damage(tmp_path / "damaged" / file)
            with pytest.raises(DamagedError, match="does not match the run"):
                Table(tmp_path / "damaged", WalkEncoder(windows)).restore(state)
            shutil.rmtree(tmp_path / "damaged")
