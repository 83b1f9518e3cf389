"""`wsa verify` and `wsa sweep` as an administrator meets them."""

from __future__ import annotations

import json
import os

import pytest

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


def break_chunk(store, meta, kit):
    """Flip a bit among the last frames of the embeddings."""
    path = kit.names.embedding_path(meta.game, kit.key("vit"), meta.segment)
    file = store.root / take_snapshot(store).commit(path).folder / "c.0.0"
    data = bytearray(file.read_bytes())
    data[-60] ^= 1
    file.write_bytes(data)
    return path


def test_damage_is_told_by_row_and_repaired(wsa, kit, lab):
    store, meta = lab
    path = break_chunk(store, meta, kit)
    seen = wsa("verify")
    assert seen.code == 5
    assert (
        f"damaged: game Pong, segment {meta.segment}, model {kit.key('vit')}, frames 256 to 300"
        in seen.out
    )
    assert "wsa verify --repair" in seen.err
    assert wsa("verify", "--json").code == 5
    before = kit.all_files(store)

    seen = wsa("verify", "--repair")
    assert seen.code == 5, "there was damage; the next verification tells whether there still is"
    assert f"Next: wsa encode --models {kit.key('vit')} --game Pong" in seen.out
    assert f"{path}: kept in damaged/" in seen.out
    assert set(before.values()) <= set(kit.all_files(store).values())

    seen = wsa("verify", "--json")
    report = json.loads(seen.out)
    assert seen.code == 0 and report["damage"] == [] and report["set_aside"] == 1
    kit.add_embedding(store, meta, kit.key("vit"))
    assert wsa("verify").code == 0


def test_json_of_a_verification(wsa, kit, lab):
    store, meta = lab
    path = break_chunk(store, meta, kit)
    seen = wsa("verify", "--json", "--repair")
    report = json.loads(seen.out)
    (damage,) = report["damage"]
    assert damage["path"] == path and damage["kind"] == "bad-bytes"
    assert (damage["game"], damage["segment"]) == ("Pong", meta.segment)
    assert (damage["model"], damage["unit"], damage["rows"]) == (
        kit.key("vit"),
        "frames",
        [[256, 300]],
    )
    assert [done["path"] for done in report["repaired"]] == [path]


def test_a_sample_says_its_share(wsa, lab):
    seen = wsa("verify", "--sample", "50%")
    assert seen.code == 0
    assert "A sample: 2 of 4 objects" in seen.err
    assert json.loads(wsa("verify", "--sample", "0.01", "--json").out)["objects"] == 1


@pytest.mark.parametrize(
    "share", ["0", "0%", "101%", "1.5", "-1%", "nan", "inf", "", "half", "1%%"]
)
def test_a_sample_that_is_no_share_is_refused(wsa, lab, share):
    seen = wsa("verify", f"--sample={share}")
    assert (seen.code, seen.out) == (2, "") and "1%" in seen.error


def test_a_repaired_segment_is_collected_again(wsa, kit, tmp_path):
    collect = ("collect", "--game", "Breakout", "--steps", "60", "--segment-steps", "30")
    collect = (*collect, "--num-envs", "1")
    assert wsa(*collect).code == 0
    store = open_store(str(tmp_path / "store"))
    before = kit.all_files(store)
    names = sorted(path for path in take_snapshot(store).commits if "/segments/" in path)
    for kind in ("frames", "segments"):
        path = names[0].replace("/segments/", f"/{kind}/")
        broken = tmp_path / "store" / take_snapshot(store).commit(path).folder / "zarr.json"
        broken.write_bytes(b"?")
        seen = wsa("verify", "--repair")
        assert seen.code == 5 and "Next: " in seen.out
        assert wsa("verify").code == 0
        (line,) = [one for one in seen.out.splitlines() if "Next: " in one]
        again = line.partition("Next: ")[2].partition(";")[0]
        assert "collect" in again
        assert wsa(*collect).code == 0
        assert path in take_snapshot(store).commits
    contents = {data for path, data in before.items() if path.startswith("games/")}
    now = {data for path, data in kit.all_files(store).items() if path.startswith("games/")}
    assert contents == now, "the same steps, to the byte"


def leave(store, hours):
    """What a dead writer leaves."""
    path = "models/dead-0123456789ab/0123456789abcdef/spec.json"
    store.put_new(path, b"half")
    moment = (store.root / path).stat().st_mtime - 3600 * hours
    os.utime(store.root / path, (moment, moment))
    return path


def test_a_sweep_lists_first_and_removes_when_told(wsa, kit, lab):
    store, _ = lab
    before = kit.all_files(store)
    path = leave(store, 30)
    store.put_new("README.txt", b"ours")
    seen = wsa("sweep")
    assert seen.code == 0 and path.rpartition("/")[0] in seen.out
    assert "not the store's own" in seen.out and "README.txt" in seen.out
    assert "wsa sweep --yes" in seen.err
    assert path in kit.paths(store)
    assert wsa("sweep", "--yes", "--grace-hours", "40").code == 0
    assert path in kit.paths(store)
    seen = wsa("sweep", "--yes", "--json")
    report = json.loads(seen.out)
    assert (seen.code, report["removed_files"], report["leftover_bytes"]) == (0, 1, 4)
    assert report["strange"] == ["README.txt"]
    assert kit.all_files(store) == {**before, "README.txt": b"ours"}
    assert wsa("verify").code == 0


@pytest.mark.parametrize("hours", ["-1", "nan", "inf"])
def test_a_grace_time_that_is_none_is_refused(wsa, lab, hours):
    seen = wsa("sweep", f"--grace-hours={hours}")
    assert (seen.code, seen.out) == (2, "") and "--grace-hours" in seen.error


@pytest.mark.parametrize("verb", ["verify", "sweep"])
def test_without_a_store_there_is_nothing_to_keep_in_order(wsa, verb):
    assert wsa(verb).code == 3


def test_words_of_a_store_do_not_speak_to_the_terminal(capsys):
    terminal.table("", ["author"], [["\x1b]0;mine\x07eve\nadam"]])
    terminal.result(False, {"command": "\x9b2Jwsa", "authors": ["\x1b[31meve"]})
    said = capsys.readouterr().out
    assert r"\x1b]0;mine\x07eve\nadam" in said and r"\x9b2Jwsa" in said
    assert all(c.isprintable() for c in said.replace("\n", ""))
