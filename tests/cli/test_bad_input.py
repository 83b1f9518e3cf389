"""What cannot be done: one line that says why and what to do, the exit code, and nothing changed."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from wsa.encode.inference.cores import cores
from wsa.store.common import atomic_files

MODEL = "timm:test_resnet.r160_in1k:random"
POOLED = ("--output", "pooled", "--scheduler", "inproc")
ENCODE = ("--models", MODEL, *POOLED)
START = "Start one with 'wsa collect --game Seaquest', or name another with --store or WSA_STORE."
FOREIGN = (
    "holds files but no wsa.json. Give another path with --store, or an empty folder to start a "
    "store there."
)


class _Terminal(io.StringIO):
    """Standard output that shows every character."""

    encoding = "utf-8"


def test_what_is_wrong_is_one_line_on_any_terminal(wsa, monkeypatch):
    for command in ("collect --stepz 3", "collect --steps abc", "status --game Pong"):
        plain = wsa(*command.split())
        with monkeypatch.context() as patch:
            patch.setattr(io, "StringIO", _Terminal)
            assert wsa(*command.split()) == plain
        assert plain.err.isascii() and plain.err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("colect", "there is no such verb. Did you mean 'collect'? 'wsa --help' lists them."),
        ("xyz", "there is no such verb. 'wsa --help' lists them."),
        (
            "collect --steps abc",
            (
                "Error parsing --steps: 'abc' is not a whole number. "
                "'wsa collect --help' lists the options."
            ),
        ),
        (
            "collect --sticky abc",
            (
                "Error parsing --sticky: 'abc' is not a number. "
                "'wsa collect --help' lists the options."
            ),
        ),
        (
            "collect --stepz 3",
            (
                "Unrecognized options: --stepz, 3. Perhaps you meant --steps. "
                "'wsa collect --help' lists the options."
            ),
        ),
        (
            "collect --protocol v6",
            (
                "invalid choice 'v6' for argument '--protocol'. Expected one of ('classic', 'v5'). "
                "'wsa collect --help' lists the options."
            ),
        ),
        (
            "encode --precision fp8",
            (
                "invalid choice 'fp8' for argument '--precision'. Expected one of ('fp32', 'tf32', "
                "'fp16', 'bf16'). 'wsa encode --help' lists the options."
            ),
        ),
        (
            "eval",
            (
                "Missing from wsa eval: RUN Folder of a run that 'wsa learn' made. (required). "
                "'wsa eval --help' lists the options."
            ),
        ),
        (
            "collect --game Seaquestt",
            (
                "'Seaquestt' is not an ALE game. Did you mean Seaquest or LaserGates? Games are "
                "spelled like Seaquest, MsPacman or SpaceInvaders; 'wsa list --games' shows all."
            ),
        ),
        ("collect --steps 0", "--steps must be from 1 to 1000000000, not 0."),
        ("collect --sticky nan", "--sticky must be at least 0 and below 1, not nan."),
        (
            "collect --store ftp://lab/wsa",
            (
                "Stores are kept in folders and in buckets, not on ftp://. Give a folder, such as "
                "/lab/wsa, or a bucket, such as s3://bucket/wsa, gs://bucket/wsa or az://container/wsa."
            ),
        ),
        (
            "encode --engine tvm",
            (
                "invalid choice 'tvm' for argument '--engine'. Expected one of ('auto', 'torch', "
                "'compile', 'openvino'). 'wsa encode --help' lists the options."
            ),
        ),
        (
            "encode --models vitt",
            (
                "'vitt' is not a model (did you mean vit?); choose from vit, resnet, clip, dino, "
                "swin, lite0, lite1, lite2, ae, sr, oke, okk, vos, palette, objects, or give any timm model as "
                "timm:<name>, or your own as module:callable."
            ),
        ),
        (
            "encode --models timm:resnt18",
            "timm has no architecture 'resnt18'. Near it: resnet18, resnet18d, skresnet18.",
        ),
        (
            "encode --models ,",
            "--models names no model; leave it out, or write --models vit,resnet,clip.",
        ),
        (
            "encode --output grid",
            (
                "--output 'grid' is not an output; write pooled, cls, grid:7, or map. To reduce it, "
                "append +pca:512, +pca:512@Pong, or +rp:512, with at most 99999 numbers."
            ),
        ),
        ("encode --weights vit", "--weights vit: write ALIAS=FILE, such as vit=path.safetensors."),
        ("encode --workers -1", "--workers must be at least 0, not -1."),
        ("encode --slurm-cores 0", "--slurm-cores must be at least 1, not 0."),
        ("encode --slurm-memory lots", "--slurm-memory lots: write an amount, such as 16GB."),
        ("encode --slurm-queue gpu", "--slurm-queue is for SLURM; add --scheduler slurm."),
        ("encode --slurm-gpu", "--slurm-gpu is for SLURM; add --scheduler slurm."),
        (
            "encode --models lite0:random --weights lito=lite0.safetensors",
            (
                "--weights lito=lite0.safetensors: none of --models uses them. --models "
                "has lite0:random."
            ),
        ),
        (
            "encode --models lite0:random --weights lite0=lite0.safetensors",
            (
                "--weights lite0=lite0.safetensors: none of --models uses them. --models "
                "has lite0:random."
            ),
        ),
        (
            "encode --scheduler slrum --slurm-gpu",
            "--scheduler 'slrum' is not one; write local, inproc, slurm, or tcp://HOST:PORT.",
        ),
        ("encode --poll 1", "--poll is for a service; add --watch."),
        ("encode --beat 1", "--beat is for a service; add --watch."),
        ("encode --metrics-port 9464", "--metrics-port is for a service; add --watch."),
        (
            "encode --watch --metrics-port 70000",
            "--metrics-port must be from 0 to 65535, not 70000.",
        ),
        (
            "encode --watch --report x",
            "--watch has no end to report; leave --report out, and ask 'wsa status'.",
        ),
        ("encode --max-step-error nan", "--max-step-error must be at least 0, not nan."),
        (
            "encode --scheduler slurmm",
            "--scheduler 'slurmm' is not one; write local, inproc, slurm, or tcp://HOST:PORT.",
        ),
        ("learn --updates 0", "--updates must be at least 1, not 0."),
        ("learn --online --algo ppo --threads 0", "--threads must be at least 1, not 0."),
        ("eval run --threads 0", "--threads must be at least 1, not 0."),
        (
            "learn --online --algo ppo --threads 9999",
            (
                f"--threads 9999 is more than the {cores()} cores that this process may use. "
                "Leave it out to use them all."
            ),
        ),
        ("learn --seed -3", "--seed must be from 0 to 2147482647, not -3."),
        ("eval run --seed -3", "--seed must be from 0 to 2147482647, not -3."),
    ],
)
def test_a_command_that_cannot_be(filled, unchanged, command, message):
    with unchanged():
        code, out, err = filled(*command.split())
    said = [line for line in err.splitlines() if not line.startswith("store ")]
    assert (code, out, said) == (2, "", [f"wsa {command.split()[0]}: {message}"])


def test_a_policy_is_random_or_the_folder_of_a_run(filled, unchanged):
    with unchanged():
        code, out, err = filled("collect", "--policy", "ppo")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1] == (
        "wsa collect: ppo is not the folder of a run: it has no config.json. "
        "Give a folder that 'wsa learn' made."
    )


def test_a_model_that_nobody_knows_is_not_to_be_encoded(filled, unchanged):
    with unchanged():
        outcome = filled("learn", "--game", "Breakout", "--models", "nomodel")
    assert outcome.code == 2
    assert outcome.error.startswith("wsa learn: 'nomodel' is not a model; choose from vit, ")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "encode --game Pong",
            "The store ./store has no frames of Pong. Collect some: wsa collect --game Pong",
        ),
        (
            "learn --game Pong",
            "The store ./store has no frames of Pong. Collect some: wsa collect --game Pong",
        ),
        (
            "show Pong",
            "The store ./store has no frames of Pong. Collect some: wsa collect --game Pong",
        ),
        (
            "learn --game Breakout --models vit",
            (
                "vit has not encoded every segment of Breakout in ./store. Run: wsa encode --game "
                "Breakout --models vit"
            ),
        ),
    ],
)
def test_what_has_not_been_made_yet(filled, unchanged, command, message):
    with unchanged():
        outcome = filled(*command.split())
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.splitlines() == ["store ./store", f"wsa {command.split()[0]}: {message}"]


def test_learning_before_encoding_says_what_to_run(wsa, unchanged):
    wsa("collect", "--game", "Breakout", "--steps", 8, "--num-envs", 1)
    with unchanged():
        outcome = wsa("learn", "--game", "Breakout")
    assert outcome.code == 3
    assert outcome.error == (
        "wsa learn: No model has encoded Breakout in ./store. Run: wsa encode --game Breakout"
    )


def test_learning_before_all_is_encoded_spells_the_command_out(filled, unchanged):
    filled("collect", "--game", "Breakout", "--steps", "300", "--num-envs", "2")
    with unchanged():
        outcome = filled("learn", "--game", "Breakout", "--models", MODEL)
    assert outcome.code == 3
    assert outcome.error == (
        "wsa learn: test_resnet_r160_in1k has not encoded every segment of Breakout in ./store. "
        f"Run: wsa encode --game Breakout --models {MODEL} --output pooled"
    )


READERS = ["encode", "learn", "list", "show", "verify"]


@pytest.mark.parametrize("verb", READERS)
def test_no_store(wsa, unchanged, verb):
    with unchanged():
        outcome = wsa(verb)
    assert outcome == (3, "", f"wsa {verb}: There is no store at ./store yet. {START}\n")


@pytest.mark.parametrize("verb", [*READERS, "collect", "models"])
def test_a_folder_that_is_no_store(wsa, tmp_path, unchanged, verb):
    (tmp_path / "thesis.tex").write_text("x")
    with unchanged():
        outcome = wsa(verb, "--store", ".")
    assert outcome == (3, "", f"wsa {verb}: . is not a wsa store: it {FOREIGN}\n")


@pytest.mark.parametrize("verb", [*READERS, "collect", "models"])
@pytest.mark.parametrize("store", ["file", "file/store"])
def test_a_file_in_a_stores_place(wsa, tmp_path, unchanged, verb, store):
    (tmp_path / "file").write_text("x")
    with unchanged():
        outcome = wsa(verb, "--store", store)
    said = "./file is a file, and a store is a folder. Give another path with --store."
    assert outcome == (3, "", f"wsa {verb}: {said}\n")


def test_an_empty_store(wsa, tmp_path):
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


@pytest.mark.parametrize("verb", [*READERS, "collect", "models"])
def test_a_store_of_another_format(wsa, tmp_path, unchanged, verb):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "wsa.json").write_text('{"format":2}')
    with unchanged():
        outcome = wsa(verb)
    assert outcome == (
        4,
        "",
        (
            f"wsa {verb}: ./store is a store of format 2; this wsa reads format 1. Use the wsa that "
            "wrote it, or name another store with --store.\n"
        ),
    )


def test_a_damaged_store_file(filled, tmp_path, unchanged):
    (tmp_path / "store" / "wsa.json").unlink()
    (tmp_path / "store" / "wsa.json").write_text('{"format":')
    with unchanged():
        outcome = filled("verify")
    assert outcome == (
        5,
        "",
        (
            "wsa verify: ./store/wsa.json is damaged. If ./store is a store of this wsa, that file's "
            'whole content is {"format":1} and nothing else is lost: write that.\n'
        ),
    )
    (tmp_path / "store" / "wsa.json").write_text('{"format":1}')
    assert filled("verify").code == 0


@pytest.mark.parametrize("verb", ["list", "learn", "encode", "collect", "verify", "eval"])
def test_a_damaged_record(filled, tmp_path, unchanged, verb):
    record = next((tmp_path / "store" / "commits").rglob("*.json"))
    data = record.read_bytes()
    record.unlink()
    record.write_bytes(data[:-9])
    extra = {"learn": ["--game", "Breakout"], "eval": ["run"]}.get(verb, [])
    with unchanged():
        outcome = filled(verb, *extra)
    assert outcome.code == 5
    place = record.relative_to(tmp_path / "store")
    assert str(place) in (outcome.out if verb == "verify" else outcome.error)
    assert verb == "verify" or "'wsa verify'" in outcome.error


def damage(folder: Path) -> Path:
    """Change a byte in the middle of the largest file below a folder."""
    found = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(found.read_bytes())
    data[len(data) // 2] ^= 1
    found.unlink()
    found.write_bytes(data)
    return found


def test_damaged_embeddings(filled, tmp_path, key):
    found = damage(tmp_path / "store" / "games" / "Breakout" / "embeddings")
    place = found.relative_to(tmp_path / "store")
    for command in (("learn", "--game", "Breakout", "--run-dir", "new"), ("eval", "run")):
        outcome = filled(*command)
        assert outcome.code == 5
        assert outcome.error.startswith(
            f"wsa {command[0]}: {place} in ./store is not what was committed ("
        )
        assert outcome.error.endswith("Run 'wsa verify'.")
    outcome = filled("verify")
    assert outcome.code == 5
    assert "damaged    1\n" in outcome.out
    assert f"damaged: game Breakout, segment {place.parts[4]}, model {key}" in outcome.out
    report = json.loads(filled("verify", "--json").out)
    assert [found["path"] for found in report["damage"]] == ["/".join(place.parts[:5])]


def test_damaged_frames(filled, tmp_path):
    damage(tmp_path / "store" / "games" / "Breakout" / "segments")
    assert filled("verify").code == 5
    outcome = filled("encode", "--models", MODEL, "--output", "grid:1", "--scheduler", "inproc")
    assert outcome.code == 5
    assert outcome.error.endswith("Run 'wsa verify'.")


@pytest.mark.parametrize(
    "command", ["eval no", "eval store", "learn --resume no", "learn --resume store"]
)
def test_a_folder_that_is_no_run(filled, unchanged, command):
    with unchanged():
        outcome = filled(*command.split())
    verb, *_, folder = command.split()
    assert outcome.code == 3
    assert (
        f"wsa {verb}: {folder} is not the folder of a run: it has no config.json" in outcome.error
    )


def test_a_run_that_is_another(filled, unchanged):
    with unchanged():
        outcome = filled("learn", "--game", "Breakout", "--seed", 9, "--run-dir", "run")
    assert outcome.code == 4
    assert outcome.error == (
        "wsa learn: run holds another run. Give another --run-dir, or continue that run "
        "as it was started: wsa learn --resume run"
    )


def save(name: str, path: Path, spoil: bool = False) -> None:
    model = timm.create_model(name, pretrained=False)
    tensors = model.state_dict()
    if spoil:
        tensors = {
            k: v.fill_(torch.nan) if v.is_floating_point() else v for k, v in tensors.items()
        }
    safetensors.torch.save_file(tensors, path)


def test_weights_of_another_architecture(filled, tmp_path, unchanged):
    save("test_vit", tmp_path / "w.safetensors")
    with unchanged():
        outcome = filled(
            "encode", "--models", "timm:test_resnet.r160_in1k", *POOLED,
            "--weights", "test_resnet_r160_in1k=w.safetensors",
        )  # fmt: skip
    assert outcome.code == 4
    assert outcome.error.startswith(
        "wsa encode: ./w.safetensors does not hold the weights of test_resnet.r160_in1k ("
    )


def test_weights_that_are_not_numbers(filled, tmp_path, unchanged):
    save("test_resnet", tmp_path / "w.safetensors", spoil=True)
    with unchanged():
        outcome = filled(
            "encode", "--models", "timm:test_resnet.r160_in1k", *POOLED,
            "--weights", "test_resnet_r160_in1k=w.safetensors",
        )  # fmt: skip
    assert outcome.code == 4
    assert outcome.error == (
        "wsa encode: test_resnet_r160_in1k with weights from file:./w.safetensors returns NaN or "
        "infinite numbers for frames of games. Nothing was written. Give other weights."
    )


FULL = "Nothing committed was lost: free some space and run the same command again."
COLLECT = ("--game", "Breakout", "--steps", "400", "--num-envs", "1", "--segment-steps", "50")


@pytest.mark.variants
@pytest.mark.parametrize(
    ("verb", "number"),
    [
        ("collect", errno.ENOSPC),
        ("collect", errno.EROFS),
        ("encode", errno.ENOSPC),
        ("learn", errno.EACCES),
        pytest.param("collect", errno.EDQUOT, marks=pytest.mark.slow),
        pytest.param("collect", errno.EACCES, marks=pytest.mark.slow),
        pytest.param("learn", errno.ENOSPC, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_refuses(filled, monkeypatch, verb, number):
    command = {
        "collect": ("collect", *COLLECT[:3], "100", *COLLECT[4:]),
        "encode": ("encode", "--models", MODEL, "--output", "grid:1", "--scheduler", "inproc"),
        "learn": ("learn", "--game", "Breakout", "--updates", 3, "--run-dir", "new"),
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


@pytest.mark.slow
def test_a_full_disk(wsa, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        outcome = wsa("collect", "--store", "disk/store", *COLLECT)
        assert outcome.code == 6
        assert "No room left at ./disk/store/" in outcome.error and outcome.error.endswith(FULL)
        report = wsa("verify", "--store", "disk/store", "--json")
        assert report.code == 0
        assert 0 < json.loads(report.out)["objects"] < 8
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        outcome = wsa("collect", "--store", "disk/store", *COLLECT, "--json")
        assert (outcome.code, json.loads(outcome.out)["segments"] < 8) == (0, True)
        assert wsa("verify", "--store", "disk/store").code == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_folder_that_cannot_be(filled, tmp_path):
    (tmp_path / "file").write_text("x")
    outcome = filled("learn", "--game", "Breakout", "--updates", 3, "--run-dir", "file/run")
    assert outcome.code == 6
    assert "Traceback" not in outcome.err
