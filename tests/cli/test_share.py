"""push, pull and merge as a user meets them: between folders, with what is printed and what is left."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time

import pytest
import safetensors.torch
import timm

from wsa.store.common import names
from wsa.store.format.records import ModelMeta
from wsa.store.objects import probe, writer
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

ENCODE = ("encode", "--models", "timm:test_resnet.r160_in1k:random", "--output", "pooled")
KINDS = ("models", "frames", "segments", "embeddings")


def report(outcome):
    """What a verb printed with --json: one document, and nothing else."""
    return json.loads(outcome.out)


def objects(folder):
    return set(take_snapshot(open_store(str(folder))).commits)


def counts(found):
    return [found[kind] for kind in KINDS]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_push_starts_a_store_and_pull_brings_it_elsewhere(filled, tmp_path):
    pushed = filled("push", "lab", "--json")
    assert pushed.code == 0, pushed.err
    assert pushed.err.splitlines()[:2] == ["store ./store", "to ./lab"]
    found = report(pushed)
    assert counts(found) == [1, 4, 4, 4]
    assert (found["objects"], found["present"], found["left"]) == (13, 0, 0)
    assert (found["damaged"], found["conflicts"]) == ([], [])
    assert found["passes_saved"] > 100
    assert found["hours_saved"] > 0
    pulled = filled("pull", "lab", "--store", "mine", "--json")
    assert pulled.err.splitlines()[:2] == ["store ./mine", "from ./lab"]
    same = {"from": "./lab", "to": "./mine"}
    assert report(pulled) == found | same
    for folder in ("lab", "mine"):
        assert objects(tmp_path / folder) == objects(tmp_path / "store")
        assert filled("verify", "--store", folder).code == 0
    again = filled("pull", "lab", "--store", "mine", "--json")
    assert report(again) == found | same | {
        "objects": 0, "present": 13, "bytes": 0, "passes_saved": 0, "hours_saved": 0,
    } | dict.fromkeys(KINDS, 0)  # fmt: skip
    # Nobody who has the embeddings runs the model.
    encoded = filled(*ENCODE, "--scheduler", "inproc", "--store", "mine", "--json")
    assert (report(encoded)["passes"], report(encoded)["present"]) == (0, 4)


def test_what_a_person_reads(filled):
    pushed = filled("push", "lab")
    assert pushed.code == 0
    assert pushed.out.startswith("Copied:\nwhat        objects")
    assert "\nembeddings        4" in pushed.out
    assert "passes saved: " in pushed.out
    assert "there already: 0 objects" in pushed.out
    assert "push: " in pushed.err and " kB, " in pushed.err


@pytest.mark.parametrize("verb", ["push", "pull", "merge"])
def test_a_dry_run_says_what_it_would_save_and_changes_nothing(filled, unchanged, verb):
    where = ("other",) if verb == "push" else ("store", "--store", "other")
    with unchanged():
        spoken = filled(verb, *where, "--dry-run")
        outcome = filled(verb, *where, "-n", "--json")
    assert (spoken.code, outcome.code) == (0, 0)
    assert "nothing was changed" in spoken.out
    assert "passes saved: " in spoken.out
    done = filled(verb, *where, "--json")
    assert report(outcome) == report(done)


def test_merge_takes_everything(filled, tmp_path):
    more = ("collect", "--game", "Pong", "--steps", "60", "--num-envs", "1", "--store", "other")
    assert filled(*more).code == 0
    merged = filled("merge", "other", "--json")
    assert counts(report(merged)) == [0, 1, 1, 0]
    back = filled("merge", "store", "--store", "other", "--json")
    assert counts(report(back)) == [1, 4, 4, 4]
    assert objects(tmp_path / "other") == objects(tmp_path / "store")


def test_games_and_models_choose(filled, key):
    more = ("collect", "--game", "Pong", "--steps", "60", "--num-envs", "1")
    assert filled(*more).code == 0
    alias = names.key_alias(key)
    for options, expected in (
        (("--game", "Pong"), [0, 1, 1, 0]),
        (("--game", "Breakout", "--models", alias, "--no-frames"), [1, 0, 4, 4]),
        (("--models", key), [0, 4, 0, 0]),
        ((), [0, 0, 0, 0]),
    ):
        outcome = filled("push", "lab", *options, "--json")
        assert outcome.code == 0, outcome.err
        assert counts(report(outcome)) == expected


def test_embeddings_without_frames_can_be_trained_on_but_not_encoded(filled, tmp_path, unchanged):
    pulled = filled("pull", "store", "--store", "mine", "--no-frames", "--json")
    assert counts(report(pulled)) == [1, 0, 4, 4]
    assert not (tmp_path / "mine" / "games" / "Breakout" / "frames").exists()
    mine = ("--store", "mine")
    assert filled("list", *mine).code == filled("show", "Breakout", *mine).code == 0
    assert filled("verify", *mine).code == 0
    learn = ("learn", "--game", "Breakout", "--updates", "3", *mine)
    assert filled(*learn, "--dry-run").code == 0
    learned = filled(*learn, "--run-dir", "trained", "--json")
    assert learned.code == 0, learned.err
    assert report(learned)["updates"] == 3

    # All that this model has to see was seen.
    again = filled(*ENCODE, "--scheduler", "inproc", *mine, "--json")
    assert (again.code, report(again)["present"]) == (0, 4)
    assert filled(*ENCODE, *mine, "--scheduler", "inproc", "--dry-run").code == 0
    # Another model would have to see the frames.
    other = ("encode", "--models", "timm:test_vit.r160_in1k:random", "--output", "pooled", *mine)
    for command in (other, (*other, "--dry-run"), (*ENCODE[:-1], "grid:2", *mine)):
        with unchanged():
            refused = filled(*command)
        assert refused.code == 3
        assert "4 segments of Breakout without their frames" in refused.error
        assert refused.error.endswith("wsa pull URL --game Breakout")
    fetched = filled("pull", "store", *mine, "--game", "Breakout", "--json")
    assert counts(report(fetched)) == [0, 4, 0, 0]
    encoded = filled(*other, "--scheduler", "inproc", "--json")
    assert (encoded.code, report(encoded)["objects"]) == (0, 4)


@pytest.mark.slow
def test_what_was_learned_without_frames_is_played(filled):
    assert filled("pull", "store", "--store", "mine", "--no-frames").code == 0
    learn = ("learn", "--game", "Breakout", "--updates", "3", "--store", "mine")
    assert filled(*learn, "--run-dir", "trained").code == 0
    assert filled("eval", "trained", "--episodes", "1", "--num-envs", "1").code == 0


def test_what_was_collected_here_is_encoded_beside_what_was_pulled_without_frames(filled):
    mine = ("--store", "mine")
    filled("pull", "store", *mine, "--no-frames")
    more = ("collect", "--game", "Pong", "--steps", "60", "--num-envs", "1", *mine)
    assert filled(*more).code == 0
    encoded = filled(*ENCODE, "--scheduler", "inproc", *mine, "--json")
    assert encoded.code == 0, encoded.err
    assert (report(encoded)["objects"], report(encoded)["present"]) == (1, 4)


def test_the_same_weights_at_another_place_need_no_frames(wsa, tmp_path):
    """Which model a weights file makes is known once it is built, so it is not refused before."""
    assert wsa("collect", "--game", "Pong", "--steps", "60", "--num-envs", "1").code == 0
    weights = timm.create_model("test_resnet.r160_in1k", num_classes=0).state_dict()
    for name, scale in (("a", 1.0), ("b", 1.0), ("other", 1.1)):
        scaled = {key: t * scale if t.is_floating_point() else t for key, t in weights.items()}
        safetensors.torch.save_file(scaled, tmp_path / f"{name}.safetensors")

    def encode(name, *options):
        alias = "test_resnet_r160_in1k"
        command = ("encode", "--models", "timm:test_resnet.r160_in1k", "--output", "pooled")
        file = ("--weights", f"{alias}={name}.safetensors", "--scheduler", "inproc")
        return wsa(*command, *file, *options, "--json")

    made = encode("a")
    assert (made.code, report(made)["objects"]) == (0, 1), made.err
    assert wsa("pull", "store", "--store", "mine", "--no-frames").code == 0
    again = encode("b", "--store", "mine")
    assert (again.code, report(again)["passes"], report(again)["present"]) == (0, 0, 1)
    refused = encode("other", "--store", "mine")
    assert refused.code == 3
    assert refused.error.endswith("wsa pull URL --game Pong")


def test_damage_is_named_and_the_rest_comes(filled, tmp_path):
    store = tmp_path / "store"
    chosen = take_snapshot(open_store(str(store))).embeddings()[0]
    path = names.embedding_path(chosen.game, chosen.model, chosen.segment)
    flip(next((store / path).glob("*/c*")))
    spoken = filled("push", "lab")
    assert spoken.code == 5
    assert f"damaged: {path}\n" in spoken.out
    assert "wsa verify" in spoken.out
    assert objects(tmp_path / "lab") == objects(store) - {path}
    outcome = filled("push", "lab", "--json")
    assert outcome.code == 5
    assert [one["path"] for one in report(outcome)["damaged"]] == [path]
    assert counts(report(outcome)) == [0, 0, 0, 0]


def test_a_damaged_record_is_named_by_a_dry_run_too(filled, tmp_path):
    record = next((tmp_path / "store" / "commits").rglob("*.json"))
    flip(record)
    for options in (("--dry-run",), ()):
        outcome = filled("push", "lab", "--json", *options)
        assert outcome.code == 5
        (named,) = report(outcome)["damaged"]
        assert named["path"] == f"commits/{record.parent.name}/{record.name}"
    assert report(filled("push", "lab", "--json"))["objects"] == 0


def test_what_was_damaged_here_is_fetched_from_where_it_is_whole(filled, tmp_path):
    shutil.copytree(tmp_path / "store", tmp_path / "lab")
    here = open_store(str(tmp_path / "store"))
    for commit in list(take_snapshot(here).commits.values())[:5]:
        flip(tmp_path / "store" / commit.folder / commit.files[0].name)
    assert filled("verify", "--repair").code == 5
    assert filled("verify").code == 0
    assert report(filled("pull", "lab", "--json"))["objects"] == 5
    assert filled("verify").code == 0
    assert objects(tmp_path / "store") == objects(tmp_path / "lab")


@pytest.mark.parametrize(("factor", "code"), [(1 + 1e-5, 0), (1.5, 4)])
def test_one_key_is_one_model_if_its_probe_says_so(filled, tmp_path, key, factor, code):
    """Bases are fitted by each lab, and differ in their last bits; more than that is another model."""
    shutil.copytree(tmp_path / "store", tmp_path / "lab")
    lab = open_store(str(tmp_path / "lab"))
    commit = take_snapshot(lab).commit(names.model_path(key))
    files = take_snapshot(lab).read_files(commit)
    vectors = probe.load(files["probe.safetensors"])
    lab.delete(names.commit_path(commit.id))
    changed = files | {"probe.safetensors": probe.save(vectors * vectors.dtype.type(factor))}
    writer.commit_model(lab, ModelMeta(key), changed)
    first = take_snapshot(lab).embeddings()[0]
    path = names.embedding_path(first.game, key, first.segment)
    lab.delete(names.commit_path(take_snapshot(lab).commit(path).id))

    outcome = filled("push", "lab", "--json")
    assert outcome.code == code
    found = report(outcome)
    if code:
        assert [one["path"] for one in found["conflicts"]] == [names.model_path(key)]
        assert (found["embeddings"], found["left"]) == (0, 1)
        spoken = filled("push", "lab")
        assert f"conflict: {names.model_path(key)}\n" in spoken.out
        assert spoken.code == 4
    else:
        assert (found["conflicts"], found["embeddings"]) == ([], 1)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("pull nowhere", 3, "There is no store to take from at ./nowhere"),
        ("merge nowhere", 3, "There is no store to take from at ./nowhere"),
        ("push lab --store nowhere", 3, "There is no store at ./nowhere yet"),
        ("push run", 3, "./run is not a wsa store"),
        ("pull store", 2, "./store is the store itself"),
        ("push other --game Breakou", 3, "Did you mean Breakout?"),
        ("push other --models vit", 3, "no model 'vit'"),
        ("pull", 2, "URL"),
        ("push ftp://lab/wsa", 2, "ftp://"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(filled, unchanged, command, code, said):
    with unchanged():
        outcome = filled(*command.split())
    assert outcome.code == code
    assert said in outcome.error


def test_an_empty_store_has_nothing_to_give(filled, tmp_path):
    open_store(str(tmp_path / "empty"), create=True)
    outcome = filled("merge", "empty", "--json")
    assert (outcome.code, report(outcome)["objects"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "times"),
    [
        (signal.SIGINT, 2),
        (signal.SIGKILL, 2),
        (signal.SIGKILL, 40),
    ],
)
def test_a_push_ended_in_the_midst_goes_on(filled, tmp_path, warm, how, times):
    shorter = ("--steps", "240", "--num-envs", "1", "--segment-steps", "32")
    assert filled("collect", "--game", "Pong", *shorter).code == 0
    asked = objects(tmp_path / "store")
    ended = 0
    for turn in range(times):
        lab = tmp_path / f"lab{turn}"
        process = warm.start(
            ["-m", "wsa.cli", "push", str(lab)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        enough = random.Random(turn).randrange(1, len(asked) // 2)
        while process.poll() is None and len(list(lab.glob("commits/*/*.json"))) < enough:
            time.sleep(0.001)
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
        ended += process.returncode != 0
        if how == signal.SIGINT and process.returncode:
            assert process.returncode == 130
            assert said.splitlines()[-1].startswith("wsa push: interrupted.")
        before = take_snapshot(open_store(str(lab)))
        for commit in before.commits.values():
            before.read_files(commit)
        again = filled("push", lab, "--json")
        assert (again.code, report(again)["present"]) == (0, len(before.commits))
        after = take_snapshot(open_store(str(lab)))
        assert set(after.commits) == asked
        assert before.commits.items() <= after.commits.items()
        for commit in after.commits.values():
            after.read_files(commit)
    assert ended, "each push was over before it was ended"
