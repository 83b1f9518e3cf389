"""Offline runs from stored play: their folder, resuming, extending, and games during training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any

import filelock
import jaxtyping
import msgspec
import numpy as np
import pytest
import torch
from learn_kit import (
    ALIASES,
    MAX_STEPS,
    add_play,
    plan_offline,
    read_checkpoint,
    read_metrics,
)

from wsa.encode.inference.encoder import Encoder
from wsa.encode.registration import register
from wsa.learn.configs.algorithms import BCConfig, EvaluationConfig
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.evaluation import periodic
from wsa.learn.runs.config import OfflineRun, read_config
from wsa.learn.runs.data import find_store, open_data
from wsa.learn.runs.evaluate import evaluate_run
from wsa.learn.runs.folder import begin
from wsa.learn.runs.machine import Machine
from wsa.learn.runs.train import train_stored
from wsa.learn.training import checkpoint
from wsa.learn.training import metrics as training_metrics
from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, DamagedError, MissingError, Terminated
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_keeps_its_configuration_metrics_and_checkpoints(breakout, trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["segments"] == [m.segment for m in breakout.segments()] and config["segments"]
    assert [names.key_alias(key) for key in config["models"]] == list(ALIASES)
    assert config["context"] == config["models"][0]
    assert config["protocol"]["max_steps"] == MAX_STEPS
    assert config["hyperparameters"]["updates"] == 50
    assert read_config(trained) == plan_offline(breakout)
    assert (trained / "command.txt").read_text().strip()
    lines = read_metrics(trained)
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50]
    assert all(line["cache/backbone_passes"] == 0 for line in lines)
    files = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert files == [f"{step:09d}.safetensors" for step in (40, 50)]


def test_segments_added_later_do_not_change_a_run(breakout, trained, tmp_path):
    shutil.copytree(breakout.backend.url, tmp_path / "store")
    backend = open_store(str(tmp_path / "store"))
    config = plan_offline(take_snapshot(backend))
    folder = tmp_path / "run"
    begin(folder, config)

    def stop(step, _):
        if step == 30:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train_stored(folder, config, on_line=stop)
    longer = plan_offline(add_play(backend, breakout.models))
    assert longer.segments != config.segments
    resumed = read_config(folder)
    assert isinstance(resumed, OfflineRun)
    assert train_stored(folder, resumed).updates == 30
    assert read_checkpoint(folder) == read_checkpoint(trained)
    # A run on more data is another run.
    with pytest.raises(ConflictError, match="wsa learn --resume") as error:
        begin(folder, longer)
    assert error.value.kind == "run-exists"


def test_a_run_extended_by_updates_equals_the_longer_run(breakout, trained, tmp_path, caplog):
    long = plan_offline(breakout)
    short = msgspec.structs.replace(
        long, hyperparameters=msgspec.structs.replace(long.hyperparameters, updates=30)
    )
    begin(tmp_path, short)
    assert train_stored(tmp_path, short).updates == 30
    with caplog.at_level("INFO"):
        begin(tmp_path, long)
    message = "extended from 30 to 50 updates, as if it had started with as many."
    assert message in caplog.text
    assert read_config(tmp_path) == long
    assert train_stored(tmp_path, long).updates == 20
    assert read_checkpoint(tmp_path) == read_checkpoint(trained)
    with pytest.raises(ConflictError, match="started with --updates 50, not 30"):
        begin(tmp_path, short)


def test_a_run_goes_on_at_other_frequencies_and_learns_the_same(breakout, trained, tmp_path):
    config = plan_offline(breakout)

    def at_frequencies(log, save, evaluate):
        learner = msgspec.structs.replace(
            config.hyperparameters, log_frequency=log, save_frequency=save
        )
        return msgspec.structs.replace(
            config, hyperparameters=learner, evaluation=EvaluationConfig(evaluate, 1)
        )

    def stop(step, _):
        if step == 30:
            raise RuntimeError("stop")

    first, then = at_frequencies(10, 20, 0), at_frequencies(15, 10, 25)
    begin(tmp_path, first)
    with pytest.raises(RuntimeError, match="stop"):
        train_stored(tmp_path, first, on_line=stop)
    begin(tmp_path, then)
    assert read_config(tmp_path) == then
    assert train_stored(tmp_path, then).updates == 30
    logged = [line["step"] for line in read_metrics(tmp_path) if "losses/td_loss" in line]
    assert logged == [10, 20, 30, 45, 50]
    played = [
        line["step"]
        for line in read_metrics(tmp_path)
        if training_metrics.EVALUATION_RETURN in line
    ]
    assert played == [25, 50]
    assert read_checkpoint(tmp_path) == read_checkpoint(trained)


def test_a_run_finds_its_store_where_it_was_moved(breakout, trained, tmp_path, monkeypatch):
    folder, moved = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(trained, folder)
    shutil.copytree(breakout.backend.url, moved)
    config = msgspec.structs.replace(read_config(folder), store=str(tmp_path / "gone"))
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    monkeypatch.delenv("WSA_STORE", raising=False)
    with pytest.raises(MissingError, match="If the run's store has moved, say where it is"):
        find_store(config)
    assert find_store(config, str(moved)).store == find_store(config, "", str(moved)).store
    monkeypatch.setenv("WSA_STORE", str(moved))
    assert (
        evaluate_run(folder, EvaluationRequest(episodes=1, num_envs=1)).episodes[0].steps
        == MAX_STEPS
    )
    # Training resumes there, and the run remembers the place.
    found = find_store(read_config(folder))
    assert isinstance(found, OfflineRun)
    begin(folder, found)
    assert train_stored(folder, found).updates == 0
    assert read_config(folder).store == str(moved)
    # A store that lacks the run's data is refused.
    open_store(str(tmp_path / "other"), create=True)
    with pytest.raises(MissingError, match="lacks"):
        open_data(find_store(config, str(tmp_path / "other")))


def test_a_lost_segment_is_an_error(breakout):
    config = plan_offline(breakout)
    segments = (*config.segments, "0123456789ab-e000-000000000-00012")
    with pytest.raises(MissingError, match=f"lacks 1 of the {len(segments)} segments"):
        open_data(msgspec.structs.replace(config, segments=segments))


def test_a_folder_accepts_the_same_run_again_and_no_other(breakout, tmp_path):
    config = plan_offline(breakout)
    begin(tmp_path / "run", config)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    begin(tmp_path / "run", config)
    first, second = config.models
    changes: dict[str, dict[str, Any]] = {
        "--seed 1, not 2": {"seed": 2},
        f"--context {first}, not mean": {"context": "mean"},
        f"--models {first},{second}, not {first}": {"models": ALIASES[:1]},
        r"--algo cql, not bc\. Give": {"hyperparameters": BCConfig(updates=40)},
        r"--double-q\. Give": {
            "hyperparameters": msgspec.structs.replace(config.hyperparameters, double_q=False)
        },
        r"--validation-fraction 0\.0, not 0\.1; no --save-best\. Give": {
            "hyperparameters": msgspec.structs.replace(
                config.hyperparameters, validation_fraction=0.1, save_best=True
            )
        },
        r"--layer-norm\. Give": {"network": NetworkConfig(FusionConfig(size=16, layer_norm=False))},
        "no --temperature, not 1.0": {
            "network": NetworkConfig(FusionConfig(size=16, temperature=1.0))
        },
        "--fusion-size 16, not 24": {"network": NetworkConfig(FusionConfig(size=24))},
    }
    for differing, change in changes.items():
        with pytest.raises(ConflictError, match=f"holds another run, started with {differing}"):
            begin(tmp_path / "run", plan_offline(breakout, **change))
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_of_an_older_version_resumes_and_one_of_a_newer_is_refused(breakout, tmp_path):
    config = plan_offline(breakout)
    begin(tmp_path, config)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    # In 0.1 there was no kind, CQL was a DQN with an alpha, and evaluations were hyperparameters.
    del written["kind"], written["evaluation"]
    written["hyperparameters"] |= {"type": "dqn", "eval_frequency": 0, "eval_episodes": 10}
    path.write_text(older := json.dumps(written))
    assert read_config(tmp_path) == config
    begin(tmp_path, config)
    assert path.read_text() == older
    written["hyperparameters"]["new"] = 1
    path.write_text(json.dumps(written))
    with pytest.raises(DamagedError, match="unknown field `new`"):
        begin(tmp_path, config)


def test_one_process_trains_a_run(breakout, tmp_path):
    config = plan_offline(breakout)
    begin(tmp_path, config)
    held, done = threading.Event(), threading.Event()

    def hold():
        with filelock.FileLock(tmp_path / "lock"):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        with pytest.raises(ConflictError, match="Another process is training"):
            train_stored(tmp_path, config)
    finally:
        done.set()
        thread.join()
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_without_a_run_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(MissingError, match="not the folder of a run"):
            read_config(folder)
    (tmp_path / "config.json").write_text('{"store": 3}')
    with pytest.raises(DamagedError):
        read_config(tmp_path)


@pytest.mark.filterwarnings("ignore")  # Of torch.compile's own.
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_games_during_training_do_not_change_it_and_are_played_once_when_interrupted(
    compiled, breakout, trained, tmp_path, monkeypatch
):
    if compiled:  # torch.compile cannot trace the checks of shapes.
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        trained = tmp_path / "plain"
        begin(trained, plan_offline(breakout))
        train_stored(trained, plan_offline(breakout), Machine(compiled=True))
        torch.compiler.reset()
    games = EvaluationConfig(eval_frequency=25, eval_episodes=1)
    config = plan_offline(breakout, evaluation=games)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    begin(whole, config)
    begin(stopped, config)
    result = train_stored(whole, config, Machine(compiled=compiled))
    assert (result.updates, result.passes) == (50, 0)
    assert read_checkpoint(whole) == read_checkpoint(trained)
    lines = read_metrics(whole)
    played = [line for line in lines if training_metrics.EVALUATION_RETURN in line]
    assert [line["step"] for line in played] == [25, 50]
    assert all(line["eval/episodic_length"] == MAX_STEPS for line in played)
    assert all(line["cache/backbone_passes"] == 0 for line in lines if line not in played)

    play, steps = periodic.play, 0
    stops = 15, 15 + MAX_STEPS + 15  # In the middle of the first game, and of the second.

    def interrupted(*arguments, on_step, **details):
        def stop(played, episodes):
            nonlocal steps
            steps += 1
            if steps in stops:
                signal.raise_signal(signal.SIGTERM)
            on_step(played, episodes)

        return play(*arguments, on_step=stop, **details)

    monkeypatch.setattr(periodic, "play", interrupted)
    for updates in (25, 50):
        with pytest.raises(Terminated):
            train_stored(stopped, config, Machine(compiled=compiled))
        assert checkpoint.latest(stopped / "checkpoints").stem == f"{updates:09d}"
    for _ in range(2):
        assert train_stored(stopped, config).updates == 0
    assert steps == stops[1] + MAX_STEPS
    passes = "eval/backbone_passes"  # They depend on what the process has seen.
    assert [{k: v for k, v in line.items() if k != passes} for line in read_metrics(stopped)] == [
        {k: v for k, v in line.items() if k != passes} for line in lines
    ]


def test_games_that_fail_do_not_stop_training_and_are_played_on_resume(
    breakout, trained, tmp_path, monkeypatch, caplog
):
    games = EvaluationConfig(eval_frequency=20, eval_episodes=1)
    config = plan_offline(breakout, evaluation=games)
    begin(tmp_path, config)
    play = periodic.play

    def play_with_a_broken_engine(*arguments, **options):
        def fail(*_):
            raise RuntimeError("lost the device")

        with monkeypatch.context() as patch:
            patch.setattr(Encoder, "_run", fail)
            return play(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(periodic, "play", play_with_a_broken_engine)
        result = train_stored(tmp_path, config)
        assert (result.updates, result.passes) == (50, 0)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert sum(warning.startswith("no games were played after step") for warning in warnings) == 3
    assert any("RuntimeError: lost the device" in warning for warning in warnings)
    assert read_checkpoint(tmp_path) == read_checkpoint(trained)
    assert train_stored(tmp_path, config).updates == 0
    assert training_metrics.has(tmp_path, 50, training_metrics.EVALUATION_RETURN)
    # The last games are those of `wsa eval`.
    last = read_metrics(tmp_path)[-1]
    evaluation = evaluate_run(tmp_path, EvaluationRequest(episodes=1, num_envs=1))
    assert last[training_metrics.EVALUATION_RETURN] == np.mean(
        [e.returned for e in evaluation.episodes]
    )
    assert 0 < evaluation.live.passes == last["eval/backbone_passes"]


def test_backbones_stay_frozen_also_one_that_gives_the_context(breakout, tmp_path, monkeypatch):
    optimized = []
    adam = torch.optim.Adam

    def spy_on_adam(parameters, **options):
        optimizer = adam(list(parameters), **options)
        optimized.extend(p for group in optimizer.param_groups for p in group["params"])
        return optimizer

    opened: list[Any] = []
    open_model = register.open_model

    def spy_on_models(*arguments, **options):
        opened.append(open_model(*arguments, **options))
        return opened[-1]

    def digest(encoder):
        state = encoder.module.state_dict()
        return hashing.tensors_digest({name: tensor.numpy() for name, tensor in state.items()})

    monkeypatch.setattr(torch.optim, "Adam", spy_on_adam)
    monkeypatch.setattr(register, "open_model", spy_on_models)
    config = plan_offline(breakout, models=ALIASES[:1], context=ALIASES[1])
    assert [names.key_alias(key) for key in config.inputs] == list(ALIASES)
    assert len(config.models) == 1
    before = [digest(open_model(breakout, key)) for key in config.inputs]
    begin(tmp_path, config)
    network = train_stored(tmp_path, config).network
    assert {id(p) for p in optimized} == {id(p) for p in network.parameters()}
    assert (
        evaluate_run(tmp_path, EvaluationRequest(episodes=1, num_envs=1)).episodes[0].steps
        == MAX_STEPS
    )
    assert [digest(encoder) for encoder in opened] == before
    backbones = {id(p) for encoder in opened for p in encoder.module.parameters()}
    assert backbones and not backbones & {id(p) for p in optimized}
    fusion: Any = network.torso.fusion
    assert len(fusion.adapters) == 1
    trained_parts = (*fusion.adapters, fusion.context, fusion.scorer, network.head)
    count = sum(p.numel() for part in trained_parts for p in part.parameters())
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.slow
def test_the_command_imports_no_library_of_models(breakout, tmp_path):
    """They would take a good part of the time until the first update."""
    command = ["learn", "--store", breakout.backend.url, "--game", "Breakout", "--updates", "3",
               "--models", ALIASES[0], "--run-dir", str(tmp_path / "run")]  # fmt: skip
    code = (
        f"import sys\nfrom wsa.cli import main\ncode = main({command!r})\nprint(code, *sys.modules)"
    )
    environment = {**os.environ, "WSA_CACHE": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    status, *loaded = ended.stdout.splitlines()[-1].split()
    assert status == "0" and (tmp_path / "run/checkpoints/000000003.safetensors").exists()
    assert set(loaded) & {"beartype", "timm", "torchvision", "distributed"} == set()


def test_equal_states_give_equal_files(tmp_path):
    """safetensors writes the metadata of a file in another order each time."""
    network = torch.nn.Linear(3, 2)
    torch.manual_seed(0)
    extra = {"name": "é", "draws": 1}
    # Each file replaces the one before.
    (file,) = {
        checkpoint.save(tmp_path, 7, {"online": network}, None, extra).read_bytes()
        for _ in range(10)
    }
    assert checkpoint.read(checkpoint.latest(tmp_path))[1]["step"] == "7"
    header = int.from_bytes(file[:8], "little")
    assert header % 8 == 0
