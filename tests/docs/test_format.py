"""docs/reference/format.md is enough: a second reader, written from it, with zarr, json and numpy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from blake3 import blake3

from wsa.cli import main

MODEL = "timm:test_resnet.r160_in1k:random"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("format") / "store"
    played = ["--game", "Breakout", "--steps", "150", "--num-envs", "2", "--segment-steps", "40"]
    assert main(["collect", *played, "--store", str(store)]) == 0
    encoded = ["--models", MODEL, "--output", "pooled", "--scheduler", "inproc"]
    assert main(["encode", *encoded, "--store", str(store)]) == 0
    return store


def records(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("commits/*/*.json"))]


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def place(meta: dict) -> str:
    if meta["type"] in ("segment", "frames"):
        return f"games/{meta['game']}/{meta['type'].rstrip('s')}s/{meta['segment']}"
    if meta["type"] == "embedding":
        return f"games/{meta['game']}/embeddings/{meta['model']}/{meta['segment']}"
    return f"models/{meta['model']}"


def arrays(folder: Path, record: dict) -> dict[str, Any]:
    where = folder / place(record["meta"]) / record["attempt"]
    group = zarr.open_group(where, mode="r", zarr_format=3)
    return {name: array[:] for name, array in group.arrays()}


def test_the_state_is_the_union_of_the_records(folder):
    assert json.loads((folder / "wsa.json").read_text()) == {"format": 1}
    named = set()
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
            named.add(path)
    there = {p.relative_to(folder).as_posix() for p in folder.glob("[gm]*/**/*") if p.is_file()}
    assert there == named


def test_rows_and_frames(folder):
    steps = 0
    pictures = {place(r["meta"]): r for r in records(folder) if r["meta"]["type"] == "frames"}
    for record in (r for r in records(folder) if r["meta"]["type"] == "segment"):
        meta, row = record["meta"], arrays(folder, record)
        of = pictures.pop(place({**meta, "type": "frames"}))
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
    assert steps == 150
    assert not pictures


def test_embeddings_and_models(folder):
    specs = {}
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
        assert np.isfinite(array[:]).all()
        assert meta["seconds"] >= 0
        spec = specs[meta["model"]]
        assert spec["shape"] == meta["shape"][1:]
        identity = blake3(canonical(spec["identity"])).hexdigest()[:12]
        assert meta["model"] == f"{spec['alias']}-{identity}"


def test_the_example_of_the_page_runs(folder, capsys):
    page = (Path(__file__).parents[2] / "docs/reference/format.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    exec(code.replace('"my-store"', repr(str(folder))), {})  # noqa: S102
    assert "Breakout" in capsys.readouterr().out
