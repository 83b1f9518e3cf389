"""Online runs on the emulator with a small random model, from flags to evaluation."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from learn_kit import (
    RESNET,
    SHORT_DQN,
    SHORT_PPO,
    add_play,
    killed_at_checkpoint,
    plan_online,
    read_checkpoint,
    read_metrics,
    train_online,
)
from safetensors.numpy import load_file

from wsa.encode.inference.encoder import Encoder
from wsa.encode.registration import register
from wsa.encode.registration.engine_choice import Engines
from wsa.encode.registration.register import open_model, open_models
from wsa.encode.registration.select import choose_models
from wsa.learn.commands.collect import collect
from wsa.learn.configs.data import CollectOptions, ProtocolOptions, RunPolicyOptions
from wsa.learn.configs.evaluation import EVAL_SEED, EvaluationRequest
from wsa.learn.envs import atari
from wsa.learn.online.embedding_table import Table
from wsa.learn.runs.config import OnlineRun
from wsa.learn.runs.data import make_embedder, open_data
from wsa.learn.runs.evaluate import evaluate_run
from wsa.learn.runs.folder import begin
from wsa.learn.runs.machine import Machine
from wsa.learn.runs.network import make_network
from wsa.learn.runs.setup import make_run as setup
from wsa.learn.runs.setup.warm_start import warm_start
from wsa.learn.runs.train import train_playing
from wsa.learn.training import checkpoint
from wsa.learn.training.metrics import EVALUATION_RETURN
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError, MissingError, UsageError
from wsa.store.format.records import EmbeddingMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_embedding

pytestmark = pytest.mark.usefixtures("one_thread", "short_segments")

STEPS = SHORT_PPO["total_timesteps"]
EPISODE = 16
OUTPUT = {"output": "grid:5+pca:64"}
PPO: dict[str, Any] = {**SHORT_PPO, **OUTPUT, "max_episode_steps": EPISODE}
DQN: dict[str, Any] = {**SHORT_DQN, **OUTPUT, "max_episode_steps": EPISODE}
RECURRENT: dict[str, Any] = {**PPO, "recurrent": True, "hidden": None}
# The baseline on pixels takes none of the flags of models.
PIXELS: dict[str, Any] = {
    "fusion": "nature", "models": None, "output": None, "fusion_size": None, "hidden": None,
    "frame_stack": 4, "parameters": 50_000,
}  # fmt: skip


def slow(*values, **details):
    return pytest.param(*values, marks=pytest.mark.slow, **details)


@pytest.fixture(scope="module")
def short_segments():
    """Recorded segments end inside of episodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsa.learn.online.record_segments.SEGMENT_STEPS", 10)
        yield


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A store that has the model, and nothing of the game."""
    folder = tmp_path_factory.mktemp("registered")
    plan_online(folder / "store", folder / "run", **PPO)
    return folder / "store"


@pytest.fixture
def store(registered, tmp_path):
    """A copy of that store."""
    return Path(shutil.copytree(registered, tmp_path / "store", copy_function=os.link))


class Recorded(NamedTuple):
    """A run that recorded what it played, to be read only."""

    store: Path
    run: Path
    flags: dict[str, Any]
    config: OnlineRun
    played: Any
    encoder_passes: int


@pytest.fixture(
    scope="module",
    params=[pytest.param(PPO, id="ppo"), slow(DQN, id="dqn"), slow(RECURRENT, id="recurrent")],
)
def recorded(request, registered, tmp_path_factory, short_segments):
    folder = tmp_path_factory.mktemp("recorded")
    shutil.copytree(registered, folder / "store", copy_function=os.link)
    flags = {**request.param, "record": True, "save_frequency": 16, "seed": EVAL_SEED}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = Encoder.total_passes
    config, played = train_online(folder / "store", folder / "run", **flags)
    passes = Encoder.total_passes - before
    torch.set_num_threads(threads)
    return Recorded(folder / "store", folder / "run", flags, config, played, passes)


def read_play(snapshot):
    """Every segment of Breakout with its embeddings, whatever run recorded it."""
    models = snapshot.models_of("Breakout")
    return sorted(
        (
            *(meta.env, meta.start, snapshot.read_rows(meta)["digest"].tobytes()),
            *(snapshot.read_embedding("Breakout", m, meta.segment).tobytes() for m in models),
        )
        for meta in snapshot.segments("Breakout")
    )


def test_a_run_records_each_distinct_frame_with_one_pass(recorded):
    lines = read_metrics(recorded.run)
    line = [line for line in lines if "cache/hit_rate" in line][-1]
    passes = recorded.played.passes
    assert recorded.played.steps == STEPS and passes == line["cache/backbone_passes"]
    assert 0 < passes <= line["cache/distinct_frames"] <= STEPS + 2 * 4  # Resets show some, too.
    assert recorded.encoder_passes >= passes
    report = verify(open_store(str(recorded.store)))
    assert not report.damage and not report.leftovers
    snapshot = take_snapshot(open_store(str(recorded.store)))
    segments = snapshot.segments("Breakout")
    assert sum(meta.steps for meta in segments) == STEPS and len(segments) > 2
    assert snapshot.models_of("Breakout") == list(recorded.config.models)
    frames = {d.tobytes() for meta in segments for d in snapshot.read_digests(meta)}
    embedded = snapshot.embeddings("Breakout")
    assert sum(m.passes for m in embedded) == passes == len(frames) == line["cache/distinct_frames"]
    assert all(m.passes + m.copied == m.shape[0] for m in embedded)
    assert sum(m.seconds for m in embedded) > 0
    engine = open_model(snapshot, recorded.config.models[0]).engine.name
    assert {m.engine for m in embedded} == {engine}


def test_the_same_run_on_recorded_play_needs_no_pass(recorded, tmp_path):
    flags = {**recorded.flags, "record": None}
    config, played = train_online(recorded.store, tmp_path / "run", **flags)
    assert len(config.segments) == len(take_snapshot(open_store(config.store)).segments())
    assert played.passes == 0 and played.hit_rate == 1.0
    again, first = (
        [{k: v for k, v in line.items() if "cache" not in k} for line in read_metrics(run)]
        for run in (tmp_path / "run", recorded.run)
    )
    assert again == first


def test_a_run_is_evaluated_also_under_a_variant(recorded):
    plain = evaluate_run(recorded.run, EvaluationRequest(episodes=1, epsilon=1.0, num_envs=1))
    assert plain.player.trained == STEPS and len(plain.episodes) == 1
    assert plain.summary()["unit"] == "steps" and "updates" not in plain.summary()
    # Random play is the same; the frames are not in the store.
    inverted = evaluate_run(
        recorded.run, EvaluationRequest(episodes=1, epsilon=1.0, num_envs=1, variant="look:invert")
    )
    assert inverted.episodes == plain.episodes
    assert inverted.live.found == 0 < inverted.live.passes


def check_periodic_games(plain, played, at, config):
    """Games during training changed neither checkpoint nor metrics; returns their passes."""
    lines = read_metrics(played)
    games = [line for line in lines if EVALUATION_RETURN in line]
    assert [line["step"] for line in games] == at
    assert all(line["eval/episodic_length"] == EPISODE for line in games)
    assert read_checkpoint(played) == read_checkpoint(plain)
    assert [line for line in lines if line not in games] == read_metrics(plain)
    return int(sum(line["eval/backbone_passes"] for line in games))


def test_games_during_training_do_not_change_the_run_or_its_record(recorded, store, tmp_path):
    before = Encoder.total_passes
    flags = {**recorded.flags, "eval_frequency": 24, "eval_episodes": 2}
    config, trained = train_online(store, tmp_path / "run", **flags)
    at = [24, 48] if recorded.flags["algo"] == "dqn" else [32, 48]
    passes = check_periodic_games(recorded.run, tmp_path / "run", at, config)
    assert 0 < passes <= 2 * 2 * EPISODE
    assert Encoder.total_passes - before >= trained.passes + passes
    assert trained.passes == recorded.played.passes
    play, wanted = (read_play(take_snapshot(open_store(str(s)))) for s in (store, recorded.store))
    assert play == wanted and play


@pytest.mark.slow
def test_games_during_training_on_pixels_do_not_change_it(store, tmp_path):
    flags = {**PPO, **PIXELS}
    train_online(store, tmp_path / "plain", **flags)
    games = {"eval_frequency": 24, "eval_episodes": 2}
    config, _ = train_online(store, tmp_path / "run", **flags, **games)
    assert check_periodic_games(tmp_path / "plain", tmp_path / "run", [32, 48], config) == 0


def test_a_killed_run_records_what_an_uninterrupted_one_does(recorded, store, tmp_path):
    for step in (32, 48):
        with killed_at_checkpoint(step):
            train_online(store, tmp_path / "run", **recorded.flags)
    train_online(store, tmp_path / "run", **recorded.flags)
    assert read_metrics(tmp_path / "run") == read_metrics(recorded.run)
    play, wanted = (read_play(take_snapshot(open_store(str(s)))) for s in (store, recorded.store))
    assert play == wanted


def test_evaluation_looks_up_what_the_run_has_seen(recorded):
    config = recorded.config
    snapshot, flat = open_data(config)
    encoders = open_models(snapshot, config.inputs)
    own = make_embedder(config, flat, encoders)
    table = Table(recorded.run / "table", own)
    _, extra = checkpoint.load(checkpoint.latest(recorded.run / "checkpoints"), {})
    table.restore(extra["table"])
    env = atari.make_env(config.game, config.protocol, 2)
    frames = atari.rgb_frames(env.reset(seed=EVAL_SEED)[0])
    env.close()
    live = make_embedder(config, flat, encoders, elsewhere=table.parts)
    before = live.passes
    embeddings = live(frames)
    assert live.passes == before and live.remembered == len(frames)
    np.testing.assert_array_equal(embeddings, own(frames))


@pytest.mark.parametrize("algo", [PPO, slow(DQN)])
def test_the_baseline_on_pixels_runs_no_model(store, tmp_path, algo, monkeypatch):
    flags = {**algo, **PIXELS}
    config, played = train_online(store, tmp_path / "run", **flags, record=True)
    assert played.passes == 0
    snapshot = take_snapshot(open_store(config.store))
    assert sum(m.steps for m in snapshot.segments()) == STEPS
    assert not snapshot.embeddings("Breakout")

    def count(config):
        network = make_network(config, config.model_windows, config.shapes)
        return sum(p.numel() for p in network.parameters())

    assert 49_000 < count(config) <= 50_000
    outputs = 4 + (algo is PPO)  # Actions, and PPO's value.
    assert count(msgspec.structs.replace(config, parameters=0)) == 1_684_128 + outputs * 513
    assert (
        evaluate_run(
            tmp_path / "run", EvaluationRequest(episodes=1, epsilon=1.0, num_envs=1)
        ).live.passes
        == 0
    )
    evaluate_run(
        tmp_path / "run",
        EvaluationRequest(episodes=1, epsilon=1.0, num_envs=1, variant="mode=12+noise=0.1"),
    )

    # Opening models draws random numbers, and happens elsewhere with --encoder.
    real_open = register.open_models

    def drawing(*args, **details):
        torch.rand(7)
        return real_open(*args, **details)

    monkeypatch.setattr(register, "open_models", drawing)
    train_online(store, tmp_path / "again", **flags)
    assert read_metrics(tmp_path / "again") == read_metrics(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "exact"),
    [
        ({**PPO, "anneal_lr": False}, True),
        ({**DQN, "start_e": 0.1, "end_e": 0.1}, True),
        (PPO, False),
    ],
)
def test_a_finished_run_can_be_extended(store, tmp_path, algo, exact, caplog):
    shutil.copytree(store, tmp_path / "other")
    flags = {**algo, "record": True, "total_timesteps": 96}
    train_online(store, tmp_path / "extended", **{**flags, "total_timesteps": 48})
    with caplog.at_level("INFO"):
        _, played = train_online(store, tmp_path / "extended", **flags)
    message = caplog.text
    assert "extended from 48 to 96 steps" in message
    assert ("as if it had started" if exact else "so the result differs") in message
    assert played.steps == 48
    assert not verify(open_store(str(store))).damage
    train_online(tmp_path / "other", tmp_path / "long", **flags)
    one, other = (
        {name: t for name, t in read_checkpoint(tmp_path / run).items() if name[:7] == "online."}
        for run in ("extended", "long")
    )
    assert one.keys() == other.keys() and (one == other) == exact


def test_a_run_continues_after_others_stored_numbers_too_large_for_its_table(store, tmp_path):
    backend = open_store(str(store))
    (model,) = take_snapshot(backend).models
    shape = read_spec(take_snapshot(backend), model).shape
    add_play(backend)
    _embed_with(backend, model, np.zeros(shape, np.float16))
    flags = {**PPO, "total_timesteps": 32}
    before, _ = train_online(store, tmp_path / "run", **flags)
    assert before.segments
    add_play(backend)
    _embed_with(backend, model, np.full(shape, 1e6, np.float32))
    config, played = train_online(store, tmp_path / "run", **{**flags, "total_timesteps": 48})
    assert (config.segments, played.steps) == (before.segments, 16)


def _embed_with(backend, model, embedding):
    """Commit an embedding for every frame of each segment that the model has not encoded."""
    snapshot = take_snapshot(backend)
    encoded = {meta.segment for meta in snapshot.embeddings(model=model)}
    for meta in snapshot.segments():
        if meta.segment not in encoded:
            array = np.repeat(embedding[None], meta.frames, axis=0)
            record = EmbeddingMeta(
                meta.game, meta.segment, model, array.shape, array.dtype.name, meta.frames, 0, 1.0
            )
            commit_embedding(backend, record, array)


@pytest.mark.slow
def test_palette_is_of_the_game_that_is_played(store, tmp_path):
    flags = {**PPO, "models": ("palette", "objects"), "output": "", "max_episode_steps": 60}
    for game in ("Breakout", "Pong"):
        config, played = train_online(store, tmp_path / game, **flags, game=game, record=True)
        assert played.steps == STEPS and played.passes > 0
        snapshot = take_snapshot(open_store(str(store)))
        assert [read_spec(snapshot, key).game for key in config.models] == [game] * 2
        assert choose_models(snapshot, game, ["palette", "objects"]) == list(config.models)
        assert (
            len(
                evaluate_run(
                    tmp_path / game, EvaluationRequest(episodes=1, epsilon=1.0, num_envs=1)
                ).episodes
            )
            == 1
        )
        # Also in colors that the game never has.
        changed = "look:palette=3+noise=0.1"
        evaluation = evaluate_run(
            tmp_path / game, EvaluationRequest(episodes=1, num_envs=1, variant=changed)
        )
        assert len(evaluation.episodes) == 1 and evaluation.live.found == 0
    with pytest.raises(MissingError, match=r"--models palette$"):
        choose_models(snapshot, "Breakout", [config.models[0]])
    other = {**flags, "models": ("palette",), "output": "map+palette:5@Pong", "game": "Seaquest"}
    with pytest.raises(UsageError, match="another game, not Seaquest"):
        plan_online(store, tmp_path / "no", **other)


def test_a_model_that_the_store_lacks_is_added_with_the_requested_engine(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise UsageError(f"engine {arguments[-1]}")

    monkeypatch.setattr("wsa.encode.registration.register.register", refuse)
    with pytest.raises(UsageError, match="engine torch"):
        plan_online(tmp_path / "store", tmp_path / "run", **PPO, engine="torch")


@pytest.fixture
def two_groups(monkeypatch):
    """Few environments are split into two groups, as many are outside of tests."""
    monkeypatch.setattr(setup, "ENVS_OF_TWO_GROUPS", 2)


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_number_of_threads(store, tmp_path, two_groups):
    models = {"models": (RESNET, "ae:random", "vos:random"), "output": None}  # Of several windows.
    config = plan_online(store, tmp_path / "1", **{**PPO, **models})
    assert config.env_groups == 2
    weights = []
    for threads in (1, 2, 3):
        folder = tmp_path / str(threads)
        begin(folder, config)
        played = train_playing(folder, config, Machine(threads=threads))
        weights.append(read_checkpoint(folder))
        assert read_metrics(folder) == read_metrics(tmp_path / "1")
        assert played.passes == read_metrics(folder)[-1]["cache/backbone_passes"] > 0
    assert weights[0] == weights[1] == weights[2]


def test_a_run_begun_before_there_were_groups_stays_in_one(store, tmp_path, two_groups):
    folder = tmp_path / "run"
    config = plan_online(store, folder, **PPO)
    assert config.env_groups == 2
    begin(folder, msgspec.structs.replace(config, env_groups=1))
    older = json.loads((folder / "config.json").read_text())
    del older["env_groups"]
    (folder / "config.json").write_text(json.dumps(older))
    again = plan_online(store, folder, **PPO)
    assert again.env_groups == 1
    begin(folder, again)  # The same run: otherwise this is refused.


def test_only_a_run_without_a_record_may_save_at_another_frequency(store, tmp_path):
    plain, recorded = tmp_path / "plain", tmp_path / "recorded"
    begin(plain, plan_online(store, plain, **PPO, save_frequency=32))
    begin(plain, plan_online(store, plain, **PPO, save_frequency=16))
    begin(recorded, plan_online(store, recorded, **PPO, record=True, save_frequency=32))
    with pytest.raises(ConflictError, match="started with --save-frequency 32, not 16"):
        begin(recorded, plan_online(store, recorded, **PPO, record=True, save_frequency=16))
    with pytest.raises(ConflictError, match="started with --algo ppo, not dqn"):
        begin(plain, plan_online(store, plain, **DQN))


@pytest.mark.slow
def test_the_same_command_resumes_after_the_store_has_grown(store, tmp_path):
    """It has grown by the run's own record; and --init is needed at the beginning only."""
    shutil.copytree(store, tmp_path / "other")
    train_online(store, tmp_path / "first", **DQN)
    flags = {**DQN, "record": True, "init": str(tmp_path / "first"), "save_frequency": 16}
    config, folder = plan_online(store, tmp_path / "run", **flags), tmp_path / "run"
    begin(folder, config)
    with killed_at_checkpoint(32):
        train_playing(folder, config)
    assert take_snapshot(open_store(str(store))).segments("Breakout")
    again = plan_online(store, folder, **flags)
    assert again == config
    begin(folder, again)
    shutil.rmtree(tmp_path / "first")
    assert train_playing(folder, again).steps == 32
    other = plan_online(tmp_path / "other", folder, **DQN, gamma=0.5)
    with pytest.raises(ConflictError, match="holds another run"):
        begin(folder, other)


@pytest.mark.parametrize("recorded", [PPO], indirect=True)
def test_init_takes_models_and_network_of_the_other_run(recorded, store, tmp_path):
    first = Path(shutil.copytree(recorded.run, tmp_path / "first"))
    models = recorded.config.models

    def plan(algo=PPO, **changes):
        defaults = {"fusion_size": 256, "hidden": ("256",), "frame_stack": 4, "models": ()}
        flags = {**algo, **defaults, "init": str(first), **changes}
        return plan_online(store, tmp_path / "new", **flags)

    config = plan()
    assert (config.models, config.network.fusion) == (models, recorded.config.network.fusion)
    assert plan(models=(RESNET,)) == config
    refused: list[tuple[dict[str, Any], str]] = [
        ({"add": (RESNET,)}, "--add .*: the run already has this model"),
        ({"drop": models}, "--drop leaves no model"),
        (
            {"fusion_size": 32},
            "--fusion-size 32: --init .* a network with --fusion-size 16, and keeps it",
        ),
        ({"fusion": "nature", "fusion_size": None, "hidden": None}, "sees pixels"),
        ({"protocol": "v5"}, "--protocol v5: .* has 18 actions .* among 4"),
        ({"init": "", "drop": models}, "name the run with --init"),
    ]
    for change, message in refused:
        with pytest.raises(UsageError, match=message):
            plan(**change)
    renamed = (first / "config.json").read_text().replace(models[0], "lite0-0123456789ab")
    (first / "config.json").write_text(renamed)
    with pytest.raises(UsageError, match=r"--models differ from those of .* --add and --drop"):
        plan(models=(RESNET,))


def test_init_takes_the_network_on_pixels_of_the_other_run(store, tmp_path):
    first = plan_online(store, tmp_path / "first", **PPO | PIXELS | {"frame_stack": 2})
    begin(tmp_path / "first", first)
    saved = {"online": make_network(first, (), ())}
    checkpoint.save(tmp_path / "first" / "checkpoints", 1, saved)

    def plan(**changes):
        other = {"parameters": None, "frame_stack": None, "init": str(tmp_path / "first")}
        return plan_online(store, tmp_path / "new", **PPO | PIXELS | other | changes)

    assert (plan().network, plan().parameters) == (first.network, first.parameters)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"frame_stack": 3}, "--frame-stack 3: --init .* with --frame-stack 2, and keeps it"),
        ({"parameters": 60_000}, "--parameters 60000: --init .* with --parameters 50000"),
    ]
    for change, message in refused:
        with pytest.raises(UsageError, match=message):
            plan(**change)


@pytest.mark.parametrize("recorded", [PPO], indirect=True)
def test_init_takes_the_torso_and_with_the_same_algorithm_everything(recorded, store, tmp_path):
    old = load_file(checkpoint.latest(recorded.run / "checkpoints"))
    for flags, prefix in ((PPO, ""), (DQN, "torso.")):
        config = plan_online(store, tmp_path / "run", **flags, init=str(recorded.run))
        network = make_network(config, config.model_windows, config.shapes)
        warm_start(config, network)
        for name, tensor in network.state_dict().items():
            if name.startswith(prefix):
                np.testing.assert_array_equal(tensor.numpy(), old[f"online.{name}"])
    begin(tmp_path / "run", config)
    assert train_playing(tmp_path / "run", config).steps == STEPS


@pytest.mark.parametrize("recorded", [PPO], indirect=True)
def test_an_added_model_is_normalized_and_the_others_stay_as_they_were(recorded, store, tmp_path):
    config = plan_online(
        store, tmp_path / "run", **PPO, init=str(recorded.run), models=(), add=("palette",)
    )
    begin(tmp_path / "run", config)
    old = load_file(checkpoint.latest(recorded.run / "checkpoints"))
    train_playing(tmp_path / "run", config)
    new = load_file(checkpoint.latest(tmp_path / "run" / "checkpoints"))
    moments = [f"online.torso.normalizers.{{}}.{name}" for name in ("mean", "deviation")]
    added = len(config.inputs) - 1
    for name, initial in zip(moments, (0, 1), strict=True):
        for i in range(added):
            np.testing.assert_array_equal(new[name.format(i)], old[name.format(i)])
        assert (new[name.format(added)] != initial).any()


def test_stored_data_of_another_protocol_is_not_mixed_in(store, tmp_path):
    flags = {**DQN, "max_episode_steps": None, "offline_fraction": 0.5}

    def refuse(message):
        with pytest.raises(UsageError, match=message):
            plan_online(store, tmp_path / "run", **flags)

    refuse(r"no data of Breakout under .* wsa collect --game Breakout")
    for protocol, message in (
        ("v5", "under another protocol: protocol v5 .*--protocol"),
        ("classic", "Encode"),
    ):
        rules = ProtocolOptions(protocol)  # type: ignore[arg-type]
        options = CollectOptions(
            store=str(store), game="Breakout", steps=4, num_envs=1, json=True, rules=rules
        )
        assert collect(options) == 0
        refuse(message)


def collect_with(store, run, epsilon, **changes):
    """What `wsa collect --policy` stores of its first two environments."""
    details: dict[str, Any] = {"steps": 40, "num_envs": 2, **changes}
    options = CollectOptions(
        store=str(store), game="Breakout", policy=str(run), json=True, **details,
        run_policy=RunPolicyOptions(epsilon), rules=ProtocolOptions(segment_steps=20),
    )  # fmt: skip
    assert collect(options) == 0
    snapshot = take_snapshot(open_store(str(store)))
    return sorted(
        (m.run, m.policy, m.env, m.start, snapshot.read_rows(m)["action"].tobytes())
        for m in snapshot.segments("Breakout")
        if m.env < 2
    )


def test_a_trained_run_collects_as_a_behavior_policy(recorded, store, tmp_path):
    wide, short = (Path(shutil.copytree(store, tmp_path / name)) for name in ("wide", "short"))
    played = collect_with(store, recorded.run, 0.3)
    newest = checkpoint.latest(recorded.run / "checkpoints").read_bytes()
    policy = f"{recorded.flags['algo']} {hashing.checksum(newest)[:12]} eps 0.3"
    assert {row[1] for row in played} == {policy}
    assert len({row[0] for row in played}) == 1 and len(played) == 2
    if not recorded.flags.get("recurrent"):  # The network matters only where it remembers.
        return
    # An environment's play depends neither on its neighbors nor on an interruption.
    assert collect_with(wide, recorded.run, 0.3, num_envs=3, steps=60) == played
    half = collect_with(short, recorded.run, 0.3, steps=20)
    assert len(half) == 2 and half != played
    resumed = collect_with(short, recorded.run, 0.3)
    assert {row[:3] for row in resumed} == {row[:3] for row in played}
    assert collect_with(store, recorded.run, 0.3) == played  # Nothing is left to do.
    assert len({row[0] for row in collect_with(store, recorded.run, 0.4)}) == 2


def test_a_resumed_run_keeps_its_engine(store, tmp_path, monkeypatch):
    fastest = "torch"
    time_it = Engines._time

    def time_engine(engines, engine, precision):
        _, shown = time_it(engines, engine, precision)
        return 2.0 if engine == fastest else 1.0, shown

    monkeypatch.setattr(Engines, "_time", time_engine)
    monkeypatch.setattr("wsa.encode.inference.engines.offered", lambda *how: ["torch", "openvino"])
    flags = {
        **PPO,
        "total_timesteps": 64,
        "save_frequency": 16,
        "models": ("timm:test_vit.r160_in1k:random",),
    }
    config, _ = train_online(store, tmp_path / "whole", **flags)
    begin(tmp_path / "resumed", config)
    with killed_at_checkpoint(32):
        train_playing(tmp_path / "resumed", config)
    fastest = "openvino"
    train_playing(tmp_path / "resumed", config)
    assert read_metrics(tmp_path / "resumed") == read_metrics(tmp_path / "whole")
