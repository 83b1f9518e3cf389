from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import filelock
import jaxtyping
import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from wsa.encode.inference import encoder as forward
from wsa.encode.inference.encoder import stored
from wsa.encode.live.live_encoder import LiveEncoder
from wsa.encode.models.registry import parse_request
from wsa.encode.registration import register as register_module
from wsa.encode.registration.register import open_model, register
from wsa.encode.registration.select import choose_models
from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.configs.algorithms import CQLConfig, EvaluationConfig
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari as games
from wsa.learn.envs.policies import RandomPolicy
from wsa.learn.evaluation import attention_log, periodic, video
from wsa.learn.evaluation.rollout import Episode, Moment, play
from wsa.learn.runs import data, evaluate, player
from wsa.learn.runs.config import OfflineRun, read_config
from wsa.learn.runs.data import open_data
from wsa.learn.runs.evaluate import evaluate_run
from wsa.learn.runs.folder import begin
from wsa.learn.runs.moved_store import find_store
from wsa.learn.runs.presence import mask_of
from wsa.learn.runs.setup.offline import make_offline
from wsa.learn.runs.train import train_stored
from wsa.learn.training import checkpoint
from wsa.learn.training import metrics as curves
from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import (
    ConflictError,
    DamagedError,
    MissingError,
    Terminated,
    UsageError,
)
from wsa.store.format.records import EmbeddingMeta
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.objects.writer import commit_embedding

MODELS = ("timm:test_resnet.r160_in1k:random", "timm:test_vit.r160_in1k:random")
ALIASES = ("test_resnet_r160_in1k", "test_vit_r160_in1k")
MAX_STEPS = 24
SMALL = CQLConfig(
    updates=50, batch_size=8, validation_fraction=0.0, log_frequency=10, save_frequency=20
)
NETWORK = NetworkConfig(FusionConfig(size=16))


def gather(backend: Backend, steps: int, seed: int = 1, **protocol: Any) -> None:
    """Collect Breakout."""
    details: dict[str, Any] = {"name": "classic", "max_steps": MAX_STEPS, **protocol}
    plan = plan_collection(
        take_snapshot(backend), "Breakout", games.protocol("Breakout", **details),
        steps=steps, num_envs=2, policy="random", seed=seed, segment_steps=64,
    )  # fmt: skip
    collect(plan, backend)


def embed(backend: Backend, models: tuple[str, ...] = MODELS, output: str = "pooled") -> list[str]:
    """Encode what has not been, in this process; returns the keys."""
    made = []
    for name in models:
        request = parse_request(name, {}, output)
        key = register(take_snapshot(backend), request, 0.1).spec.key
        snapshot = take_snapshot(backend)
        encoder = open_model(snapshot, key)
        done = {e.segment for e in snapshot.embeddings(model=key)}
        for meta in snapshot.segments():
            if meta.segment not in done:
                array = stored(encoder(snapshot.read_frames(meta)))
                about = EmbeddingMeta(
                    meta.game, meta.segment, key, array.shape, str(array.dtype), meta.frames, 0, 1.0
                )
                commit_embedding(backend, about, array)
        made.append(key)
    return made


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSA_CACHE", str(tmp_path_factory.getbasetemp() / "flat-cache"))


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """A store with a little Breakout, encoded by two small random models."""
    made = open_store(str(tmp_path_factory.mktemp("run") / "store"), create=True)
    gather(made, 240)
    embed(made)
    return made


@pytest.fixture(scope="module")
def snapshot(backend: Backend) -> Snapshot:
    return take_snapshot(backend)


@pytest.fixture(scope="module")
def trained(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSA_CACHE", str(tmp_path_factory.getbasetemp() / "flat-cache"))
        config = configure(snapshot)
        folder = tmp_path_factory.mktemp("runs") / "one"
        begin(folder, config)
        train_stored(folder, config, "cpu")
    return folder


def configure(snapshot: Snapshot, **changes: Any) -> OfflineRun:
    details: dict[str, Any] = {
        "game": "Breakout", "models": ALIASES, "context": ALIASES[0], "seed": 1,
        "hyperparameters": SMALL, "network": NETWORK, **changes,
    }  # fmt: skip
    return make_offline(snapshot, **details)


def test_a_run_from_end_to_end(snapshot: Snapshot, trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert config["segments"] == [m.segment for m in snapshot.segments()] and config["segments"]
    assert [names.key_alias(key) for key in config["models"]] == list(ALIASES)
    assert config["context"] == config["models"][0]
    assert config["protocol"]["max_steps"] == MAX_STEPS
    assert config["hyperparameters"]["updates"] == 50
    assert read_config(trained) == configure(snapshot)
    assert (trained / "command.txt").read_text().strip()
    metrics = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [10, 20, 30, 40, 50]
    assert all(line["cache/backbone_passes"] == 0 for line in metrics)
    files = sorted(p.name for p in (trained / "checkpoints").iterdir())
    assert files == [f"{n:09d}.safetensors" for n in (40, 50)]


@pytest.mark.slow
def test_games_side_by_side_are_played_as_each_by_itself(trained: Path) -> None:
    def played(count: int, policy: Any) -> list[Episode]:
        return play(config.game, config.protocol, policy, 4, 77, num_envs=count)

    one = player.open_player(trained, threads=2)
    config = one.config
    together = played(4, one.policy(4, 0.2, 77))
    policy = one.policy(4, 0.2, 77)
    for i, episode in enumerate(together):

        def alone(frames: Any, first: Any, envs: Any, i: int = i) -> NDArray[np.int64]:
            return policy(frames, first, envs + i)

        (found,) = play(config.game, config.protocol, alone, 1, 77 + i, num_envs=1)
        assert (found.returned, found.steps) == (episode.returned, episode.steps)


def test_an_evaluation_counts_every_frame(
    trained: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bytes] = []

    class Watched(LiveEncoder):
        def embed_later(self, frames: NDArray[np.uint8], *episodes: Any, **details: Any) -> Any:
            shown.extend(hashing.frame_digest(frame) for frame in frames)
            return super().embed_later(frames, *episodes, **details)

    monkeypatch.setattr(data, "LiveEncoder", Watched)
    (trained / "eval.csv").unlink(missing_ok=True)
    seen = evaluate_run(trained, 2, epsilon=0.2, seed=77, num_envs=2)
    assert seen.updates == 50 and seen.seconds > 0
    assert [e.steps for e in seen.episodes] == [MAX_STEPS] * 2 == [e.steps for e in seen.random]
    known = {d.tobytes() for m in snapshot.segments() for d in snapshot.read_digests(m)}
    live = seen.live
    assert live.frames == len(shown) == 2 * MAX_STEPS
    assert live.found == sum(digest in known for digest in shown)
    new = set(shown) - known
    assert live.passes == len(MODELS) * len(new) > 0
    assert live.remembered == live.frames - live.found - len(new)
    assert live.hit_rate == pytest.approx(1 - len(new) / len(shown))
    summary = seen.summary()
    assert summary["frames"] == live.frames and summary["backbone_passes"] == live.passes
    assert summary["hit_rate"] == pytest.approx(live.hit_rate, abs=1e-4)
    returns = [e.returned for e in seen.episodes]
    assert (summary["return_mean"], summary["return_std"]) == (np.mean(returns), np.std(returns))
    assert summary["return_low"] <= summary["return_mean"] <= summary["return_high"]
    assert summary["human_normalised"] == pytest.approx((np.mean(returns) - 1.7) / (30.5 - 1.7))
    chance = np.mean([e.returned for e in seen.random])
    assert summary["random_human_normalised"] == pytest.approx((chance - 1.7) / (30.5 - 1.7))
    with np.load(trained / attention_log.FILE) as kept:
        assert tuple(kept["models"]) == player.read_config(trained).models
        assert kept["weights"].shape == (2 * MAX_STEPS, len(MODELS))
        np.testing.assert_allclose(kept["weights"].sum(axis=1), 1, rtol=1e-5)
        assert kept["reward"].sum() == sum(returns)
    again = evaluate_run(trained, 2, epsilon=0.2, seed=77, num_envs=2)
    assert (again.episodes, again.random) == (seen.episodes, seen.random)
    rows = list(csv.DictReader((trained / "eval.csv").read_text().splitlines()))
    assert [r["policy"] for r in rows] == ["run", "run", "random", "random"]  # The same games.
    assert [float(r["return"]) for r in rows[:2]] == returns
    assert {(r["updates"], r["epsilon"], r["steps"]) for r in rows} == {
        ("50", "0.2", str(MAX_STEPS))
    }
    newest = (trained / "checkpoints" / "000000050.safetensors").read_bytes()
    assert {r["checkpoint"] for r in rows} == {hashing.checksum(newest)[:12]}


def test_a_model_that_is_left_out_is_not_run(
    trained: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_models = player.open_models

    def opening(snapshot: Any, keys: Any, **how: Any) -> Any:
        opened.extend(keys)
        return open_models(snapshot, keys, **how)

    monkeypatch.setattr(player, "open_models", opening)
    (trained / "eval.csv").unlink(missing_ok=True)
    whole = evaluate_run(trained, 1, seed=77, num_envs=1)
    opened.clear()
    seen = evaluate_run(trained, 1, seed=77, num_envs=1, without=[ALIASES[1]])
    assert opened == [read_config(trained).models[0]]
    assert seen.live.engines == ["torch"]
    asked = seen.live.frames - seen.live.found - seen.live.remembered
    assert seen.live.passes == asked > 0  # One model's alone: the whole takes two a frame.
    missed = whole.live.frames - whole.live.found - whole.live.remembered
    assert whole.live.passes == 2 * missed
    assert seen.summary()["present"] == (ALIASES[0],)
    rows = list(csv.DictReader((trained / "eval.csv").read_text().splitlines()))
    assert [r["present"] for r in rows] == ["+".join(ALIASES), "", ALIASES[0]]
    with np.load(trained / attention_log.FILE) as log:
        np.testing.assert_array_equal(log["weights"], np.repeat([[1.0, 0.0]], MAX_STEPS, axis=0))
    # As if it had never been: what only is kept, named as it was encoded, plays the same games.
    same = evaluate_run(trained, 1, seed=77, num_envs=1, only=[MODELS[0]])
    assert same.episodes == seen.episodes


@pytest.mark.parametrize(
    "fusion, left, why",
    [
        ("wsa", {"without": ["oops"]}, "--without oops: the run's models are test_resnet"),
        ("wsa", {"only": ["oops:random"]}, "there is no model|no such|the run's models are"),
        ("wsa", {"without": [ALIASES[0]]}, "which provides the context"),
        ("wsa", {"without": ALIASES}, "leaves no model"),
        ("wsa", {"without": ALIASES, "only": ALIASES}, "not both"),
        (
            "lin",
            {"without": [ALIASES[1]]},
            "--fusion lin, the length of the state vector depends on",
        ),
        (
            "res",
            {"only": [ALIASES[1]]},
            "Models can be left out with wsa, dpa, mean, uniform, unshared",
        ),
    ],
)
def test_models_that_cannot_be_left_out(
    snapshot: Snapshot, fusion: str, left: dict[str, Any], why: str
) -> None:
    context = ALIASES[0] if fusion == "wsa" else "mean"
    network = NetworkConfig(FusionConfig(fusion, size=16))
    config = configure(snapshot, network=network, context=context)
    with pytest.raises(UsageError, match=why):
        mask_of(config, snapshot, **left)


def test_a_single_model_cannot_be_left_out(snapshot: Snapshot) -> None:
    config = configure(
        snapshot, models=ALIASES[:1], network=NetworkConfig(FusionConfig("single")), context="mean"
    )
    with pytest.raises(UsageError, match="is the run's only model"):
        mask_of(config, snapshot, without=ALIASES[:1])


def test_leaving_out_nothing_is_the_whole(snapshot: Snapshot) -> None:
    config = configure(snapshot)
    assert mask_of(config, snapshot) is None
    assert mask_of(config, snapshot, only=ALIASES) is None
    assert mask_of(config, snapshot, only=[ALIASES[0]]) == (True, False)


def test_a_variant_that_changes_nothing_is_plain_evaluation(trained: Path) -> None:
    def played(variant: str) -> tuple[Any, ...]:
        seen = evaluate_run(trained, 1, epsilon=0.2, seed=77, num_envs=1, variant=variant)
        with np.load(trained / attention_log.FILE) as kept:
            weights = {name: kept[name].tobytes() for name in kept.files}
        live = seen.live
        counts = live.frames, live.found, live.remembered, live.passes
        return seen.episodes, seen.random, counts, weights

    assert played("mode=0+difficulty=0+sticky=0") == played("")


def test_a_variant_is_what_both_policies_play(
    trained: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[bool, NDArray[np.uint8]]] = []

    def spied(*args: Any, **details: Any) -> list[Episode]:
        class Eyes:
            def see(self, moment: Moment) -> None:
                shown.append((isinstance(args[2], RandomPolicy), moment.frames))

        watchers = [*details.pop("watchers", ()), Eyes()]
        return play(*args, **details, watchers=watchers)

    monkeypatch.setattr(evaluate, "play", spied)
    (trained / "eval.csv").unlink(missing_ok=True)
    before = sorted(Path(snapshot.backend.url).rglob("*"))
    spec = "look:dim=0.5+occlude=16"
    seen = evaluate_run(trained, 1, seed=1, num_envs=1, variant=spec)
    # The first frame of the same seed is in the store, but not as it looks here.
    assert seen.live.found == 0 and seen.live.passes > 0
    for random in (False, True):
        frames = np.concatenate([frame for who, frame in shown if who == random])
        assert len(frames) == MAX_STEPS and frames.max() < 128
    assert seen.summary()["variant"] == spec
    rows = list(csv.DictReader((trained / "eval.csv").read_text().splitlines()))
    assert [(row["policy"], row["variant"]) for row in rows] == [("run", spec), ("random", spec)]
    assert sorted(Path(snapshot.backend.url).rglob("*")) == before


def test_an_unknown_variant_is_refused_before_anything_is_opened(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "open_player", pytest.fail)
    for spec in ("look:invrt", "mode=1", "ram:pong-lazy"):
        with pytest.raises(UsageError):
            evaluate_run(trained, 1, variant=spec)


@pytest.mark.slow
def test_a_film_has_the_weights_of_each_step_beside_the_game(trained: Path) -> None:
    seen = evaluate_run(trained, 1, epsilon=0.2, seed=78, num_envs=1, video=True)
    with np.load(trained / attention_log.FILE) as kept:
        weights = kept["weights"]
    (film,) = (trained / "videos").iterdir()
    reader = cv2.VideoCapture(str(film))
    pictures = []
    while (got := reader.read())[0]:
        pictures.append(got[1][..., ::-1].astype(int))
    reader.release()
    assert len(pictures) == seen.episodes[0].steps == len(weights) == MAX_STEPS
    names_of = video.labels(player.read_config(trained).models)
    text = video.MARGIN + 2 * video.LINE  # Above the bars: return and action.
    for i, picture in enumerate(pictures):
        assert picture.shape == (2 * 210, 2 * 160 + video.PANEL, 3)
        drawn = video.panel(names_of, weights[: i + 1], [], len(picture)).astype(int)
        shown = picture[text:, 2 * 160 :][: 2 * video.TALLEST_ROW]
        bars = drawn[video.MARGIN :][: 2 * video.TALLEST_ROW]
        assert np.abs(shown - bars).mean() < 8  # Lossy, but these bars.
    assert video.panel(names_of, weights[:1], [], 420).std() > 20


def test_what_was_collected_is_found(snapshot: Snapshot, trained: Path) -> None:
    # The seed of the collection: the first frame of its first game is in the store.
    seen = evaluate_run(trained, 1, epsilon=0.0, seed=1, num_envs=1)
    assert seen.live.found >= 1


def test_later_segments_change_nothing(snapshot: Snapshot, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(snapshot.backend.url, tmp_path / "store")
    backend = open_store(str(tmp_path / "store"))
    config = configure(take_snapshot(backend))
    folder = tmp_path / "run"
    begin(folder, config)

    def stop(step: int, _: Any) -> None:
        if step == 30:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train_stored(folder, config, "cpu", stop)
    gather(backend, 360)
    embed(backend)
    assert configure(take_snapshot(backend)).segments != config.segments
    begun = read_config(folder)
    assert isinstance(begun, OfflineRun)
    assert train_stored(folder, begun, "cpu").updates == 30
    last = "checkpoints/000000050.safetensors"
    one, other = load_file(folder / last), load_file(trained / last)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    # A run begun anew in the longer store is another.
    longer = configure(take_snapshot(backend))
    with pytest.raises(ConflictError, match="wsa learn --resume") as caught:
        begin(folder, longer)
    assert caught.value.kind == "run-exists"


def test_a_run_with_more_updates_is_the_longer_run(
    snapshot: Snapshot, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = configure(snapshot)
    short = msgspec.structs.replace(
        long, hyperparameters=msgspec.structs.replace(long.hyperparameters, updates=30)
    )
    folder = tmp_path / "r"
    begin(folder, short)
    assert train_stored(folder, short, "cpu").updates == 30
    with caplog.at_level("INFO"):
        begin(folder, long)
    said = "extended from 30 to 50 updates, as if it had started with as many."
    assert said in caplog.text
    assert read_config(folder) == long
    assert train_stored(folder, long, "cpu").updates == 20
    last = "checkpoints/000000050.safetensors"
    one, other = load_file(folder / last), load_file(trained / last)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    with pytest.raises(ConflictError, match="holds another run"):  # What is trained stays so.
        begin(folder, short)


def test_a_run_finds_its_store_where_it_was_moved(
    backend: Backend, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, moved = tmp_path / "r", tmp_path / "elsewhere"
    shutil.copytree(trained, folder)
    shutil.copytree(Path(backend.url), moved)
    config = msgspec.structs.replace(read_config(folder), store=str(tmp_path / "gone"))
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    monkeypatch.delenv("WSA_STORE", raising=False)
    with pytest.raises(MissingError, match="If the run's store has moved, say where it is"):
        find_store(config)
    assert find_store(config, str(moved)).store == find_store(config, "", str(moved)).store
    monkeypatch.setenv("WSA_STORE", str(moved))
    played = evaluate_run(folder, 1, num_envs=1)
    assert played.episodes == evaluate_run(trained, 1, num_envs=1).episodes
    # Training goes on there, and the run remembers.
    here = find_store(read_config(folder))
    assert isinstance(here, OfflineRun)
    begin(folder, here)
    assert train_stored(folder, here, "cpu").updates == 0
    assert read_config(folder).store == str(moved)
    # A store that lacks its data is no substitute.
    open_store(str(tmp_path / "other"), create=True)
    with pytest.raises(MissingError, match="lacks"):
        open_data(find_store(config, str(tmp_path / "other")))


def test_lost_segments_are_not_passed_over(snapshot: Snapshot, tmp_path: Path) -> None:
    config = configure(snapshot)
    short = msgspec.structs.replace(
        config, segments=(*config.segments, "0123456789ab-e000-000000000-00012")
    )
    with pytest.raises(MissingError, match=f"lacks 1 of the {len(short.segments)} segments"):
        open_data(short)


def test_the_same_run_may_be_begun_again_another_not(snapshot: Snapshot, tmp_path: Path) -> None:
    config = configure(snapshot)
    begin(tmp_path / "r", config)
    before = {p: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    begin(tmp_path / "r", config)
    for change in ({"seed": 2}, {"context": "mean"}, {"models": ALIASES[:1]}):
        with pytest.raises(ConflictError, match="holds another run"):
            begin(tmp_path / "r", configure(snapshot, **change))
    assert {p: p.read_bytes() for p in (tmp_path / "r").iterdir()} == before


def test_a_run_of_an_older_wsa_goes_on(snapshot: Snapshot, tmp_path: Path) -> None:
    config = configure(snapshot)
    begin(tmp_path, config)
    path = tmp_path / "config.json"
    about = json.loads(path.read_text())
    # Of 0.1: no kind, CQL as a DQN with an alpha, evaluations among the hyperparameters.
    del about["kind"], about["evaluation"]
    about["hyperparameters"] |= {"type": "dqn", "eval_frequency": 0, "eval_episodes": 10}
    path.write_text(older := json.dumps(about))
    assert read_config(tmp_path) == config
    begin(tmp_path, config)
    assert path.read_text() == older
    # Of a newer one, with a setting that is not known here, not.
    path.write_text(
        json.dumps({**about, "hyperparameters": {**about["hyperparameters"], "new": 1}})
    )
    with pytest.raises(ConflictError, match="holds another run"):
        begin(tmp_path, config)
    with pytest.raises(DamagedError, match="unknown field `new`"):
        read_config(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Of torch.compile's own.
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_evaluations_on_the_way_move_nothing_of_the_training(
    compiled: bool,
    snapshot: Snapshot,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if compiled:  # torch.compile cannot see through the checks of shapes.
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        trained = tmp_path / "plain"
        begin(trained, configure(snapshot))
        train_stored(trained, configure(snapshot), "cpu", compiled=True)
        torch.compiler.reset()
    config = configure(snapshot, evaluation=EvaluationConfig(eval_frequency=20, eval_episodes=2))
    begin(tmp_path, config)
    made = train_stored(tmp_path, config, "cpu", compiled=compiled)
    assert (made.updates, made.passes) == (50, 0)
    last = "checkpoints/000000050.safetensors"
    one, other = load_file(tmp_path / last), load_file(trained / last)
    assert one.keys() == other.keys()
    for name in other:
        np.testing.assert_array_equal(one[name], other[name])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    played = [line for line in lines if periodic.RETURN in line]
    assert [line["step"] for line in played] == [20, 40, 50]
    assert all(line["cache/backbone_passes"] == 0 for line in lines if line not in played)
    assert all(line["eval/episodic_length"] == MAX_STEPS for line in played)
    # The last of them is what `wsa eval` makes of the run.
    seen = evaluate_run(tmp_path, 2, num_envs=2)
    returns = [e.returned for e in seen.episodes]
    line = played[-1]
    assert line[periodic.RETURN] == np.mean(returns)
    assert line["eval/episodic_return_std"] == pytest.approx(np.std(returns))
    assert line["eval/backbone_passes"] <= seen.live.passes
    assert 0 < seen.live.passes <= sum(line["eval/backbone_passes"] for line in played)


def test_games_that_cannot_be_played_stop_no_training(
    snapshot: Snapshot,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = configure(snapshot, evaluation=EvaluationConfig(eval_frequency=20, eval_episodes=1))
    begin(tmp_path, config)
    real = periodic.play

    def fail(*arguments: Any, **details: Any) -> Any:
        raise ConflictError("not-finite", "Model vit gave what is no number.")

    monkeypatch.setattr(periodic, "play", fail)
    assert train_stored(tmp_path, config, "cpu").updates == 50
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert sum(said.startswith("no games were played after step") for said in warned) == 3
    assert "no games were played after step 40. Model vit gave what is no number." in warned
    last = "checkpoints/000000050.safetensors"
    one, other = load_file(tmp_path / last), load_file(trained / last)
    for name in other:
        np.testing.assert_array_equal(one[name], other[name])
    monkeypatch.setattr(periodic, "play", real)
    assert train_stored(tmp_path, config, "cpu").updates == 0  # But the last games are played.
    assert curves.has(tmp_path, 50, periodic.RETURN)


@pytest.mark.filterwarnings("ignore")  # Of torch.compile's own.
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_evaluation_that_was_stopped_is_played_when_the_run_goes_on(
    compiled: bool, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.compile cannot see through the checks of shapes.
    if compiled:
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    config = configure(snapshot, evaluation=EvaluationConfig(eval_frequency=25, eval_episodes=1))
    for name in ("whole", "stopped"):
        begin(tmp_path / name, config)
    train_stored(tmp_path / "whole", config, "cpu", compiled=compiled)
    real, steps = periodic.play, 0

    def interrupted(*arguments: Any, on_step: Any, **details: Any) -> Any:
        def stop(played: int, episodes: int) -> None:
            nonlocal steps
            steps += 1
            if steps in (15, 15 + MAX_STEPS + 15):  # In the midst of the first, and of the second.
                signal.raise_signal(signal.SIGTERM)
            on_step(played, episodes)

        return real(*arguments, on_step=stop, **details)

    monkeypatch.setattr(periodic, "play", interrupted)
    for updates in (25, 50):
        with pytest.raises(Terminated):
            train_stored(tmp_path / "stopped", config, "cpu", compiled=compiled)
        assert checkpoint.latest(tmp_path / "stopped" / "checkpoints").stem == f"{updates:09d}"
    for _ in range(2):
        assert train_stored(tmp_path / "stopped", config, "cpu").updates == 0
    assert steps == 15 + MAX_STEPS + 15 + MAX_STEPS

    def told(name: str) -> list[dict[str, Any]]:
        clock = ("time", "time/updates_per_s", "eval/backbone_passes")
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(li).items() if k not in clock} for li in lines]

    assert told("stopped") == told("whole")


def test_a_run_is_trained_by_one_process(snapshot: Snapshot, tmp_path: Path) -> None:
    config = configure(snapshot)
    begin(tmp_path, config)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with filelock.FileLock(tmp_path / "lock"):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        with pytest.raises(ConflictError, match="Another process is training"):
            train_stored(tmp_path, config, "cpu")
    finally:
        done.set()
        thread.join()
    assert not (tmp_path / "checkpoints").exists()


def test_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(MissingError, match="not the folder of a run"):
            read_config(folder)
    (tmp_path / "config.json").write_text('{"store": 3}')
    with pytest.raises(DamagedError):
        read_config(tmp_path)


def test_a_run_without_a_checkpoint_cannot_be_evaluated(snapshot: Snapshot, tmp_path: Path) -> None:
    begin(tmp_path, configure(snapshot))
    with pytest.raises(MissingError, match="has no checkpoint"):
        evaluate_run(tmp_path, 1)


@pytest.mark.parametrize("options", [{"episodes": 0}, {"epsilon": 1.5}, {"num_envs": 0}])
def test_evaluations_of_nothing_are_refused(trained: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        evaluate_run(trained, **{"episodes": 1, **options})


def test_a_model_that_drifted_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (trained / "eval.csv").read_bytes() if (trained / "eval.csv").exists() else b""
    real = forward.preprocess
    monkeypatch.setattr(forward, "preprocess", lambda *a: 1.3 * real(*a))
    with pytest.raises(ConflictError, match="step to step") as caught:
        evaluate_run(trained, 1)
    assert caught.value.kind == "model-drift"
    after = (trained / "eval.csv").read_bytes() if (trained / "eval.csv").exists() else b""
    assert after == before


def test_choosing_models(snapshot: Snapshot) -> None:
    known = snapshot.models
    assert choose_models(snapshot, "Breakout", []) == known
    assert choose_models(snapshot, "Breakout", ALIASES[::-1]) == known[::-1]
    assert choose_models(snapshot, "Breakout", [known[1]]) == [known[1]]
    twice = [ALIASES[0], known[0], ALIASES[0]]
    assert choose_models(snapshot, "Breakout", twice) == [known[0]]


def test_what_is_missing_is_said_with_its_command(snapshot: Snapshot, tmp_path: Path) -> None:
    backend = open_store(str(tmp_path / "new"), create=True)
    with pytest.raises(MissingError, match=r"wsa collect --game Breakout$"):
        choose_models(take_snapshot(backend), "Breakout", [])
    with pytest.raises(UsageError, match="Did you mean Breakout"):
        configure(snapshot, game="breakout")
    gather(backend, 64)
    with pytest.raises(MissingError, match=r"wsa encode --game Breakout$"):
        choose_models(take_snapshot(backend), "Breakout", [])
    with pytest.raises(MissingError, match=r"wsa encode --game Breakout --models lite0$"):
        choose_models(take_snapshot(backend), "Breakout", ["lite0"])
    [key] = embed(backend, MODELS[:1])
    gather(backend, 128)  # More that it has not encoded; the command makes this very model.
    for asked in (key, ALIASES[0]):
        with pytest.raises(MissingError) as caught:
            choose_models(take_snapshot(backend), "Breakout", [asked])
        assert str(caught.value).endswith(
            "wsa encode --game Breakout --models timm:test_resnet.r160_in1k:random --output pooled"
        )
    embed(backend, MODELS[:1])
    embed(backend, MODELS[:1], "grid:2")
    later = take_snapshot(backend)
    with pytest.raises(UsageError, match="give the whole key"):
        choose_models(later, "Breakout", [ALIASES[0]])
    with pytest.raises(UsageError, match=r"--context \S+ may be any of .* whole key"):
        configure(later, models=later.models, context=ALIASES[0])
    assert configure(later, models=later.models, context=key).context == key


def test_a_context_may_be_a_model_that_is_not_fused(snapshot: Snapshot, tmp_path: Path) -> None:
    config = configure(snapshot, models=ALIASES[:1], context=ALIASES[1])
    assert [names.key_alias(key) for key in config.inputs] == list(ALIASES)
    assert len(config.models) == 1
    begin(tmp_path, config)
    fusion: Any = train_stored(tmp_path, config, "cpu").network.torso.fusion
    assert len(fusion.adapters) == 1
    assert evaluate_run(tmp_path, 1, num_envs=1).episodes[0].steps == MAX_STEPS
    with pytest.raises(MissingError, match="vit has not encoded every segment"):
        configure(snapshot, context="vit")


def test_what_a_fusion_cannot_take_is_refused_before_anything_is_made(snapshot: Snapshot) -> None:
    for name, says in (("cnn", "every model gives a vector"), ("single", "takes one model")):
        with pytest.raises(UsageError, match=says):
            configure(snapshot, network=NetworkConfig(FusionConfig(name)), context="mean")


def test_backbones_are_frozen(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No optimiser holds a weight of one, and what plays after a training is what was before."""
    held: list[torch.nn.Parameter] = []
    adam = torch.optim.Adam

    def spy(parameters: Any, **options: Any) -> Any:
        made = adam(list(parameters), **options)
        held.extend(p for group in made.param_groups for p in group["params"])
        return made

    opened: list[Any] = []
    open_one = register_module.open_model

    def watch(*arguments: Any, **options: Any) -> Any:
        opened.append(open_one(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(torch.optim, "Adam", spy)
    monkeypatch.setattr(register_module, "open_model", watch)
    config = configure(snapshot)
    before = {key: digest(open_one(snapshot, key)) for key in config.inputs}
    begin(tmp_path, config)
    network = train_stored(tmp_path, config, "cpu").network
    assert {id(p) for p in held} == {id(p) for p in network.parameters()}
    evaluate_run(tmp_path, 1, num_envs=1)
    assert len(opened) == 2
    assert [digest(encoder) for encoder in opened] == list(before.values())
    backbones = {id(p) for encoder in opened for p in encoder.module.parameters()}
    assert backbones and not backbones & {id(p) for p in held}
    whole = sum(p.numel() for p in network.parameters())
    torso: Any = network.torso.fusion
    parts = (*torso.adapters, torso.context, torso.scorer, network.head)
    assert whole == sum(p.numel() for part in parts for p in part.parameters())


def digest(encoder: Any) -> str:
    state = encoder.module.state_dict()
    return hashing.tensors_digest({name: tensor.numpy() for name, tensor in state.items()})


def test_protocols_are_not_mixed(tmp_path: Path) -> None:
    backend = open_store(str(tmp_path / "store"), create=True)
    gather(backend, 64)
    gather(backend, 64, name="v5")
    [key] = embed(backend, MODELS[:1])
    later = take_snapshot(backend)
    changes: dict[str, Any] = {"models": [key], "context": "mean"}
    with pytest.raises(UsageError, match=r"classic, v5.*choose one with --protocol"):
        configure(later, **changes)
    with pytest.raises(UsageError, match=r"classic, v5"):
        configure(later, **changes, protocol="custom")
    config = configure(later, **changes, protocol="v5")
    assert config.protocol.name == "v5" and len(config.protocol.actions) == 18
    assert len(config.segments) == len(later.segments()) // 2
    _, flat = open_data(config)
    assert flat is not None and len(flat.steps) == 64
    gather(backend, 64, max_steps=50)  # Another one that is called classic too.
    embed(backend, MODELS[:1])
    with pytest.raises(UsageError, match="2 different protocols, all named classic"):
        configure(take_snapshot(backend), **changes, protocol="classic")


@pytest.mark.slow
def test_the_command_brings_no_library_of_models(backend: Backend, tmp_path: Path) -> None:
    """They would be a good part of the time until the first update."""
    options = [
        "--store",
        backend.url,
        "--game",
        "Breakout",
        "--models",
        ALIASES[0],
        "--updates",
        "3",
    ]
    command = ["learn", *options, "--run-dir", str(tmp_path / "run")]
    code = (
        f"import sys\nfrom wsa.cli import main\ncode = main({command!r})\nprint(code, *sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, "WSA_CACHE": str(tmp_path)},
    )  # fmt: skip
    first, *loaded = ended.stdout.splitlines()[-1].split()
    assert first == "0" and (tmp_path / "run" / "checkpoints" / "000000003.safetensors").exists()
    assert set(loaded) & {"beartype", "timm", "torchvision", "distributed"} == set()
