"""A reader of the store that is written from docs/reference/format.md, with zarr, json and numpy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from blake3 import blake3
from command_kit import ENCODE, run_all

from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.run import encode
from wsa.store.objects.root import open_store

STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory, stacked):
    """A store of episodes that segments cut, encoded by a model of one frame and one of four."""
    folder = tmp_path_factory.mktemp("format")
    collect = ("collect", "--game", "Breakout", "--steps", STEPS, "--num-envs", 2,
               "--segment-steps", 14, "--max-episode-steps", 20)  # fmt: skip
    run_all(folder, collect, ENCODE)
    encode(open_store(str(folder / "store")), Encoding([stacked(4)]), scheduler="inproc")
    return folder / "store"


def records(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("commits/*/*.json"))]


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def place(meta):
    if meta["type"] in ("segment", "frames"):
        return f"games/{meta['game']}/{meta['type'].rstrip('s')}s/{meta['segment']}"
    if meta["type"] == "embedding":
        return f"games/{meta['game']}/embeddings/{meta['model']}/{meta['segment']}"
    return f"models/{meta['model']}"


def arrays(folder, record) -> dict[str, Any]:
    where = folder / place(record["meta"]) / record["attempt"]
    group = zarr.open_group(where, mode="r", zarr_format=3)
    return {name: array[:] for name, array in group.arrays()}


def test_the_state_is_the_union_of_the_records(folder):
    assert json.loads((folder / "wsa.json").read_text()) == {"format": 1}
    listed = set()
    for path in folder.glob("commits/*/*.json"):
        record = json.loads(path.read_text())
        identifier = blake3(place(record["meta"]).encode()).hexdigest()[:32]
        assert path.relative_to(folder).as_posix() == f"commits/{identifier[:2]}/{identifier}.json"
        assert record["version"] == 1
        assert re.fullmatch("[0-9a-f]{16}", record["attempt"])
        assert record["check"] == blake3(canonical({**record, "check": ""})).hexdigest()
        for file in record["files"]:
            path = f"{place(record['meta'])}/{record['attempt']}/{file['name']}"
            data = (folder / path).read_bytes()
            assert (len(data), blake3(data).hexdigest()) == (file["bytes"], file["blake3"])
            listed.add(path)
    there = {p.relative_to(folder).as_posix() for p in folder.glob("[gm]*/**/*") if p.is_file()}
    assert there == listed


def test_rows_and_frames_fit_together(folder):
    steps = 0
    frame_objects = {place(r["meta"]): r for r in records(folder) if r["meta"]["type"] == "frames"}
    for record in (r for r in records(folder) if r["meta"]["type"] == "segment"):
        meta, row = record["meta"], arrays(folder, record)
        of = frame_objects.pop(place({**meta, "type": "frames"}))
        shown = arrays(folder, of)
        assert (of["meta"]["frames"], of["meta"]["indexed"]) == (meta["frames"], True)
        frames = shown["frames"]
        assert frames.shape == (meta["frames"], of["meta"]["height"], of["meta"]["width"])
        rgb = shown["palette"][frames]
        assert [blake3(frame.tobytes()).digest(16) for frame in rgb] == [
            digest.tobytes() for digest in row.pop("digest")
        ]
        assert all(len(values) == meta["rows"] for values in row.values())
        taken = row["action"] >= 0
        assert taken.sum() == meta["steps"]
        steps += meta["steps"]
        assert not taken[-1]
        assert not taken[row["context"]].any()
        ended = np.flatnonzero(row["terminated"] | row["truncated"])
        assert (row["action"][ended + 1] == -1).all()
        assert len(ended) == len(meta["episodes"])
        assert row["frame"].max() == meta["frames"] - 1
    assert steps == STEPS
    assert not frame_objects


def test_embeddings_have_the_shapes_that_their_models_state(folder):
    specs = {}
    segments = {
        (r["meta"]["game"], r["meta"]["segment"]): r
        for r in records(folder)
        if r["meta"]["type"] == "segment"
    }
    for record in records(folder):
        if record["meta"]["type"] == "model":
            where = folder / place(record["meta"]) / record["attempt"]
            specs[record["meta"]["model"]] = json.loads((where / "spec.json").read_text())
    for record in (r for r in records(folder) if r["meta"]["type"] == "embedding"):
        meta = record["meta"]
        where = folder / place(meta) / record["attempt"]
        array = zarr.open_array(where, mode="r", zarr_format=3)
        assert list(array.shape) == meta["shape"]
        assert array.dtype == meta["dtype"]
        assert meta["passes"] + meta["copied"] == meta["shape"][0]
        of = segments[meta["game"], meta["segment"]]
        counted = "rows" if meta.get("window", 1) > 1 else "frames"
        assert meta["shape"][0] == of["meta"][counted]
        assert meta.get("window", 1) == specs[meta["model"]]["identity"]["window"]
        assert np.isfinite(array[:]).all()
        assert meta["seconds"] >= 0
        spec = specs[meta["model"]]
        assert spec["shape"] == meta["shape"][1:]
        identity = blake3(canonical(spec["identity"])).hexdigest()[:12]
        assert meta["model"] == f"{spec['alias']}-{identity}"


def windows(row, size):
    """The rows of the window at each row, as the page defines it."""
    windows_of_rows = []
    for at in range(len(row["is_first"])):
        begins = max((i for i in range(at + 1) if row["is_first"][i]), default=0)
        windows_of_rows.append([max(begins, at - back) for back in range(size - 1, -1, -1)])
    return windows_of_rows


def test_equal_windows_have_equal_embeddings_and_went_through_the_model_once(folder):
    seen = {}
    passes = cut = 0
    segments = {
        r["meta"]["segment"]: arrays(folder, r)
        for r in records(folder)
        if r["meta"]["type"] == "segment"
    }
    for record in records(folder):
        meta = record["meta"]
        if meta["type"] != "embedding" or "window" not in meta:
            continue
        row = segments[meta["segment"]]
        cut += row["context"].any()
        array = np.asarray(zarr.open_array(folder / place(meta) / record["attempt"], mode="r")[:])
        shown = row["digest"][row["frame"]]
        for of, embedding in zip(windows(row, meta["window"]), array, strict=True):
            name = blake3(b"".join(shown[i].tobytes() for i in of)).digest(16)
            assert seen.setdefault(name, embedding.tobytes()) == embedding.tobytes()
        passes += meta["passes"]
    assert cut
    assert passes == len(seen)
    assert len(set(seen.values())) > len(seen) / 2


def test_the_example_of_the_page_runs(folder, capsys):
    page = (Path(__file__).parents[2] / "docs/reference/format.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    exec(code.replace('"my-store"', repr(str(folder))), {})  # noqa: S102
    assert "Breakout" in capsys.readouterr().out
