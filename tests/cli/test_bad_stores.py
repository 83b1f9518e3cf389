"""Stores, runs, weights and disks that cannot be used: exit code, message, and nothing is lost."""

import errno
import os
import re

import pytest
import safetensors.torch
import timm
import torch
from command_kit import ALIAS, COLLECT, LEARN, MODEL, flip_bit

from wsa.store.common import atomic_files

START = "Start one with 'wsa collect --game Seaquest', or name another with --store or WSA_STORE."
READERS = ("encode", "learn", "list", "show", "verify")
NEAR_STORE = (*READERS, "collect", "models")
ENCODE_GRID = ("encode", "--models", MODEL, "--output", "grid:1", "--scheduler", "inproc")


def test_readers_need_a_store(wsa, unchanged):
    for verb in (*READERS, "sweep"):
        with unchanged():
            outcome = wsa(verb)
        assert outcome == (3, "", f"wsa {verb}: There is no store at ./store yet. {START}\n")


FOREIGN = (
    ". is not a wsa store: it holds files but no wsa.json. Give another path with --store, or an "
    "empty folder to start a store there."
)
FILE = "./file is a file, but a store is a folder. Give another path with --store."
NEWER = (
    "./other is a store of format 2; this wsa reads format 1. Use the wsa that wrote it, or name "
    "another store with --store."
)
DAMAGED = (
    "./other/wsa.json is damaged. If ./other is a store of this wsa, that file's whole content is "
    '{"format":1} and nothing else is lost: write that.'
)


@pytest.mark.parametrize(
    ("files", "store", "code", "message"),
    [
        ({"thesis.tex": "x"}, ".", 3, FOREIGN),
        ({"file": "x"}, "file", 3, FILE),
        ({"file": "x"}, "file/store", 3, FILE),
        ({"other/wsa.json": '{"format":2}'}, "other", 4, NEWER),
        ({"other/wsa.json": '{"format":'}, "other", 5, DAMAGED),
    ],
)
def test_what_is_not_a_store_is_left_alone(wsa, tmp_path, unchanged, files, store, code, message):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for verb in NEAR_STORE:
        with unchanged():
            outcome = wsa(verb, "--store", store)
        assert outcome == (code, "", f"wsa {verb}: {message}\n")


def test_an_empty_store_says_what_to_do_first(wsa, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "wsa.json").write_text('{"format":1}')
    empty = "The store ./store is empty. Collect some frames first: wsa collect --game Seaquest"
    none = "The store ./store has no frames of Seaquest. Collect some: wsa collect --game Seaquest"
    assert wsa("encode") == (3, "", f"store ./store\nwsa encode: {empty}\n")
    assert wsa("learn") == (3, "", f"store ./store\nwsa learn: {none}\n")
    assert wsa("show") == (3, "", f"store ./store\nwsa show: {none}\n")
    code, out, err = wsa("list")
    assert (code, out) == (0, "")
    assert err.endswith("The store is empty. Collect some frames: wsa collect --game Seaquest\n")
    assert wsa("verify").code == 0


def test_learning_before_encoding_names_the_command_to_run(filled, wsa, tmp_path, unchanged):
    play = ("--steps", 8, "--num-envs", 1)
    wsa("collect", "--game", "Breakout", *play, "--store", "new")
    with unchanged():
        none = wsa("learn", "--game", "Breakout", "--store", "new")
    assert none.code == 3
    assert none.error == (
        "wsa learn: No model has encoded all of Breakout in ./new. Run: wsa encode --game Breakout"
    )
    filled(*COLLECT[:3], "--steps", 216, *COLLECT[5:])
    with unchanged():
        some = filled("learn", "--game", "Breakout", "--models", MODEL)
    assert some.code == 3
    assert some.error == (
        f"wsa learn: {ALIAS} has not encoded every segment of Breakout in ./store. "
        f"Run: wsa encode --game Breakout --models {MODEL} --output pooled. "
        "Or learn from what is encoded so far: add --encoded-only."
    )
    outcome = filled(
        "learn", "--game", "Breakout", "--models", MODEL, "--encoded-only", "--dry-run"
    )
    assert outcome.code == 0
    assert "Left out 2 of 6 segments of Breakout" in outcome.err


def test_a_damaged_record_is_named_by_every_verb(filled, tmp_path, unchanged):
    record = next((tmp_path / "store" / "commits").rglob("*.json"))
    data = record.read_bytes()
    record.unlink()
    record.write_bytes(data[:-9])
    place = str(record.relative_to(tmp_path / "store"))
    for command in ("list", "learn --game Breakout", "encode", "collect", "eval run"):
        with unchanged():
            outcome = filled(*command.split())
        assert outcome.code == 5
        assert place in outcome.error and "'wsa verify'" in outcome.error
    with unchanged():
        outcome = filled("verify")
    assert outcome.code == 5 and place in outcome.out


def flip_largest(folder):
    """Flip a bit of the largest file below a folder."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip_bit(path)
    return path


def test_damaged_embeddings_are_not_used(filled, tmp_path, key):
    damaged = flip_largest(tmp_path / "store" / "games" / "Breakout" / "embeddings")
    place = damaged.relative_to(tmp_path / "store")
    for command in (("learn", "--game", "Breakout", "--run-dir", "new"), ("eval", "run")):
        outcome = filled(*command)
        assert outcome.code == 5
        assert outcome.error.startswith(
            f"wsa {command[0]}: {place} in ./store is not what was committed ("
        )
        assert outcome.error.endswith("Run 'wsa verify'.")
    outcome = filled("verify")
    assert outcome.code == 5
    assert re.search(r"^damaged +1$", outcome.out, re.MULTILINE)
    assert f"damaged: game Breakout, segment {place.parts[4]}, model {key}" in outcome.out


def test_damaged_rows_are_not_encoded(filled, tmp_path):
    flip_largest(tmp_path / "store" / "games" / "Breakout" / "segments")
    outcome = filled(*ENCODE_GRID)
    assert outcome.code == 5 and outcome.error.endswith("Run 'wsa verify'.")


OTHER_NETWORK = "./w.safetensors does not hold the weights of test_resnet.r160_in1k ("
NO_NUMBERS = (
    f"{ALIAS} with weights from file:./w.safetensors returns NaN or infinite numbers for frames of "
    "games. Nothing was written. Give other weights."
)


@pytest.mark.parametrize(
    ("network", "factor", "message"),
    [("test_vit", 1, OTHER_NETWORK), ("test_resnet", torch.nan, NO_NUMBERS)],
)
def test_unusable_weights_are_refused(filled, tmp_path, unchanged, network, factor, message):
    tensors = timm.create_model(network, pretrained=False).state_dict()
    tensors = {k: t * factor if t.is_floating_point() else t for k, t in tensors.items()}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    with unchanged():
        outcome = filled(
            "encode", "--models", "timm:test_resnet.r160_in1k", "--output", "pooled",
            "--scheduler", "inproc", "--weights", f"{ALIAS}=w.safetensors",
        )  # fmt: skip
    assert outcome.code == 4 and outcome.error.startswith(f"wsa encode: {message}")


FULL = "Nothing committed was lost: free some space and run the same command again."
PLAY = ("collect", "--game", "Breakout", "--num-envs", "1", "--segment-steps", "50", "--steps")


@pytest.mark.variants
@pytest.mark.parametrize(
    ("verb", "number"),
    [
        ("collect", errno.ENOSPC),
        ("collect", errno.EROFS),
        ("collect", errno.EDQUOT),
        ("collect", errno.EACCES),
        ("encode", errno.ENOSPC),
        ("learn", errno.EACCES),
        ("learn", errno.ENOSPC),
    ],
)
def test_a_disk_that_refuses_a_write_loses_nothing(filled, monkeypatch, verb, number):
    command = {
        "collect": (*PLAY, "100"),
        "encode": ENCODE_GRID,
        "learn": (*LEARN, "--updates", 3, "--run-dir", "new"),
    }[verb]
    write, left = atomic_files._write, [3]

    def refuse(path, data, root=None):
        left[0] -= 1
        if left[0] < 0 or verb == "learn":
            raise OSError(number, os.strerror(number), str(path))
        write(path, data, root)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "_write", refuse)
        outcome = filled(*command)
    assert outcome.code == 6
    assert os.strerror(number) in outcome.error
    if number in (errno.ENOSPC, errno.EDQUOT):
        assert outcome.error.endswith(FULL)
    else:
        assert outcome.error.endswith("docs/howto/share.md says how a group shares a store.")
    assert filled("verify").code == 0
    assert filled(*command).code == 0


def test_a_run_folder_below_a_file_is_refused(filled, tmp_path):
    (tmp_path / "file").write_text("x")
    outcome = filled(*LEARN, "--updates", 3, "--run-dir", "file/run")
    assert outcome.code == 6 and "Traceback" not in outcome.err
