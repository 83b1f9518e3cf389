"""`import wsa`: what the commands do, as functions and objects."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import wsa
from wsa.learn.configs.algorithms import PPOConfig
from wsa.learn.configs.learn import LearnOptions, PlayOptions, learn_options
from wsa.learn.data.transitions import OfflineBatches
from wsa.store.api.keywords import as_flags, fill
from wsa.store.objects.root import open_store

ROOT = Path(__file__).parents[3]
MODEL = "timm:test_resnet.r160_in1k:random"
KEY = "test_resnet_r160_in1k"
STEPS = 64


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A folder with a little Breakout, encoded, and a run of three updates, and what that returned."""
    folder = tmp_path_factory.mktemp("api")
    store = folder / "store"
    returned = {
        "collect": wsa.collect(
            "Breakout", store=store, steps=STEPS, num_envs=2, segment_steps=16, max_episode_steps=20
        ),
        "encode": wsa.encode(store=store, models=[MODEL], output="pooled", scheduler="inproc"),
        "learn": wsa.learn(
            "Breakout", store=store, models=KEY, updates=3, log_frequency=1, run_dir=folder / "run"
        ),
    }
    return folder, returned


@pytest.fixture
def store(played):
    return wsa.open(played[0] / "store")


@pytest.fixture(scope="module")
def run(played):
    return wsa.load_run(played[0] / "run", device="cpu")


@pytest.fixture(scope="module")
def screens(run):
    env = run.env(2)
    seen = [env.reset(seed=3)[0]]
    seen += [env.step(np.array([1, 2]))[0] for _ in range(5)]
    env.close()
    return [each.copy() for each in seen]


def test_every_public_name_exists_and_has_a_docstring():
    assert list(wsa.__all__) == sorted(wsa.__all__) and set(wsa.__all__) <= set(dir(wsa))
    for name in wsa.__all__:
        assert getattr(wsa, name) is getattr(wsa, name)
        if name != "__version__":
            assert inspect.getdoc(getattr(wsa, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(wsa, "nothing")  # noqa: B009


def test_type_checkers_see_every_public_name():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    typed = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(wsa.__all__) <= typed


def test_importing_wsa_and_opening_a_store_imports_no_torch(on_disk):
    code = (
        f"import sys, wsa; s = wsa.open({on_disk.url!r}); print(s.games, s.models, s.segments());"
        "print(*sorted({'torch', 'timm', 'dask', 'pandas', 'xarray', 'ale_py'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[] [] []\n\n"


def test_functions_do_not_hide_the_packages_of_the_same_name():
    import wsa.encode.jobs
    import wsa.learn.runs

    assert wsa.encode.jobs and wsa.learn.runs and inspect.ismodule(wsa.encode)


def test_functions_return_what_commands_print(played, capsys):
    from wsa.cli import main

    folder, returned = played
    assert returned["collect"]["steps"] == STEPS and returned["encode"]["objects"] == 4
    assert returned["learn"]["run"] == str(folder / "run") and returned["learn"]["updates"] == 3
    again = wsa.collect("Breakout", store=folder / "store", steps=STEPS, num_envs=2,
                        max_episode_steps=20)  # fmt: skip
    encoded = wsa.encode(store=folder / "store", models=MODEL, output="pooled", scheduler="inproc")
    evaluated = wsa.evaluate(folder / "run", episodes=1, num_envs=1)
    assert tuple(capsys.readouterr()) == ("", "")
    assert again["segments"] == 0 and encoded["passes"] == 0 and encoded["present"] == 4
    assert main(["eval", str(folder / "run"), "--episodes=1", "--num-envs=1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == evaluated.keys()
    assert printed["return_mean"] == evaluated["return_mean"] and evaluated["episodes"] == 1


def test_a_dry_run_does_nothing(tmp_path):
    plan = wsa.collect("Pong", store=tmp_path / "none", steps=100, dry_run=True)
    assert plan["steps"] == 104 and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"update": 3}, "has no option 'update'. Did you mean updates"),
        ({"json": True}, "has no option 'json'"),
        ({"updates": "many"}, "wsa.learn(updates=...) cannot be 'many': Expected `int`"),
        ({"updates": 0}, "--updates must be at least 1"),
        ({"models": None}, "wsa.learn(models=...) cannot be None: Expected `array`"),
        ({"weights": 3.5}, "wsa.learn(weights=...) cannot be [3.5]: Expected `str`"),
        ({"fusion": "wsb"}, "wsb"),
        ({"clip_coef": 0.1}, "--clip-coef is an option of --algo ppo with --online"),
        ({"algo": "ppo"}, "--algo ppo needs --online"),
        ({"game": "Pongg"}, "Did you mean Pong"),
    ],
)
def test_options_are_refused_as_on_the_command_line(tmp_path, given, said):
    options = {"game": "Breakout", "run_dir": tmp_path / "run", **given}
    with pytest.raises(wsa.UsageError) as refused:
        wsa.learn(store=tmp_path, **options)
    assert said in str(refused.value) and not (tmp_path / "run").exists()


def test_the_service_is_a_command_only(tmp_path):
    with pytest.raises(wsa.UsageError, match="has no option 'watch'"):
        wsa.encode(store=tmp_path, watch=True)


def test_keywords_fill_every_group_of_options():
    given = {
        "online": True, "algo": "ppo", "models": ["a", "b"], "weights": {"a": Path("x"), "b": "y"},
        "fusion_size": 64, "layer_norm": False, "hidden": 32, "eval_frequency": np.int64(5),
        "num_envs": 4, "record": True, "init": Path("runs/a"), "threads": 2,
    }  # fmt: skip
    options = fill(learn_options(as_flags(given)), given, "wsa.learn")
    assert isinstance(options, LearnOptions) and options.models == ("a", "b")
    assert options.live.weights == ("a=x", "b=y") and options.live.threads == 2
    network = msgspec.to_builtins(options.network)
    assert network["fusion"]["size"] == 64 and network["fusion"]["layer_norm"] is False
    assert tuple(network["hidden"]) == (32,) and options.evaluation.eval_frequency == 5
    assert options.start.init == "runs/a"
    assert isinstance(options.algorithm, PPOConfig) and options.algorithm.num_envs == 4
    assert isinstance(options.data, PlayOptions) and options.data.record


def test_embeddings_are_views_of_the_stored_ones(store):
    assert store.games == ["Breakout"] and store.describe(KEY)["model"].startswith(KEY)
    data = store.data("Breakout")
    embeddings = data.embeddings()
    assert isinstance(embeddings, np.memmap)
    assert np.shares_memory(embeddings, data.flat.embeddings)
    assert len(data) == len(data.steps) == STEPS
    rows = data.rows[data.steps]
    (segment, *_) = store.segments("Breakout")
    stored = store.snapshot.read_embedding("Breakout", data.models[0], segment.segment)
    at = store.snapshot.read_rows(segment)
    of_segment = embeddings[rows["frame"][: segment.steps]]
    np.testing.assert_array_equal(of_segment, stored[at["frame"][at["action"] >= 0]])
    np.testing.assert_array_equal(store.embeddings("Breakout", KEY), embeddings)
    np.testing.assert_array_equal(data.dask().compute(), embeddings)
    table = data.xarray()
    np.testing.assert_array_equal(table[data.models[0]].values, embeddings)
    assert np.shares_memory(table[data.models[0]].values, embeddings)
    assert table["action"].dims == ("row",) and table.attrs["game"] == "Breakout"
    assert store.frames(segment).shape[1:] == (210, 160, 3)
    with pytest.raises(wsa.UsageError, match="vit is not one of"):
        data.embeddings("vit")
    with pytest.raises(wsa.MissingError, match="no model vit"):
        store.describe("vit")


def test_transitions_are_what_training_draws(store):
    data = store.data("Breakout")
    items = wsa.Transitions(data, n_step=2, frame_stack=3)
    assert len(items) == STEPS and items.columns == {data.models[0]: slice(0, 96)}
    wanted = OfflineBatches(data.flat, 3, 4, 0, n_step=2, clip=True).of(data.steps[:4])
    loaded = next(iter(DataLoader(items, batch_size=4)))
    for name in ("states", "following", "actions", "rewards", "discounts"):
        torch.testing.assert_close(loaded[name], getattr(wanted, name), rtol=0, atol=0)
        torch.testing.assert_close(items[3][name], getattr(wanted, name)[3], rtol=0, atol=0)
    kept = items[0]["states"].clone()
    _ = items[50]
    torch.testing.assert_close(items[0]["states"], kept)
    assert sum(1 for _ in items) == STEPS  # An IndexError ends a loop.
    with pytest.raises(wsa.UsageError):
        wsa.Transitions(data, frame_stack=9)
    with pytest.raises(wsa.UsageError):
        store.transitions("Breakout", n_step=0)


def test_an_embedding_dataset_has_each_frame_of_each_segment_once(store):
    items = store.embedding_dataset("Breakout", KEY)
    assert len(items) == sum(meta.frames for meta in store.segments("Breakout"))
    found = torch.stack(list(items)).numpy()
    np.testing.assert_array_equal(found, store.embeddings("Breakout", KEY))


def test_the_encoder_of_a_store_gives_the_stored_embeddings(store):
    (segment, *_) = store.segments("Breakout")
    found = store.encoder(KEY, device="cpu")(store.frames(segment)[:3])
    stored = store.snapshot.read_embedding("Breakout", store.models[0], segment.segment)[:3]
    np.testing.assert_array_equal(found.astype(np.float16), stored)


def test_an_encoder_of_one_game_is_found_by_its_game(store, monkeypatch):
    keys = ["palette-000000000001", "palette-000000000002"]
    games = dict(zip(keys, ("Pong", "Breakout"), strict=True))
    monkeypatch.setattr(type(store), "models", keys)
    monkeypatch.setattr(
        "wsa.learn.api.store.read_spec", lambda _, key: SimpleNamespace(game=games[key])
    )
    assert store._key("palette", "Breakout") == keys[1]
    with pytest.raises(wsa.UsageError, match="give the whole key, or its game"):
        store._key("palette")


def test_a_run_acts_alike_alone_and_beside_another(run, screens):
    assert run.game == "Breakout" and run.trained == 3 and run.unit == "updates"
    first = np.array([True, True])
    together = []
    for seen in screens:
        together.append(run.act(seen, first=first))
        first = np.array([False, False])
    assert run.weights is not None and run.weights.shape == (2, 1)
    for env in range(2):
        alone = [run.act(seen[env, 0], first=i == 0) for i, seen in enumerate(screens)]
        assert all(isinstance(action, int) for action in alone)
        assert alone == [int(actions[env]) for actions in together]


def test_act_refuses_games_that_did_not_begin_together(run, screens):
    run.act(screens[0][0, 0], first=True)
    with pytest.raises(wsa.UsageError, match="begin all games together"):
        run.act(screens[0], first=np.array([True, False]))
    for frames, first in (
        (screens[0][0, 0].astype(float), True),
        (screens[0][0, 0, :, :, 0], True),
        (screens[0], True),
    ):
        with pytest.raises(wsa.UsageError):
            run.act(frames, first=first)


def test_a_recurrent_run_forgets_where_an_episode_begins(tmp_path, played, screens):
    done = wsa.learn(
        "Breakout", store=played[0] / "store", online=True, algo="ppo", recurrent=True,
        models=KEY, num_envs=2, num_steps=4, num_minibatches=1, update_epochs=1,
        total_timesteps=8, run_dir=tmp_path / "run", max_episode_steps=20, frame_stack=1,
    )  # fmt: skip
    run = wsa.load_run(done["run"], device="cpu")

    def memory_after(*begins):
        for seen, first in zip(screens, begins, strict=False):
            run.act(seen[0, 0], first=first)
        policy: Any = run._policy
        return policy._memories[0][0].clone()

    one_episode = memory_after(True, False, False)
    assert not torch.equal(one_episode, memory_after(True, False, True))
    torch.testing.assert_close(
        memory_after(True, True, True), memory_after(True, False, True), rtol=0, atol=0
    )
    torch.testing.assert_close(memory_after(True, False, False), one_episode, rtol=0, atol=0)


def test_a_run_embeds_frames_one_by_one_and_together(run, store, screens):
    (key,) = run.models
    together = run.embed(np.stack([seen[0, 0] for seen in screens]))
    assert together[key].shape == (len(screens), 96)
    np.testing.assert_array_equal(run.embed(screens[1][0, 0])[key], together[key][1])
    encoder = store.encoder(KEY, device="cpu")
    np.testing.assert_array_equal(encoder(screens[0][:1, 0]).astype(np.float16), together[key][:1])


def test_metrics_are_a_table_and_need_pandas(run, monkeypatch):
    assert list(run.metrics["step"]) == [1, 2, 3] and "losses/td_loss" in run.metrics
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(wsa.MissingError, match="pip install pandas") as missing:
        _ = run.metrics
    assert missing.value.kind == "no-library"


def test_an_encoder_takes_any_image():
    encoder = wsa.encoder(MODEL, device="cpu")
    rng = np.random.default_rng(0)
    several = rng.integers(0, 256, (3, 50, 40, 3), np.uint8)
    together = encoder(several)
    assert together.shape == (3, 96) and encoder.window == 1 and "random" in encoder.license
    np.testing.assert_array_equal(encoder(several[1]), together[1])
    np.testing.assert_array_equal(encoder(Image.fromarray(several[1])), together[1])
    others = [several[0], Image.fromarray(several[1]), np.zeros((20, 30), np.uint8)]
    np.testing.assert_array_equal(encoder(others)[:2], together[:2])
    refused: tuple[Any, ...] = (several / 255, several[0, 0, 0], several[..., :2], [])
    for wrong in refused:
        with pytest.raises(wsa.UsageError):
            encoder(wrong)


def test_an_encoder_keeps_the_requested_output():
    assert wsa.encoder(MODEL, output="grid:2+rp:5", device="cpu")(
        np.zeros((9, 9, 3), np.uint8)
    ).shape == (5,)
    palette = wsa.encoder("palette", game="Pong", device="cpu")
    assert palette(np.zeros((210, 160, 3), np.uint8)).ndim == 1
    with pytest.raises(wsa.UsageError, match="fitted to each game"):
        wsa.encoder("palette")
    with pytest.raises(wsa.UsageError, match="frames of a store"):
        wsa.encoder(MODEL, output="map+pca:4@Pong")
    with pytest.raises(wsa.UsageError, match="did you mean vit"):
        wsa.encoder("vitt")


def test_a_missing_store_or_game_is_an_error(tmp_path):
    with pytest.raises(wsa.MissingError, match="There is no store"):
        wsa.open(tmp_path / "none")
    open_store(str(tmp_path / "empty"), create=True)
    with pytest.raises(wsa.MissingError, match="no frames of Pong"):
        wsa.open(tmp_path / "empty").data("Pong")
