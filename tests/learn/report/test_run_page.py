"""`report.html` of a run: its content, and that parts of the run may be missing."""

import base64
import json
import re

import msgspec
import pytest

from wsa.learn.configs.algorithms import CQLConfig, PPOConfig
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari
from wsa.learn.runs import report
from wsa.learn.runs.config import OfflineRun, OnlineRun, read_config
from wsa.store.common.errors import MissingError
from wsa.store.objects.root import open_store

MODELS = ("lite0-0123456789ab", "vos-0123456789ab")


@pytest.fixture
def run(tmp_path):
    """A run's folder as `wsa learn` writes it, without checkpoints."""
    store = open_store(str(tmp_path / "store"), create=True)
    config = OfflineRun(
        store=store.url, game="Pong", protocol=atari.protocol("Pong", "classic"), models=MODELS,
        context="mean", network=NetworkConfig(), seed=3, segments=("s",),
        hyperparameters=CQLConfig(updates=400),
    )  # fmt: skip
    folder = tmp_path / "<run>"
    folder.mkdir()
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    (folder / "command.txt").write_text("wsa learn --game Pong & more\n")
    lines = [
        {
            "step": step, "time": 1.0, "losses/td_loss": 1 / step, "validation/loss": None,
            "wsa/weight/" + MODELS[0]: 0.25, "wsa/weight/" + MODELS[1]: 0.75,
            "cache/backbone_passes": 0, "cache/backbone_passes_saved": 64 * step,
        }
        for step in range(1, 401)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def read_text(page):
    return " ".join(re.sub(r"(?s)<svg.*?</svg>|<[^>]+>", " ", page).split())


@pytest.mark.parametrize("length", ["trained", "updates"])  # An older wsa wrote `updates`.
def test_the_page_has_the_settings_and_the_results(run, length):
    returns = {"run": (20, 21), "random": (-21, -20)}
    rows = [
        f"400,{policy},abc,0.001,0,{i},{r},9,False"
        for policy in returns
        for i, r in enumerate(returns[policy])
    ]
    header = f"{length},policy,checkpoint,epsilon,env,seed,return,steps,truncated"
    (run / "eval.csv").write_text("\n".join([header, *rows, ""]))
    page = report.write(run).read_text()
    text = read_text(page)
    for words in (
        "Pong: &lt;run&gt;", "wsa learn --game Pong &amp; more", "400 updates", "cql_alpha 1.0",
        "fusion size 256", "passes saved 25,600", "400 run abc 0.001 2 20.5", MODELS[0],
        "updates policy checkpoint",
    ):  # fmt: skip
        assert words in text, words
    assert "The number of parameters is unknown: " in text
    assert "Only keys are known" in text  # These models are in no store.
    titles = re.findall(r'aria-label="([^"]+)"', page)
    assert titles == ["Fusion weights", "losses: td loss", "Mean return"]


def test_a_small_video_is_part_of_the_page(run, monkeypatch):
    (run / "metrics.jsonl").unlink()  # No curves to draw.
    (run / "videos").mkdir()
    (run / "videos" / "episode_0.mp4").write_bytes(b"film")
    page = report.write(run).read_text()
    assert f'src="data:video/mp4;base64,{base64.b64encode(b"film").decode()}"' in page
    monkeypatch.setattr(report, "MAX_VIDEO_BYTES", 3)
    page = report.write(run).read_text()
    assert "<video" not in page and "videos/episode_0.mp4, is too large" in page


def test_a_run_that_has_just_begun_has_a_page(run):
    metrics = run / "metrics.jsonl"
    metrics.write_text(
        metrics.read_text().splitlines()[0] + '\n{"step": 2, "los'
    )  # Still being written.
    (run / "command.txt").unlink()
    assert "not recorded" in read_text(report.write(run).read_text())
    metrics.unlink()
    report.write(run)
    with pytest.raises(MissingError):
        report.write(run.parent)


def online_config(network):
    return OnlineRun(
        store="gone", game="Pong", protocol=atari.protocol("Pong", "classic"), models=(),
        context="mean", network=network, seed=1, segments=(), shapes=(), parameters=0,
        hyperparameters=PPOConfig(total_timesteps=4096),
    )  # fmt: skip


def test_an_online_run_from_pixels(run):
    (run / "config.json").write_bytes(msgspec.json.encode(online_config(NetworkConfig())))
    line = {"step": 2048, "charts/episodic_return": -20.0, "cache/hit_rate": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = report.write(run).read_text()
    assert 'aria-label="Return"' in page and "4,096 steps" in read_text(page)
    assert "Frozen models" not in page


@pytest.mark.parametrize(("normalize", "clip"), [("standard", 0.0), ("layer", 5.0), ("none", 5.0)])
def test_a_run_from_before_clipping_keeps_its_network(run, normalize, clip):
    values = msgspec.to_builtins(online_config(NetworkConfig(normalize=normalize)))
    del values["network"]["clip_embeddings"]
    (run / "config.json").write_text(json.dumps(values))
    assert read_config(run).network == NetworkConfig(normalize=normalize, clip_embeddings=clip)


def test_a_run_may_have_recorded_an_option_under_its_old_name(run):
    network = NetworkConfig(FusionConfig(normalizer="sigmoid"))
    values = msgspec.to_builtins(online_config(network))
    values["network"]["fusion"]["normaliser"] = values["network"]["fusion"].pop("normalizer")
    (run / "config.json").write_text(json.dumps(values))
    assert read_config(run).network == network
