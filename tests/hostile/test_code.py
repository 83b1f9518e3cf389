"""P7: no store runs code. Code that ran would leave a file, the canary."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from zarr.abc.codec import BytesBytesCodec
from zarr.registry import register_codec

from wsa.encode.models import networks
from wsa.encode.models.registry import Request
from wsa.encode.registration import register
from wsa.learn.training import checkpoint
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, WsaError
from wsa.store.format import arrays, records
from wsa.store.format.records import ModelMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects import model_spec
from wsa.store.objects.model_spec import Identity, ModelSpec, Preprocessing
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

ROOT = Path(arrays.__file__).parents[2]
ARCHITECTURE = "test_resnet.r160_in1k"


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path):
    file = tmp_path / "canary"
    yield file
    assert not file.exists(), "code was run"


@pytest.fixture
def bombs(canary, tmp_path):
    """Bytes that run code when they are unpickled, which is checked first."""
    torch.save({"weight": Bomb(canary)}, tmp_path / "bomb.pt")
    bombs = {"pickle": pickle.dumps(Bomb(canary)), "torch": (tmp_path / "bomb.pt").read_bytes()}
    pickle.loads(bombs["pickle"])  # noqa: S301
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert canary.exists()
    canary.unlink()
    return bombs


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_no_file_of_a_store_is_unpickled(store, kit, plant, bombs, kind):
    """Instead of every file that there is, with a right checksum."""
    meta, _ = kit.remember(0)
    model = kit.key()
    described, array = kit.fake_embedding(meta, model)
    good = {
        described: arrays.encode_embedding(array),
        ModelMeta(model): {"spec.json": b"{}", "probe.safetensors": b"", "basis.safetensors": b""},
    }
    kit.add_segment(store, 0)
    for what, files in good.items():
        for name in files:
            plant(store, what, {**files, name: bombs[kind]})
            snapshot = take_snapshot(store)
            for read in (
                lambda s=snapshot: s.read_embedding(meta.game, model, meta.segment),
                lambda s=snapshot: model_spec.read_spec(s, model),
                lambda s=snapshot: register.check_probe(s, model, np.ones((4, 3), np.float32)),
                lambda s=snapshot: register.open_model(s, model),
            ):
                with pytest.raises(WsaError):
                    read()
            verify(store)
            at = records.meta_path(what)
            for path in [names.commit_path(hashing.object_id(at)), *kit.paths(store, at)]:
                store.delete(path)
    for path in ["wsa.json", *kit.paths(store, "commits")[:1]]:
        (store.root / path).write_bytes(bombs[kind])
        with pytest.raises(WsaError):
            take_snapshot(open_store(store.url))
        assert path == "wsa.json" or verify(store).damage
        if path == "wsa.json":
            (store.root / path).write_bytes(b'{"format":1}')


class Evil(BytesBytesCodec):
    """A codec that an installed package registered under some name."""

    canary: Path

    @classmethod
    def from_dict(cls, data):
        cls.canary.touch()
        raise AssertionError("a foreign codec was used")


@pytest.mark.parametrize("name", ["evil", "numcodecs.evil", "bytes ", "zstd\0"])
def test_a_registered_codec_is_not_used(canary, name):
    Evil.canary = canary
    register_codec(name, Evil)
    array = np.ones((600, 3), np.float16)
    files = arrays.encode_embedding(array)
    found = json.loads(files["zarr.json"])
    inner = found["codecs"][0]["configuration"]
    for chain in (found["codecs"], inner["codecs"], inner["index_codecs"]):
        for at in range(len(chain) + 1):
            chain.insert(at, {"name": name, "configuration": {"x": 1}})
            hostile = {**files, "zarr.json": json.dumps(found).encode()}
            with pytest.raises(DamagedError):
                arrays.decode_array(hostile, "", array.shape, "float16", "x")
            del chain[at]


def stored_spec(store, plant, timm_name, source):
    """A model spec that names any timm model and source."""
    identity = Identity(
        architecture=timm_name.partition(".")[0],
        weights="0" * 64,
        random=False,
        preprocessing=Preprocessing("squash", 160, 160, "bicubic", (0.5,) * 3, (0.5,) * 3),
        output="pooled",
        basis="",
        window=1,
        precision="fp32",
    )
    spec = ModelSpec("evil", timm_name, identity, (8,), source, "", 0.0, {})
    plant(store, ModelMeta(spec.key), {"spec.json": hashing.canonical(spec)})
    return spec


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_a_spec_cannot_make_wsa_read_a_torch_archive(store, kit, plant, tmp_path, bombs, suffix):
    """An enemy who can write to the store can put any file beside it."""
    for name, data in bombs.items():
        file = tmp_path / f"{name}{suffix}"
        file.write_bytes(data)
        spec = stored_spec(store, plant, ARCHITECTURE, f"file:{file}")
        with pytest.raises(WsaError) as refused:
            register.open_model(take_snapshot(store), spec.key)
        assert refused.value.kind == "other-weights"
        with pytest.raises(WsaError):
            networks.build(Request("evil", ARCHITECTURE, f"file:{file}"))
        for path in kit.paths(store):
            if path != "wsa.json":
                store.delete(path)


@pytest.mark.parametrize(
    "timm_name", ["hf-hub:evil/model", "hf_hub:evil/model", "local-dir:/tmp/evil", "", "../evil"]
)
@pytest.mark.parametrize("source", ["hub", "random", "file:/tmp/x.safetensors"])
def test_a_spec_cannot_name_another_hub_or_folder(store, plant, monkeypatch, timm_name, source):
    monkeypatch.setattr(timm, "create_model", None)  # timm is not called.
    spec = stored_spec(store, plant, timm_name, source)
    with pytest.raises(WsaError):
        register.open_model(take_snapshot(store), spec.key)


def test_a_spec_of_another_model_is_refused(store, kit, plant):
    spec = stored_spec(store, plant, ARCHITECTURE, "random")
    other = kit.key("vit")
    plant(store, ModelMeta(other), {"spec.json": hashing.canonical(spec)})
    with pytest.raises(DamagedError, match="another model"):
        model_spec.read_spec(take_snapshot(store), other)


def test_a_checkpoint_is_not_unpickled(tmp_path, bombs):
    for data in bombs.values():
        file = tmp_path / "000000001.safetensors"
        file.write_bytes(data)
        with pytest.raises(DamagedError):
            checkpoint.load(file, {})


def test_reading_a_store_imports_no_pickle_and_no_torch(store, kit):
    """In a separate process, where an audit hook sees every unpickling."""
    meta, _ = kit.add_segment(store)
    kit.add_model(store, kit.key())
    kit.add_embedding(store, meta, kit.key())
    code = """
import sys
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.maintenance.verify import verify
seen = []
watched = ("pickle.", "os.system", "os.exec", "subprocess.")
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(watched) else None)
store = open_store(sys.argv[1])
snapshot = take_snapshot(store)
for meta in snapshot.segments():
    snapshot.read_rows(meta); snapshot.read_frames(meta)
assert not verify(store).damage
assert not seen, seen
assert "torch" not in sys.modules and "distributed" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()


WORDS = ("pickle", "marshal", "yaml", "joblib", "dill", "__import__", "shell=True", "os.system")
ALLOWED = {
    # An archive of a package: a pinned SHA-256, and tensors only.
    "encode/models/networks.py": ['torch.load(files[0], map_location="cpu", weights_only=True)'],
    # Torch archives that the user names: tensors only.
    "encode/models/weights.py": ['torch.load(file, map_location="cpu", weights_only=True)'],
}


def test_the_source_unpickles_and_evaluates_nothing():
    files = [
        ROOT / "cli.py",
        *(f for r in ("store", "encode", "learn") for f in (ROOT / r).rglob("*.py")),
    ]
    assert len(files) > 40
    for file in files:
        text = file.read_text().replace("allow_pickle=False", "").replace(".eval()", "")
        text = text.replace("safetensors.torch.load", "")
        for use in ALLOWED.get(file.relative_to(ROOT).as_posix(), []):
            assert text.count(use) == 1
            text = text.replace(use, "")
        for word in (*WORDS, "torch.load", " eval(", " exec(", "=eval(", "(eval("):
            assert word not in text, f"{file.name} says {word}"
