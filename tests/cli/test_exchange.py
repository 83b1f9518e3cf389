"""Data that goes out of a store and comes into one, by the commands."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import numpy as np
import pytest
import xarray
import zarr

from wsa.learn.envs import atari as games
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

MODEL = "timm:test_resnet.r160_in1k:random"
ENCODE = ("encode", "--models", MODEL, "--output", "pooled", "--scheduler", "inproc")


def lines(store):
    """Every environment's steps as (run, env) -> what was seen, done, earned and ended."""
    snapshot = take_snapshot(open_store(str(store)))
    found = {}
    for meta in snapshot.segments("Breakout"):
        rows = snapshot.read_rows(meta)
        digest = rows["digest"][rows["frame"]]
        line = found.setdefault((meta.run, meta.env), [])
        for i in np.flatnonzero(rows["action"] >= 0):
            line.append(
                (
                    digest[i].tobytes(),
                    digest[i + 1].tobytes(),
                    *(rows[name][i].item() for name in ("action", "reward", "lives")),
                    rows["terminated"][i].item(),
                    rows["truncated"][i].item(),
                )
            )
    return [found[key] for key in sorted(found)]


@pytest.mark.slow
def test_collected_exported_and_imported_are_the_same(wsa, tmp_path):
    """Play with ends of both kinds comes back from an export as it was; an environment's play that
    was not over is a truncated episode then."""
    collect = ("collect", "--game", "Breakout", "--steps", 600, "--num-envs", 2)
    assert wsa(*collect, "--segment-steps", 90, "--max-episode-steps", 180).code == 0
    assert wsa("export", "x.zarr", "--game", "Breakout", "--frames").code == 0
    outcome = wsa("import", "arrays", "x.zarr", "--store", "other", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["steps"] == 600
    before, (after,) = lines(tmp_path / "store"), lines(tmp_path / "other")
    flat = [list(step) for line in before for step in line]
    for end in (299, 599):  # Where an environment stopped.
        assert not flat[end][5]
        flat[end][6] = True
    assert [list(step) for step in after] == flat
    assert {step[5] for step in after} == {step[6] for step in after} == {False, True}
    # The data say how it was played and by whom.
    stores = [open_store(str(tmp_path / name)) for name in ("store", "other")]
    metas = [take_snapshot(store).segments("Breakout")[0] for store in stores]
    assert metas[0].protocol == metas[1].protocol and metas[1].policy == "random"
    again = wsa("import", "arrays", "x.zarr", "--store", "other", "--json")
    assert json.loads(again.out)["segments"] == 0
    # The same frames: their embeddings are copied, not computed.
    assert wsa(*ENCODE).code == wsa("merge", "store", "--store", "other").code == 0
    encoded = json.loads(wsa(*ENCODE, "--store", "other", "--json").out)
    assert encoded["passes"] == 0 and encoded["copied"] > 0


@pytest.mark.slow
def test_imported_data_are_encoded_learned_from_and_verified(wsa, tmp_path):
    games.quiet_emulator()
    games.games()
    env = gymnasium.make("ALE/Breakout-v5", repeat_action_probability=0)
    generator = np.random.default_rng(1)
    columns: dict[str, Any] = {name: [] for name in ("observations", "actions", "rewards")}
    for episode in range(2):
        seen, _ = env.reset(seed=episode)
        for step in range(41):
            columns["observations"].append(seen)
            action = int(generator.integers(4)) if step < 40 else -1
            columns["actions"].append(action)
            reward = 0
            if action >= 0:
                seen, reward, *_ = env.step(action)
            columns["rewards"].append(reward)
    env.close()
    ends = np.zeros(82, np.bool_)
    np.savez("play.npz", **columns, terminations=ends, truncations=ends)
    bring = ("import", "arrays", "play.npz", "--game", "Breakout", "--policy", "mine")
    assert wsa(*bring).code == 2
    bring = (*bring, "--frame-skip", 4, "--sticky", 0, "--segment-steps", 32)
    dry = json.loads(wsa(*bring, "--dry-run", "--json").out)
    assert (dry["steps"], dry["missing"], dry["segments"], dry["episodes"]) == (80, 80, 3, 2)
    assert not (tmp_path / "store").exists()
    outcome = wsa(*bring)
    assert outcome.code == 0, outcome.err
    assert "protocol custom (sticky actions 0, up to 0 no-ops, 4 actions, skip 4" in outcome.err
    for command in (
        ENCODE,
        ("learn", "--game", "Breakout", "--updates", 3, "--run-dir", "run", "--batch-size", 4),
        ("verify",),
    ):
        outcome = wsa(*command)
        assert outcome.code == 0, outcome.err
    card = json.loads(wsa("show", "Breakout", "--json").out)
    assert card["policies"]["mine"]["episodes"] == 2
    assert card["protocols"][0]["name"] == "custom"


def test_export(filled, key, unchanged):
    with unchanged():
        dry = filled("export", "x.zarr", "--game", "Breakout", "--dry-run", "--json")
    plan = json.loads(dry.out)
    assert (plan["models"], plan["segments"], plan["frames"]) == ([key], 4, 196)
    outcome = filled("export", "x.zarr", "--game", "Breakout", "--models", "test_resnet_r160_in1k")
    assert outcome.code == 0, outcome.err
    table = xarray.open_zarr("x.zarr")
    assert table.sizes["frame"] == 196 and table.sizes["row"] == 202
    assert "frames" not in table and table[key].attrs["licence"] == "none: random weights"
    said: Any = zarr.open_group("x.zarr", mode="r").attrs.asdict()
    assert said["models"][key]["timm_name"]
    with unchanged():
        assert filled("export", "x.zarr", "--game", "Breakout").code == 4
        assert filled("export", "y.zarr", "--game", "Pong").code == 3
        assert filled("export", "y.zarr", "--game", "Breakot").code == 2
        assert filled("export", "y.zarr", "--game", "Breakout", "--models", "vit").code == 3


def test_export_leaves_out_models_that_have_not_encoded_everything(filled, key):
    more = ("collect", "--game", "Breakout", "--steps", "240", "--num-envs", "2")
    assert filled(*more).code == 0
    outcome = filled("export", "x.zarr", "--game", "Breakout", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["models"] == []
    assert f"left out, because they have not encoded every segment: {key}" in outcome.err


@pytest.mark.parametrize("by", ["game", "policy", "model", "author"])
def test_du(filled, by, unchanged):
    with unchanged():
        out = filled("du", "--by", by).out.splitlines()
        found = json.loads(filled("du", "--by", by, "--json").out)
    assert out[0].split() == [
        *(by, "objects", "frames", "screens", "rows", "embeddings", "models", "total", "compute"),
    ]
    assert out[-1].split()[:3] == ["total", "13", "196"]
    assert found["by"] == by and found["total"]["objects"] == 13


def test_du_tells_of_leftovers(filled, tmp_path):
    (tmp_path / "store" / "tmp").mkdir(exist_ok=True)
    (tmp_path / "store" / "tmp" / "half").write_bytes(bytes(2000))
    assert filled("du").out.splitlines()[-1] == "1 files that no record names: 2.0 kB"


def test_import_names_what_it_needs(wsa):
    np.savez("x.npz", actions=np.zeros(3, np.int64))
    outcome = wsa("import", "arrays", "x.npz")
    assert outcome.code == 2 and "there is no array rewards and no terminations" in outcome.error
    assert wsa("import", "arrays", "y.npz").code == 3
    assert wsa("import", "pictures", "x.npz").code == 2


@pytest.mark.parametrize("harm", ["lose", "cut"])
def test_an_export_that_lost_bytes_is_not_imported(wsa, tmp_path, harm):
    """Plain Zarr reads a chunk that is gone as zeros, which are black frames."""
    play = ("--game", "Breakout", "--steps", "40", "--num-envs", "1")
    assert wsa("collect", *play).code == 0
    assert wsa("export", "x.zarr", "--game", "Breakout", "--frames").code == 0
    chunk = next(
        p
        for p in (tmp_path / "x.zarr" / "frames").rglob("*")
        if "json" not in p.name and p.is_file()
    )
    chunk.unlink() if harm == "lose" else chunk.write_bytes(chunk.read_bytes()[:-30])
    refused = wsa("import", "arrays", "x.zarr", "--store", "new")
    assert refused.code == 2
    said = "is not the one whose digest it has" if harm == "lose" else "frames cannot be read"
    assert said in refused.err and "Traceback" not in refused.err
    assert not (tmp_path / "new").exists()
