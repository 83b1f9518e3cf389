"""`wsa verify`, `wsa sweep` and `wsa du` as an administrator meets them."""

import os

import pytest
from command_kit import read_json

from wsa.store.common import terminal
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

SEGMENT_STEPS = 300


@pytest.fixture
def lab(wsa, kit, tmp_path):
    """A store with one segment, its embeddings in two chunks, and a model."""
    store = open_store(str(tmp_path / "store"), create=True)
    meta, _ = kit.add_segment(store, steps=SEGMENT_STEPS)
    kit.add_embedding(store, meta, kit.key("vit"))
    kit.add_model(store, kit.key("vit"))
    return store, meta


def test_damage_is_reported_by_row_and_repaired(wsa, kit, lab):
    store, meta = lab
    model = kit.key("vit")
    path = kit.names.embedding_path(meta.game, model, meta.segment)
    file = store.root / take_snapshot(store).commit(path).folder / "c.0.0"
    data = bytearray(file.read_bytes())
    data[-60] ^= 1  # In the last chunk.
    file.write_bytes(data)
    outcome = wsa("verify")
    assert outcome.code == 5
    place = f"game Pong, segment {meta.segment}, model {model}, frames 256 to 300"
    assert f"damaged: {place}" in outcome.out and "wsa verify --repair" in outcome.err
    outcome = wsa("verify", "--json")
    (damage,) = read_json(outcome.out)["damage"]
    assert outcome.code == 5
    assert (damage["path"], damage["kind"]) == (path, "bad-bytes")
    assert (damage["game"], damage["segment"], damage["model"]) == ("Pong", meta.segment, model)
    assert (damage["unit"], damage["rows"]) == ("frames", [[256, 300]])
    before = kit.all_files(store)

    outcome = wsa("verify", "--repair")
    assert outcome.code == 5, "there was damage; the next verification tells whether there still is"
    assert f"Next: wsa encode --models {model} --game Pong" in outcome.out
    assert f"{path}: kept in damaged/" in outcome.out
    assert set(before.values()) <= set(kit.all_files(store).values())
    report = wsa("verify", "--json").json
    assert report["damage"] == [] and report["set_aside"] == 1
    kit.add_embedding(store, meta, model)
    assert wsa("verify").code == 0


def test_a_sample_checks_its_share(wsa, lab):
    outcome = wsa("verify", "--sample", "50%")
    assert outcome.code == 0 and "A sample: 2 of 4 objects" in outcome.err
    assert wsa("verify", "--sample", "0.01", "--json").json["objects"] == 1
    for share in ("0", "0%", "101%", "1.5", "-1%", "nan", "inf", "", "half", "1%%"):
        outcome = wsa("verify", f"--sample={share}")
        assert (outcome.code, outcome.out) == (2, "") and "1%" in outcome.error


def test_a_repaired_segment_is_collected_again(wsa, kit, tmp_path):
    collect = ("collect", "--game", "Breakout", "--steps", "16", "--segment-steps", "8")
    collect = (*collect, "--num-envs", "1")
    assert wsa(*collect).code == 0
    store = open_store(str(tmp_path / "store"))
    before = kit.all_files(store)
    first = min(path for path in take_snapshot(store).commits if "/segments/" in path)
    for kind in ("frames", "segments"):
        path = first.replace("/segments/", f"/{kind}/")
        broken = tmp_path / "store" / take_snapshot(store).commit(path).folder / "zarr.json"
        broken.write_bytes(b"?")
        outcome = wsa("verify", "--repair")
        assert outcome.code == 5
        (line,) = [line for line in outcome.out.splitlines() if "Next: " in line]
        assert "collect" in line.partition("Next: ")[2].partition(";")[0]
        assert wsa("verify").code == 0
        assert wsa(*collect).code == 0
        assert path in take_snapshot(store).commits
    expected = {data for path, data in before.items() if path.startswith("games/")}
    now = {data for path, data in kit.all_files(store).items() if path.startswith("games/")}
    assert now == expected, "the same steps, to the byte"


def abandon_file(store, hours):
    """Leave a file as a writer that died so many hours ago."""
    path = "models/dead-0123456789ab/0123456789abcdef/spec.json"
    store.put_new(path, b"half")
    moment = (store.root / path).stat().st_mtime - 3600 * hours
    os.utime(store.root / path, (moment, moment))
    return path


def test_a_sweep_lists_first_and_removes_with_yes(wsa, kit, lab):
    store, _ = lab
    before = kit.all_files(store)
    path = abandon_file(store, 30)
    store.put_new("README.txt", b"ours")
    outcome = wsa("sweep")
    assert outcome.code == 0 and path.rpartition("/")[0] in outcome.out
    assert "not the store's own" in outcome.out and "README.txt" in outcome.out
    assert "wsa sweep --yes" in outcome.err
    assert path in kit.paths(store)
    for hours in ("-1", "nan", "inf"):
        outcome = wsa("sweep", f"--grace-hours={hours}")
        assert (outcome.code, outcome.out) == (2, "") and "--grace-hours" in outcome.error
    assert wsa("sweep", "--yes", "--grace-hours", "40").code == 0
    assert path in kit.paths(store)
    report = wsa("sweep", "--yes", "--json").json
    assert (report["removed_files"], report["leftover_bytes"]) == (1, 4)
    assert report["strange"] == ["README.txt"]
    assert kit.all_files(store) == {**before, "README.txt": b"ours"}
    assert wsa("verify").code == 0


def test_du_sums_objects_and_leftovers(filled, tmp_path, unchanged):
    columns = "objects frames screens rows embeddings models total compute"
    for by in ("game", "policy", "model", "author"):
        with unchanged():
            out = filled("du", "--by", by).out.splitlines()
            report = filled("du", "--by", by, "--json").json
        assert " ".join(out[0].split()) == f"{by} {columns}"
        assert out[-1].split()[:3] == ["total", "13", "196"]
        assert report["by"] == by and report["total"]["objects"] == 13
    (tmp_path / "store" / "tmp").mkdir(exist_ok=True)
    (tmp_path / "store" / "tmp" / "half").write_bytes(bytes(2000))
    assert filled("du").out.splitlines()[-1] == "1 file that no record names: 2.0 kB"


def test_text_of_a_store_does_not_control_the_terminal(capsys):
    terminal.table("", ["author"], [["\x1b]0;mine\x07eve\nadam"]])
    terminal.result(False, {"command": "\x9b2Jwsa", "authors": ["\x1b[31meve"]})
    out = capsys.readouterr().out
    assert r"\x1b]0;mine\x07eve\nadam" in out and r"\x9b2Jwsa" in out
    assert all(c.isprintable() for c in out.replace("\n", ""))
