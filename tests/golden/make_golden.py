"""Make a golden store: a small one, as this version of wsa writes it, and what must be read from it.

    python tests/golden/make_golden.py tests/golden/format-1

Run once when a format is released, then never again for it: what lies there is what labs have.
Real play and a real encoding, and by hand what these do not show: RGB frames, float32, a segment
that was cut inside an episode.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

from wsa.cli import main
from wsa.store.common import hashing
from wsa.store.format.records import ModelMeta
from wsa.store.objects import writer
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, arrays_of, take_snapshot

MODEL = "timm:test_resnet.r160_in1k:random"


def contents(snapshot: Snapshot) -> dict[str, dict[str, str]]:
    """blake3 of every array's shape, type and values, and of every other file, by object."""
    found: dict[str, dict[str, str]] = {}
    for path, commit in sorted(snapshot.commits.items()):
        meta = commit.meta
        if isinstance(meta, ModelMeta):
            files = snapshot.read_model(meta.model)
            found[path] = {name: hashing.checksum(data) for name, data in files.items()}
            continue
        else:
            arrays = {name: snapshot.read_array_at(path, name) for name in arrays_of(meta)}
        found[path] = {
            name: hashing.tensors_digest({name: np.asarray(a)}) for name, a in arrays.items()
        }
    return found


def make(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "store_kit", Path(__file__).parents[1] / "store_kit.py"
    )
    assert spec and spec.loader
    kit = importlib.util.module_from_spec(spec)
    sys.modules["store_kit"] = kit
    spec.loader.exec_module(kit)
    writer.author, writer.command_line = lambda: "golden@lab", lambda: "make_golden.py"
    where = ["--store", str(folder / "store")]
    play = ["--steps", "48", "--num-envs", "2", "--segment-steps", "16"]
    assert main(["collect", "--game", "Breakout", *play, *where]) == 0
    shown = ["--models", MODEL, "--output", "grid:2+pca:4", "--scheduler", "inproc"]
    assert main(["encode", *shown, *where]) == 0
    backend = open_store(str(folder / "store"))
    meta, _ = kit.add_segment(backend, 1, indexed=False, cut=True, ends=(3,))
    kit.add_model(backend, kit.key("noise"))
    kit.add_embedding(backend, meta, kit.key("noise"), shape=(2, 3), dtype="float32", scale=1e6)
    expected = contents(take_snapshot(backend))
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
