"""P17: every store that a released wsa wrote is read, verified, planned for, and trained on."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from wsa.encode.jobs.plan import make_plan
from wsa.store.maintenance.verify import verify
from wsa.store.objects.flat_map import materialize
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

HERE = Path(__file__).parent
STORES = sorted(path.parent for path in HERE.glob("format-*/expected.json"))


@pytest.fixture(scope="module")
def contents():
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.contents


def test_every_format_has_a_golden_store():
    assert [path.name for path in STORES] == ["format-1"]


@pytest.mark.parametrize("folder", STORES, ids=lambda path: path.name)
def test_a_golden_store_is_read_whole(folder, contents, tmp_path):
    copied = shutil.copytree(folder / "store", tmp_path / "store")
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    backend = open_store(str(copied))
    snapshot = take_snapshot(backend)
    assert contents(snapshot) == json.loads((folder / "expected.json").read_text())
    report = verify(backend)
    assert (report.damage, report.leftovers) == ((), 0)
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("folder", STORES, ids=lambda path: path.name)
def test_a_golden_store_needs_no_encoding_and_gives_batches(folder, tmp_path):
    snapshot = take_snapshot(open_store(str(folder / "store")))
    assert {"Breakout", "Pong"} <= set(snapshot.games)
    for game in snapshot.games:
        models = snapshot.models_of(game)
        assert models
        assert make_plan(snapshot, models, [game]).items == ()
        flat = materialize(snapshot, game, models, tmp_path)
        assert len(flat.rows) == sum(meta.rows for meta in snapshot.segments(game))
        at = 0
        for meta in snapshot.segments(game):
            (model,) = models
            rows = np.asarray(flat.embeddings[at : at + meta.frames])
            stored = snapshot.read_embedding(game, model, meta.segment)
            assert (rows == stored.reshape(meta.frames, -1)).all()
            at += meta.frames
