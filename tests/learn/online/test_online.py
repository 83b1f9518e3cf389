"""Online runs on the emulator with a small random model, from options to evaluation."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from command_kit import options as parsed
from safetensors.numpy import load_file

from wsa.encode.inference import engines
from wsa.encode.inference.encoder import Encoder
from wsa.encode.registration import register
from wsa.encode.registration.register import open_model, open_models
from wsa.encode.registration.select import choose_models
from wsa.learn.commands import collect as collect_module
from wsa.learn.commands.learn import plan_run
from wsa.learn.configs.data import CollectOptions, ProtocolOptions, RunPolicyOptions
from wsa.learn.configs.learn import LearnOptions
from wsa.learn.envs import atari as games
from wsa.learn.evaluation import periodic
from wsa.learn.evaluation.rollout import EVAL_SEED
from wsa.learn.online.embedding_table import Table
from wsa.learn.runs.config import OnlineRun
from wsa.learn.runs.data import make_embedder, open_data
from wsa.learn.runs.evaluate import evaluate_run
from wsa.learn.runs.folder import begin
from wsa.learn.runs.network import make_network
from wsa.learn.runs.setup import online as setup
from wsa.learn.runs.train import train_playing
from wsa.learn.runs.warm_start import warm_start
from wsa.learn.training import checkpoint
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError, MissingError, Terminated, UsageError
from wsa.store.maintenance.verify import verify
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

MODEL = "timm:test_resnet.r160_in1k:random"
PPO: dict[str, Any] = {
    "algo": "ppo", "total_timesteps": 96, "num_envs": 2, "num_steps": 8, "num_minibatches": 2,
    "update_epochs": 2,
}  # fmt: skip
DQN: dict[str, Any] = {
    "algo": "dqn", "total_timesteps": 96, "num_envs": 2, "learning_starts": 16, "batch_size": 8,
    "train_frequency": 4, "target_network_frequency": 16,
}  # fmt: skip

RECURRENT: dict[str, Any] = {**PPO, "recurrent": True, "hidden": None}
# Less what `options` gives of models.
PIXELS: dict[str, Any] = {
    "fusion": "nature", "models": None, "output": None, "fusion_size": None, "hidden": None
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has the model, and nothing of the game."""
    store = tmp_path_factory.mktemp("registered") / "store"
    configure(options(store, store.parent / "run", **PPO), "cpu")
    return store


@pytest.fixture
def here(registered: Path, tmp_path: Path) -> Path:
    """A folder with such a store."""
    for name in ("store", "other"):
        shutil.copytree(registered, tmp_path / name, copy_function=os.link)
    return tmp_path


def options(store: Path, folder: Path, **changes: Any) -> LearnOptions:
    details: dict[str, Any] = {
        "store": str(store), "game": "Breakout", "online": True, "models": (MODEL,), "output": "grid:5+pca:64",
        "fusion_size": 16, "hidden": ("16",), "frame_stack": 2, "run_dir": str(folder), **changes,
    }  # fmt: skip
    return parsed("learn", **details)


def configure(o: LearnOptions, device: str) -> tuple[Any, Path]:
    return plan_run(o, device)[1:]


def train(store: Path, folder: Path, **changes: Any) -> tuple[OnlineRun, Any]:
    config, folder = configure(options(store, folder, **changes), "cpu")
    begin(folder, config)
    return config, train_playing(folder, config, "cpu")


@pytest.mark.parametrize(
    "algo", [PPO, *(pytest.param(a, marks=pytest.mark.slow) for a in (DQN, RECURRENT))]
)
def test_a_run_from_end_to_end(here: Path, algo: dict[str, Any], read_metrics: Any) -> None:
    """At most a pass a distinct frame; recorded, so that the next run needs none at all."""
    before = Encoder.total_passes
    algo = {**algo, "max_episode_steps": 60}  # It is evaluated, too.
    config, played = train(here / "store", here / "one", **algo, record=True)
    line = [li for li in read_metrics(here / "one") if "cache/hit_rate" in li][-1]
    assert played.steps == 96 and played.passes == line["cache/backbone_passes"]
    assert 0 < played.passes <= line["cache/distinct_frames"] <= 96 + 4
    assert Encoder.total_passes - before >= played.passes
    backend = open_store(str(here / "store"))
    report = verify(backend)
    assert not report.damage and not report.leftovers
    snapshot = take_snapshot(backend)
    assert sum(m.steps for m in snapshot.segments("Breakout")) == 96
    assert snapshot.models_of("Breakout") == list(config.models)
    frames = {d.tobytes() for m in snapshot.segments() for d in snapshot.read_digests(m)}
    assert len(frames) == line["cache/distinct_frames"]
    # The store tells who ran what, each pass once.
    embedded = snapshot.embeddings("Breakout")
    assert sum(m.passes for m in embedded) == played.passes == len(frames)
    assert all(m.passes + m.copied == m.shape[0] for m in embedded)
    assert sum(m.seconds for m in embedded) > 0
    engine = open_model(snapshot, config.models[0]).engine.name
    assert {m.engine for m in embedded} == {engine}
    # The same seeds again, in the store that now has it all.
    again, replayed = train(here / "store", here / "two", **algo)
    assert len(again.segments) == len(snapshot.segments())
    assert replayed.passes == 0 and replayed.hit_rate == 1.0
    # Whoever plays it, plays it.
    seen = evaluate_run(here / "one", 1, epsilon=1.0, num_envs=1)
    assert seen.updates == 96 and len(seen.episodes) == 1
    changed = evaluate_run(here / "one", 1, epsilon=1.0, num_envs=1, variant="look:invert")
    # The same play, as it was random, of frames that are not in the store.
    assert changed.episodes == seen.episodes
    assert changed.live.found == 0 < changed.live.passes


@pytest.mark.parametrize("algo", [PPO, pytest.param(DQN, marks=pytest.mark.slow)])
def test_the_end_to_end_baseline_is_the_same_code(here: Path, algo: dict[str, Any]) -> None:
    changes = {**algo, **PIXELS, "frame_stack": 4, "parameters": 50_000, "record": True}
    changes["max_episode_steps"] = 60
    config, played = train(here / "store", here / "run", **changes)
    assert played.passes == 0
    snapshot = take_snapshot(open_store(config.store))
    assert sum(m.steps for m in snapshot.segments()) == 96 and not snapshot.embeddings("Breakout")
    network = make_network(config, config.model_windows, config.shapes)
    count = sum(p.numel() for p in network.parameters())
    assert 49_000 < count <= 50_000
    whole = make_network(msgspec.structs.replace(config, parameters=0), (), ())
    actions = 4 + (algo is PPO)
    assert sum(p.numel() for p in whole.parameters()) == 1_684_128 + actions * 513
    assert evaluate_run(here / "run", 1, epsilon=1.0, num_envs=1).live.passes == 0
    evaluate_run(here / "run", 1, epsilon=1.0, num_envs=1, variant="mode=12+noise=0.1")


@pytest.mark.parametrize(
    ("algo", "killed_at", "stretch"),
    [
        (DQN, (40,), 16),
        *(pytest.param(algo, (40, 70), 10, marks=pytest.mark.slow) for algo in (PPO, DQN)),
    ],
)
def test_a_recorded_run_that_was_killed_continues(
    here: Path,
    algo: dict[str, Any],
    killed_at: tuple[int, ...],
    stretch: int,
    read_metrics: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wsa.learn.online.record_segments.SEGMENT_STEPS", stretch)
    changes = {**algo, "record": True, "save_frequency": 32}
    train(here / "store", here / "whole", **changes)
    config, folder = configure(options(here / "other", here / "run", **changes), "cpu")
    begin(folder, config)
    for step in killed_at:

        def kill(now: int, line: Any, step: int = step) -> None:
            if now >= step:
                raise RuntimeError("killed")

        if algo is DQN:
            kill = _killing_save(monkeypatch, step)
        with pytest.raises(RuntimeError, match="killed"):
            train_playing(folder, config, "cpu", kill)
        monkeypatch.undo()
        monkeypatch.setattr("wsa.learn.online.record_segments.SEGMENT_STEPS", stretch)
    train_playing(folder, config, "cpu")
    assert read_metrics(folder) == read_metrics(here / "whole")
    snapshots = [take_snapshot(open_store(str(here / name))) for name in ("store", "other")]
    one, other = ([m.start for m in s.segments()] for s in snapshots)
    assert sorted(one) == sorted(other)
    for snapshot in snapshots:
        assert sum(m.steps for m in snapshot.segments()) == 96
        assert snapshot.models_of("Breakout")
    rows = [
        sorted((m.env, m.start, s.read_rows(m)["digest"].tobytes()) for m in s.segments())
        for s in snapshots
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "algo",
    [
        PPO,
        *(
            pytest.param(a, marks=pytest.mark.slow)
            for a in (DQN, RECURRENT, {**PPO, **PIXELS, "frame_stack": 4})
        ),
    ],
)
def test_evaluations_on_the_way_move_nothing_of_the_training(
    here: Path, algo: dict[str, Any], read_metrics: Any
) -> None:
    """Neither of what is learnt nor of what is kept in a store."""
    short = {**algo, "max_episode_steps": 16, "record": True}
    train(here / "store", here / "plain", **short)
    before = Encoder.total_passes
    changes = {**short, "eval_frequency": 40, "eval_episodes": 2}
    config, trained = train(here / "other", here / "run", **changes)
    lines = read_metrics(here / "run")
    played = [line for line in lines if periodic.RETURN in line]
    assert [line["step"] for line in played] == [40 if algo is DQN else 48, 80, 96]
    last = [load_file(checkpoint.latest(here / n / "checkpoints")) for n in ("plain", "run")]
    assert last[0].keys() == last[1].keys()
    for name in last[0]:
        np.testing.assert_array_equal(last[0][name], last[1][name])
    kept = []
    for store in ("store", "other"):
        snapshot = take_snapshot(open_store(str(here / store)))
        told = [
            (
                *(m.env, m.start, snapshot.read_rows(m)["digest"].tobytes()),
                *(
                    snapshot.read_embedding("Breakout", key, m.segment).tobytes()
                    for key in snapshot.models_of("Breakout")
                ),
            )
            for m in snapshot.segments()
        ]
        kept.append(sorted(told))
    assert kept[0] == kept[1] and kept[0]
    assert [line for line in lines if line not in played] == read_metrics(here / "plain")
    assert all(line["eval/episodic_length"] == 16 for line in played)
    passes = sum(line["eval/backbone_passes"] for line in played)
    if config.end_to_end:
        assert passes == 0
        return
    assert 0 < passes <= 3 * 2 * 16 and Encoder.total_passes - before >= trained.passes + passes
    ours = [line for line in lines if "cache/backbone_passes" in line]
    assert ours[-1]["cache/backbone_passes"] == trained.passes


@pytest.mark.slow  # Offline it is tested each time.
@pytest.mark.parametrize("algo", [PPO, DQN, RECURRENT])
def test_an_evaluation_that_was_stopped_is_played_when_the_run_goes_on(
    here: Path, algo: dict[str, Any], read_metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**algo, "max_episode_steps": 20, "eval_frequency": 40, "eval_episodes": 1}
    train(here / "store", here / "whole", **short)
    config, folder = configure(options(here / "other", here / "stopped", **short), "cpu")
    begin(folder, config)
    real, steps = periodic.play, 0

    def interrupted(*arguments: Any, on_step: Any, **details: Any) -> Any:
        def stop(played: int, episodes: int) -> None:
            nonlocal steps
            steps += 1
            if steps in (10, 10 + 20 + 20 + 10):  # In the midst of the first, and of the third.
                signal.raise_signal(signal.SIGTERM)
            on_step(played, episodes)

        return real(*arguments, on_step=stop, **details)

    monkeypatch.setattr(periodic, "play", interrupted)
    for at in (40 if algo is DQN else 48, 96):
        with pytest.raises(Terminated):
            train_playing(folder, config, "cpu")
        assert checkpoint.latest(folder / "checkpoints").stem == f"{at:09d}"
    for _ in range(2):
        assert train_playing(folder, config, "cpu").steps == 0
    assert steps == 10 + 20 + 20 + 10 + 20

    def told(name: str) -> list[dict[str, Any]]:
        passes = "eval/backbone_passes"  # It depends on what this process has seen.
        return [{k: v for k, v in li.items() if k != passes} for li in read_metrics(here / name)]

    assert told("stopped") == told("whole")


def test_what_a_run_has_seen_costs_its_evaluations_nothing(here: Path) -> None:
    """Its own table is looked in first: greedy games that began as training's did."""
    changes = {**PPO, "max_episode_steps": 40, "seed": EVAL_SEED}
    config, _ = train(here / "store", here / "run", **changes)
    snapshot, flat = open_data(config)
    encoders = open_models(snapshot, config.inputs)
    known = make_embedder(config, flat, encoders)
    table = Table(here / "run" / "table", known)
    _, extra = checkpoint.load(checkpoint.latest(here / "run" / "checkpoints"), {})
    table.restore(extra["table"])
    env = games.make_env(config.game, config.protocol, 2)
    frames = games.pictures(env.reset(seed=EVAL_SEED)[0])
    env.close()
    live = make_embedder(config, flat, encoders, elsewhere=table.parts)
    before = live.passes
    rows = live(frames)
    assert live.passes == before and live.remembered == len(frames)
    np.testing.assert_array_equal(rows, known(frames))


def _killing_save(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[..., None]:
    """Let the run die at the checkpoint after a step."""
    real = checkpoint.save

    def save(folder: Path, at: int, *args: Any, **details: Any) -> Path:
        if at >= step:
            raise RuntimeError("killed")
        return real(folder, at, *args, **details)

    monkeypatch.setattr(checkpoint, "save", save)
    return lambda step, line: None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "exact"),
    [
        ({**PPO, "anneal_lr": False}, True),
        ({**DQN, "start_e": 0.1, "end_e": 0.1}, True),
        (PPO, False),
    ],
)
def test_a_run_with_more_steps_goes_on(
    here: Path, algo: dict[str, Any], exact: bool, caplog: pytest.LogCaptureFixture
) -> None:
    algo = {**algo, "record": True}
    train(here / "store", here / "short", **{**algo, "total_timesteps": 48})
    with caplog.at_level("INFO"):
        _, played = train(here / "store", here / "short", **algo)
    said = caplog.text
    assert "extended from 48 to 96 steps" in said
    assert ("as if it had started" if exact else "so the result differs") in said
    assert played.steps == 48
    assert not verify(open_store(str(here / "store"))).damage
    train(here / "other", here / "long", **algo)
    newest = [checkpoint.latest(here / run / "checkpoints") for run in ("short", "long")]
    one, other = map(load_file, newest)
    assert one.keys() == other.keys()
    same = all(np.array_equal(one[n], other[n]) for n in one if n.startswith("online."))
    assert same == exact


@pytest.mark.slow
def test_palette_is_of_the_game_that_is_played(here: Path) -> None:
    """Each game has its own in one store; runs of both train, evaluate, and find it by its alias."""
    changes = {**PPO, "total_timesteps": 48, "max_episode_steps": 60}
    changes |= {"models": ("palette", "objects"), "output": ""}
    for game in ("Breakout", "Pong"):
        config, played = train(here / "store", here / game, **changes, game=game, record=True)
        assert played.steps == 48 and played.passes > 0
        snapshot = take_snapshot(open_store(str(here / "store")))
        assert [read_spec(snapshot, key).game for key in config.models] == [game] * 2
        assert choose_models(snapshot, game, ["palette", "objects"]) == list(config.models)
        seen = evaluate_run(here / game, 1, epsilon=1.0, num_envs=1)
        assert len(seen.episodes) == 1
        # Colours that the game never has, as well.
        seen = evaluate_run(here / game, 1, num_envs=1, variant="look:palette=3+noise=0.1")
        assert len(seen.episodes) == 1 and seen.live.found == 0
    with pytest.raises(MissingError, match=r"--models palette$"):
        choose_models(snapshot, "Breakout", [config.models[0]])
    other = {**changes, "models": ("palette",), "output": "map+palette:5@Pong", "game": "Seaquest"}
    with pytest.raises(UsageError, match="another game, not Seaquest"):
        train(here / "store", here / "no", **other)


@pytest.mark.slow
def test_what_ran_the_models_is_recorded(here: Path) -> None:
    why_not = engines.why_not("openvino", torch.device("cpu"), "fp32")
    if why_not:
        pytest.skip(why_not)
    config, folder = configure(options(here / "store", here / "run", **PPO, record=True), "cpu")
    begin(folder, config)
    for engine in ("openvino", "torch"):
        train_playing(folder, config, "cpu", engine=engine)
        snapshot = take_snapshot(open_store(str(here / "store")))
        assert {m.engine for m in snapshot.embeddings("Breakout")} == {"openvino"}  # The first.


@pytest.fixture
def two_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few environments are two groups, as many are outside of tests."""
    monkeypatch.setattr(setup, "ENVS_OF_TWO_GROUPS", 2)


WINDOWED = (MODEL, "ae:random", "vos:random")


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(1, 2), (1, 2, 3)])
def test_a_run_is_the_same_with_any_number_of_threads(
    here: Path, counts: tuple[int, ...], read_metrics: Any, two_groups: None
) -> None:
    """Of models of several windows, in two groups of environments; and one is begun where it died."""
    changes = {**PPO, "models": WINDOWED, "output": None, "save_frequency": 32}
    config, folder = configure(options(here / "store", here / "1", **changes), "cpu")
    assert config.env_groups == 2
    networks = []
    for threads in counts:
        folder = here / str(threads)
        begin(folder, config)
        played = train_playing(folder, config, "cpu", threads=threads)
        networks.append(played.network.state_dict())
        assert read_metrics(folder) == read_metrics(here / "1")
        assert played.passes == read_metrics(folder)[-1]["cache/backbone_passes"] > 0
    for name, tensor in networks[0].items():
        assert all(torch.equal(tensor, other[name]) for other in networks[1:]), name


@pytest.mark.slow
def test_a_run_whose_engine_dies_can_be_resumed(
    here: Path, read_metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**PPO, "save_frequency": 32}
    train(here / "store", here / "whole", **changes)
    config, folder = configure(options(here / "store", here / "run", **changes), "cpu")
    begin(folder, config)
    real, left = Encoder.__call__, [60]

    def die(self: Encoder, frames: Any) -> Any:
        left[0] -= len(frames)
        if left[0] < 0:
            raise RuntimeError("the library crashed")
        return real(self, frames)

    monkeypatch.setattr(Encoder, "__call__", die)
    with pytest.raises(ConflictError, match=r"torch failed in the middle of play .* --resume RUN"):
        train_playing(folder, config, "cpu", threads=2)
    monkeypatch.undo()
    assert checkpoint.all_of(folder / "checkpoints")
    train_playing(folder, config, "cpu", threads=2)
    assert read_metrics(folder) == read_metrics(here / "whole")


def test_a_run_of_before_there_were_groups_plays_on_in_one(here: Path, two_groups: None) -> None:
    config, folder = configure(options(here / "store", here / "run", **PPO), "cpu")
    begin(folder, msgspec.structs.replace(config, env_groups=1))
    older = json.loads((folder / "config.json").read_text())
    del older["env_groups"]
    (folder / "config.json").write_text(json.dumps(older))
    again, _ = configure(options(here / "store", folder, **PPO), "cpu")
    assert config.env_groups == 2 and again.env_groups == 1
    begin(folder, again)  # It is that run.
    assert train_playing(folder, again, "cpu").steps == 96


@pytest.mark.slow
def test_the_same_command_goes_on_though_the_store_has_grown(here: Path) -> None:
    """By what the run itself has recorded, for one; and --init is needed at the beginning only."""
    store = here / "store"
    train(store, here / "first", **DQN)
    changes = {**DQN, "record": True, "init": str(here / "first"), "save_frequency": 32}
    config, folder = configure(options(store, here / "run", **changes), "cpu")
    begin(folder, config)
    with pytest.MonkeyPatch.context() as patch:
        _killing_save(patch, 64)
        with pytest.raises(RuntimeError, match="killed"):
            train_playing(folder, config, "cpu")
    assert take_snapshot(open_store(str(store))).segments("Breakout")
    again, _ = configure(options(store, here / "run", **changes), "cpu")
    assert again == config
    begin(folder, again)
    shutil.rmtree(here / "first")
    assert train_playing(folder, again, "cpu").steps == 64
    other = configure(options(here / "other", here / "run", **DQN, gamma=0.5), "cpu")[0]
    with pytest.raises(ConflictError, match="holds another run"):
        begin(folder, other)


def test_a_seed_is_not_spent_on_opening_models(
    here: Path, read_metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which draws random numbers, and is done elsewhere with --encoder."""
    train(here / "store", here / "one", **PPO, **PIXELS)
    real = register.open_models

    def drawing(*args: Any, **details: Any) -> Any:
        torch.rand(7)
        return real(*args, **details)

    monkeypatch.setattr(register, "open_models", drawing)
    train(here / "store", here / "two", **PPO, **PIXELS)
    assert read_metrics(here / "one") == read_metrics(here / "two")


def test_models_change_only_where_that_is_said(here: Path) -> None:
    store, first = here / "store", here / "first"
    begun, _ = train(store, first, **DQN)

    def begin(algo: Any = PPO, **changes: Any) -> OnlineRun:
        given: dict[str, Any] = {
            "fusion_size": 256,
            "hidden": ("256",),
            "frame_stack": 4,
            "models": (),
        }
        given |= {**algo, "init": str(first), **changes}
        return configure(options(store, here / "new", **given), "cpu")[0]

    config = begin()  # Models and network are that run's.
    assert (config.models, config.network) == (begun.models, begun.network)
    assert begin(models=(MODEL,)) == config
    refused: list[tuple[dict[str, Any], str]] = [
        ({"add": (MODEL,)}, "--add .*: the run already has this model"),
        ({"drop": begun.models}, "--drop leaves no model"),
        ({"fusion_size": 8}, "the network options differ"),
        ({"fusion": "nature", "fusion_size": None, "hidden": None}, "sees pixels"),
        ({"protocol": "v5", "algo": DQN}, "game and protocol"),
        ({"init": "", "drop": begun.models}, "name the run with --init"),
    ]
    for change, says in refused:
        with pytest.raises(UsageError, match=says):
            begin(**change)
    changed = (first / "config.json").read_text().replace(begun.models[0], "lite0-0123456789ab")
    (first / "config.json").write_text(changed)
    with pytest.raises(UsageError, match=r"--models differ from those of .* --add and --drop"):
        begin(models=(MODEL,))


def test_data_of_another_protocol_is_not_mixed_in(here: Path) -> None:
    wanted = options(here / "store", here / "run", **DQN, offline_fraction=0.5)
    with pytest.raises(
        UsageError, match=r"no data of Breakout under .* wsa collect --game Breakout"
    ):
        configure(wanted, "cpu")
    for protocol, says in (
        ("v5", "under another protocol: protocol v5 .*--protocol"),
        ("classic", "Encode"),
    ):
        collect = CollectOptions(
            store=str(here / "store"), game="Breakout", steps=4, num_envs=1, json=True,
            rules=ProtocolOptions(protocol),  # type: ignore[arg-type]
        )  # fmt: skip
        assert collect_module.collect(collect) == 0
        with pytest.raises(UsageError, match=says):
            configure(wanted, "cpu")


def test_ppo_begins_with_an_offline_torso(here: Path) -> None:
    store = here / "store"
    train(store, here / "first", **{**DQN, "total_timesteps": 32})
    ppo = {**PPO, "total_timesteps": 32, "init": str(here / "first")}
    config, _ = configure(options(store, here / "second", **ppo), "cpu")
    network = make_network(config, config.model_windows, config.shapes)
    warm_start(config, network)
    old = checkpoint.read(Path(config.init))[0]
    for name, tensor in network.state_dict().items():
        if name.startswith("torso."):
            assert torch.equal(tensor, old[f"online.{name}"])
    same, _ = configure(options(store, here / "third", **DQN, init=str(here / "first")), "cpu")
    network = make_network(same, same.model_windows, same.shapes)
    warm_start(same, network)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, old[f"online.{name}"])
    assert train_playing(here / "second", config, "cpu").steps == 32
    shutil.rmtree(here / "second")


@pytest.mark.parametrize(
    "change",
    [
        {"algo": "cql"}, {"algo": "ppo", "parameters": 5},
        {"algo": "ppo", "fusion": "nature", "fusion_size": 256, "hidden": ("256",)}, {"algo": "dqn", "offline_fraction": 1.5},
        {"algo": "ppo", "add": ("vit",)}, {"algo": "dqn", "clip_coef": 0.3},
    ],
)  # fmt: skip
def test_options_that_exclude_each_other(here: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        configure(options(here / "store", here / "run", **change), "cpu")


def collected(store: Path, policy: Path, eps: float, **changes: Any) -> list[tuple[Any, ...]]:
    """What `wsa collect --policy` has of the first two environments."""
    details: dict[str, Any] = {"steps": 60, "num_envs": 2, "segment_steps": 30, **changes}
    rules = ProtocolOptions(segment_steps=details.pop("segment_steps"))
    assert (
        collect_module.collect(
            CollectOptions(
                store=str(store),
                game="Breakout",
                policy=str(policy),
                json=True,
                **details,
                run_policy=RunPolicyOptions(eps),
                rules=rules,
            )
        )
        == 0
    )
    snapshot = take_snapshot(open_store(str(store)))
    return sorted(
        (m.run, m.policy, m.env, m.start, s.tobytes())
        for m in snapshot.segments("Breakout")
        for s in [snapshot.read_rows(m)["action"]]
        if m.env < 2
    )


@pytest.mark.parametrize(
    "algo",
    [DQN, *(pytest.param(a, marks=pytest.mark.slow) for a in (RECURRENT, {**PPO, **PIXELS}))],
)
def test_a_trained_run_plays_as_a_behaviour_policy(here: Path, algo: dict[str, Any]) -> None:
    train(here / "store", here / "run", **algo)
    fresh = [here / name for name in "abc"]
    for store in fresh:
        shutil.copytree(here / "other", store)
    one = collected(fresh[0], here / "run", 0.3)
    digest = hashing.checksum(checkpoint.latest(here / "run" / "checkpoints").read_bytes())[:12]
    assert {row[1] for row in one} == {f"{algo['algo']} {digest} eps 0.3"}
    assert len({row[0] for row in one}) == 1 and len(one) == 2
    if algo is not RECURRENT:  # The rest is not of the network.
        return
    # Neither how many play beside it, nor an interruption, changes what an environment plays.
    assert collected(fresh[1], here / "run", 0.3, num_envs=3, steps=90) == one
    half = collected(fresh[2], here / "run", 0.3, steps=40, segment_steps=30)
    assert len(half) == 2 and half != one
    assert {r[:3] for r in collected(fresh[2], here / "run", 0.3)} == {r[:3] for r in one}
    assert collected(fresh[0], here / "run", 0.3) == one  # Nothing is left to do.
    assert len({row[0] for row in collected(fresh[0], here / "run", 0.4)}) == 2
