"""P8: no name and no planted link leads out of a store."""

import os

import pytest

from wsa.store.backends.local import LocalBackend
from wsa.store.common import names
from wsa.store.common.errors import DamagedError, UsageError, WsaError
from wsa.store.format.records import EmbeddingMeta, FramesMeta, ModelMeta
from wsa.store.maintenance.repair import repair
from wsa.store.maintenance.sweep import sweep
from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import take_snapshot

EVIL = ["..", "../..", "a/../../b", "/etc", "Pong/../../x", "Pong\0", "CON", "\uff30ong", "P" * 300]


@pytest.fixture
def outside(tmp_path):
    """A folder beside the store, which must stay as it is."""
    folder = tmp_path / "outside"
    (folder / "below").mkdir(parents=True)
    (folder / "secret").write_bytes(b"secret")
    (folder / "below" / "zarr.json").write_bytes(b"{}")
    os.utime(folder / "secret", (1, 1))

    def look():
        return {
            str(path): (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime)
            for path in sorted(folder.rglob("*"))
        }

    before = look()
    yield folder
    assert look() == before


@pytest.mark.parametrize("name", EVIL)
def test_a_record_with_a_hostile_name_is_refused(store, plant, name):
    segment = "0123456789ab-e000-000000000-00012"
    for meta in (
        FramesMeta(name, segment, 1, 1, 1, True),
        FramesMeta("Pong", name, 1, 1, 1, True),
        EmbeddingMeta("Pong", segment, name, (1, 1), "float16", 1, 0, 0),
        ModelMeta(name),
    ):
        with pytest.raises(UsageError):  # No path can be made of it.
            plant(store, meta, {"x": b""})
    good = ModelMeta("lite0-0123456789ab")
    plant(store, good, {"spec.json": b"{}"})
    record = next((store.root / "commits").rglob("*.json"))
    for file in (name, f"x/{name}/y"):
        forged = record.read_bytes().replace(b"spec.json", file.encode())
        if forged != record.read_bytes():
            record.write_bytes(forged)
            with pytest.raises(DamagedError):
                take_snapshot(store)


LINKS = {
    "an attempt": "games/Pong/segments/0123456789ab-e000-000000000-00012/0123456789abcdef",
    "an object": "models/lite0-0123456789ab",
    "a game": "games/Seaquest",
    "temporary files": "tmp",
    "the records": "commits",
    "what was repaired": "damaged",
}


@pytest.mark.parametrize("what", LINKS)
def test_links_to_folders_outside_are_not_followed(store, kit, outside, what):
    meta, arrays = kit.remember(0)
    link = store.root / LINKS[what]
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir():
        link.rmdir()
    link.symlink_to(outside / "below")
    for act in (
        lambda: kit.writer.commit_segment(store, meta, arrays),
        lambda: kit.add_model(store, "lite0-0123456789ab"),
        lambda: take_snapshot(store),
        lambda: verify(store),
        lambda: sweep(store, -1, dry_run=False),
        lambda: repair(store, verify(store).damage),
    ):
        try:
            act()
        except WsaError as refused:
            assert refused.exit_code in (3, 5, 6)


def test_links_to_files_outside_are_not_read(store, kit, outside):
    meta, _ = kit.add_segment(store, 0)
    rows = take_snapshot(store).commit(names.segment_path(meta.game, meta.segment))
    planted = [
        f"{rows.folder}/reward/c.0",
        f"models/lite0-0123456789ab/{'0' * 16}/spec.json",
        "tmp/0123456789abcdef0123456789abcdef",
    ]
    for path in planted:
        file = store.root / path
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(outside / "secret")
    damage = verify(store).damage
    assert [d.array for d in damage] == ["reward"]
    sweep(store, -1, dry_run=False)
    repair(store, damage)
    kept = [store.root / path for path in kit.paths(store, "damaged")]
    assert kept and all(b"secret" not in file.read_bytes() for file in kept)
    assert LocalBackend(store.root).get("wsa.json")
