"""What the studies of trained runs share."""

from __future__ import annotations

from pathlib import Path

import msgspec

from wsa.learn.configs.algorithms import PPOConfig
from wsa.learn.configs.network import pixel_network
from wsa.learn.envs import atari
from wsa.learn.runs.config import MEAN_CONTEXT
from wsa.learn.runs.network import parameters_of
from wsa.learn.runs.setup.online import make_online
from wsa.learn.study.trained_runs import trained_parameters
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot


def test_an_online_run_is_counted_without_its_store(tmp_path: Path) -> None:
    snapshot = take_snapshot(open_store(str(tmp_path / "store"), create=True))
    config = make_online(
        snapshot, "Pong", [], MEAN_CONTEXT, pixel_network(4), atari.protocol("Pong", "classic"), 1,
        PPOConfig(),
    )  # fmt: skip
    gone = msgspec.structs.replace(config, store=str(tmp_path / "gone"))
    assert trained_parameters(gone) == parameters_of(config, (), ()).total
