"""`wsa export` and `wsa import`: data leaves a store as plain arrays, and comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from command_kit import COLLECT, ENCODE

from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot


def read_play(store):
    """Every environment's steps: before, after, action, reward, lives, terminated, truncated."""
    snapshot = take_snapshot(open_store(str(store)))
    play: dict[Any, list[list[Any]]] = {}
    for meta in snapshot.segments("Breakout"):
        rows = snapshot.read_rows(meta)
        digest = rows["digest"][rows["frame"]]
        steps = play.setdefault((meta.run, meta.env), [])
        for i in np.flatnonzero(rows["action"] >= 0):
            columns = ("action", "reward", "lives", "terminated", "truncated")
            around = [digest[i].tobytes(), digest[i + 1].tobytes()]
            steps.append([*around, *(rows[name][i].item() for name in columns)])
    return [play[key] for key in sorted(play)]


@pytest.mark.slow
def test_exported_play_is_imported_unchanged(wsa, tmp_path):
    """Episodes that ended either way come back; play that was cut is a truncated episode then."""
    collect = ("collect", "--game", "Breakout", "--steps", 600, "--num-envs", 2)
    assert wsa(*collect, "--segment-steps", 90, "--max-episode-steps", 180).code == 0
    assert wsa("export", "x.zarr", "--game", "Breakout", "--frames").code == 0
    imported = ("import", "arrays", "x.zarr", "--store", "other", "--json")
    assert wsa(*imported).json["steps"] == 600
    before, (after,) = read_play(tmp_path / "store"), read_play(tmp_path / "other")
    expected = [step for steps in before for step in steps]
    for end in (299, 599):  # Where an environment stopped.
        assert not expected[end][5]
        expected[end][6] = True
    assert after == expected
    assert {step[5] for step in after} == {step[6] for step in after} == {False, True}
    # The export says how it was played and by whom.
    stores = [open_store(str(tmp_path / name)) for name in ("store", "other")]
    metas = [take_snapshot(store).segments("Breakout")[0] for store in stores]
    assert metas[0].protocol == metas[1].protocol and metas[1].policy == "random"
    assert wsa(*imported).json["segments"] == 0
    # The same frames: their embeddings are copied, not computed.
    assert wsa(*ENCODE).code == wsa("merge", "store", "--store", "other").code == 0
    encoded = wsa(*ENCODE, "--store", "other", "--json").json
    assert encoded["passes"] == 0 and encoded["copied"] > 0


def test_an_export_has_every_row_and_says_where_it_is_from(filled, key, unchanged):
    import xarray

    with unchanged():
        plan = filled("export", "x.zarr", "--game", "Breakout", "--dry-run", "--json").json
    assert (plan["models"], plan["segments"], plan["frames"]) == ([key], 4, 196)
    outcome = filled("export", "x.zarr", "--game", "Breakout", "--models", "test_resnet_r160_in1k")
    assert outcome.code == 0, outcome.err
    table = xarray.open_zarr("x.zarr")
    assert table.sizes["frame"] == 196 and table.sizes["row"] == 202
    assert "frames" not in table and table[key].attrs["license"] == "none: random weights"
    attributes: Any = zarr.open_group("x.zarr", mode="r").attrs.asdict()
    assert attributes["models"][key]["timm_name"]
    with unchanged():
        for command, code in (
            ("x.zarr --game Breakout", 4),
            ("x.zarr --game Breakout --dry-run", 4),
            ("y.zarr --game Pong", 3),
            ("y.zarr --game Breakot", 2),
            ("y.zarr --game Breakout --models vit", 3),
        ):
            assert filled("export", *command.split()).code == code


def test_an_export_leaves_out_models_that_have_not_encoded_everything(filled, key):
    assert filled(*COLLECT[:3], "--steps", 216, *COLLECT[5:]).code == 0
    outcome = filled("export", "x.zarr", "--game", "Breakout", "--json")
    assert outcome.json["models"] == []
    assert f"left out, because they have not encoded every segment: {key}" in outcome.err


def test_an_import_names_what_the_file_lacks(wsa):
    np.savez("x.npz", actions=np.zeros(3, np.int64))
    outcome = wsa("import", "arrays", "x.npz")
    assert outcome.code == 2 and "there is no array rewards and no terminations" in outcome.error
    assert wsa("import", "arrays", "y.npz").code == 3
    assert wsa("import", "pictures", "x.npz").code == 2


def test_an_export_that_lost_bytes_is_not_imported(wsa, tmp_path):
    """Plain Zarr reads a missing chunk as zeros, which are black frames."""
    assert wsa("collect", "--game", "Breakout", "--steps", "8", "--num-envs", "1").code == 0
    assert wsa("export", "x.zarr", "--game", "Breakout", "--frames").code == 0
    frames = (tmp_path / "x.zarr" / "frames").rglob("*")
    chunk = next(p for p in frames if "json" not in p.name and p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-30])
    for message in ("frames cannot be read", "is not the one whose digest it has"):
        refused = wsa("import", "arrays", "x.zarr", "--store", "new")
        assert refused.code == 2
        assert message in refused.err and "Traceback" not in refused.err
        assert not (tmp_path / "new").exists()
        chunk.unlink(missing_ok=True)
