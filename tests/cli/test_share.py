"""`wsa push`, `pull` and `merge` between folders: what they copy, print, refuse, and leave."""

import shutil

import pytest
import safetensors.torch
import timm
from command_kit import ALIAS, ENCODE, LEARN, OTHER_MODEL, flip_bit, read_json

from wsa.store.common import names
from wsa.store.format.records import ModelMeta
from wsa.store.objects import probe, writer
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

KINDS = ("models", "frames", "segments", "embeddings")
MINE = ("--store", "mine")


def collect_pong(wsa, *options):
    assert wsa("collect", "--game", "Pong", "--steps", 16, "--num-envs", 1, *options).code == 0


def list_objects(folder):
    return set(take_snapshot(open_store(str(folder))).commits)


def counts(report):
    return [report[kind] for kind in KINDS]


def test_push_starts_a_store_and_pull_copies_it_elsewhere(filled, tmp_path):
    pushed = filled("push", "lab", "--json")
    assert pushed.err.splitlines()[:2] == ["store ./store", "to ./lab"]
    report = pushed.json
    assert counts(report) == [1, 4, 4, 4]
    assert (report["objects"], report["present"], report["left"]) == (13, 0, 0)
    assert (report["damaged"], report["conflicts"]) == ([], [])
    assert report["passes_saved"] > 100 and report["hours_saved"] > 0
    pulled = filled("pull", "lab", *MINE, "--json")
    assert pulled.err.splitlines()[:2] == ["store ./mine", "from ./lab"]
    same = {"from": "./lab", "to": "./mine"}
    assert pulled.json == report | same
    for folder in ("lab", "mine"):
        assert list_objects(tmp_path / folder) == list_objects(tmp_path / "store")
        assert filled("verify", "--store", folder).code == 0
    assert filled("pull", "lab", *MINE, "--json").json == report | same | {
        "objects": 0, "present": 13, "bytes": 0, "passes_saved": 0, "hours_saved": 0,
    } | dict.fromkeys(KINDS, 0)  # fmt: skip
    # Who has the embeddings does not run the model.
    encoded = filled(*ENCODE, *MINE, "--json").json
    assert (encoded["passes"], encoded["present"]) == (0, 4)


@pytest.mark.parametrize("verb", ["push", "pull", "merge"])
def test_a_dry_run_tells_what_is_then_copied(filled, unchanged, verb):
    where = ("other",) if verb == "push" else ("store", "--store", "other")
    with unchanged():
        text = filled(verb, *where, "--dry-run")
        planned = filled(verb, *where, "-n", "--json").json
    assert text.code == 0
    assert "nothing was changed" in text.out and "passes saved: " in text.out
    assert filled(verb, *where, "--json").json == planned
    again = filled(verb, *where)
    assert again.code == 0 and again.out.startswith("Copied:\nwhat        objects")
    assert "there already: 13 objects" in again.out


def test_merge_takes_everything(filled, tmp_path):
    collect_pong(filled, "--store", "other")
    assert counts(filled("merge", "other", "--json").json) == [0, 1, 1, 0]
    assert counts(filled("merge", "store", "--store", "other", "--json").json) == [1, 4, 4, 4]
    assert list_objects(tmp_path / "other") == list_objects(tmp_path / "store")
    open_store(str(tmp_path / "empty"), create=True)
    assert filled("merge", "empty", "--json").json["objects"] == 0


def test_options_choose_games_models_and_frames(filled, key):
    collect_pong(filled)
    for options, expected in (
        (("--game", "Pong"), [0, 1, 1, 0]),
        (("--game", "Breakout", "--models", names.key_alias(key), "--no-frames"), [1, 0, 4, 4]),
        (("--models", key), [0, 4, 0, 0]),
        ((), [0, 0, 0, 0]),
    ):
        assert counts(filled("push", "lab", *options, "--json").json) == expected


def test_embeddings_without_frames_train_a_run_but_no_other_model(filled, tmp_path, unchanged):
    pulled = filled("pull", "store", *MINE, "--no-frames", "--json").json
    assert counts(pulled) == [1, 0, 4, 4]
    assert not (tmp_path / "mine" / "games" / "Breakout" / "frames").exists()
    for verb in ("list", "show", "verify"):
        options = ("Breakout",) if verb == "show" else ()
        assert filled(verb, *options, *MINE).code == 0
    learned = filled(*LEARN, *MINE, "--updates", 3, "--run-dir", "trained", "--json")
    assert learned.json["updates"] == 3
    # This model has seen all that it needs; what is collected here has its frames.
    assert filled(*ENCODE, *MINE, "--dry-run").code == 0
    collect_pong(filled, *MINE)
    encoded = filled(*ENCODE, *MINE, "--json").json
    assert (encoded["objects"], encoded["present"]) == (1, 4)
    # Another model needs the frames.
    other = ("encode", "--game", "Breakout", "--models", OTHER_MODEL, "--output", "pooled",
             "--scheduler", "inproc", *MINE)  # fmt: skip
    for command in (other, (*other, "--dry-run"), (*ENCODE, "--output", "grid:2", *MINE)):
        with unchanged():
            refused = filled(*command)
        assert refused.code == 3
        assert "4 segments of Breakout without their frames" in refused.error
        assert refused.error.endswith("wsa pull URL --game Breakout")
    fetched = filled("pull", "store", *MINE, "--game", "Breakout", "--json").json
    assert counts(fetched) == [0, 4, 0, 0]
    assert filled(*other, "--json").json["objects"] == 4


@pytest.mark.slow
def test_a_run_trained_without_frames_plays(filled):
    assert filled("pull", "store", *MINE, "--no-frames").code == 0
    assert filled(*LEARN, *MINE, "--updates", 3, "--run-dir", "trained").code == 0
    assert filled("eval", "trained", "--episodes", "1", "--num-envs", "1").code == 0


def test_weights_that_were_moved_need_no_frames(wsa, tmp_path):
    """A weights file's model is known once it is built, so it is not refused before that."""
    collect_pong(wsa)
    weights = timm.create_model("test_resnet.r160_in1k", num_classes=0).state_dict()
    for name, scale in (("a", 1.0), ("b", 1.0), ("other", 1.1)):
        scaled = {key: t * scale if t.is_floating_point() else t for key, t in weights.items()}
        safetensors.torch.save_file(scaled, tmp_path / f"{name}.safetensors")

    def encode(name, *options):
        model = ("--models", "timm:test_resnet.r160_in1k", "--output", "pooled")
        file = ("--weights", f"{ALIAS}={name}.safetensors", "--scheduler", "inproc")
        return wsa("encode", *model, *file, *options, "--json")

    assert encode("a").json["objects"] == 1
    assert wsa("pull", "store", *MINE, "--no-frames").code == 0
    again = encode("b", *MINE).json
    assert (again["passes"], again["present"]) == (0, 1)
    refused = encode("other", *MINE)
    assert refused.code == 3 and refused.error.endswith("wsa pull URL --game Pong")


def test_a_damaged_embedding_is_named_and_the_rest_is_copied(filled, tmp_path):
    store = tmp_path / "store"
    chosen = take_snapshot(open_store(str(store))).embeddings()[0]
    path = names.embedding_path(chosen.game, chosen.model, chosen.segment)
    flip_bit(next((store / path).glob("*/c*")))
    text = filled("push", "lab")
    assert text.code == 5
    assert f"damaged: {path}\n" in text.out and "wsa verify" in text.out
    assert "\nembeddings        3" in text.out
    assert "push: " in text.err and " kB, " in text.err
    assert list_objects(tmp_path / "lab") == list_objects(store) - {path}
    outcome = filled("push", "lab", "--json")
    report = read_json(outcome.out)
    assert outcome.code == 5
    assert [one["path"] for one in report["damaged"]] == [path]
    assert counts(report) == [0, 0, 0, 0]


def test_a_damaged_record_is_named_by_a_dry_run_too(filled, tmp_path):
    record = next((tmp_path / "store" / "commits").rglob("*.json"))
    flip_bit(record)
    for options in (("--dry-run",), (), ()):
        outcome = filled("push", "lab", "--json", *options)
        report = read_json(outcome.out)
        assert outcome.code == 5
        assert [one["path"] for one in report["damaged"]] == [
            f"commits/{record.parent.name}/{record.name}"
        ]
    assert report["objects"] == 0


@pytest.mark.parametrize(("factor", "code"), [(1 + 1e-5, 0), (1.5, 4)])
def test_models_of_one_key_are_compared_by_their_probes(filled, tmp_path, key, factor, code):
    """Labs fit bases whose last bits differ; a larger difference is another model."""
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
    report = read_json(outcome.out)
    assert outcome.code == code
    if code:
        assert [one["path"] for one in report["conflicts"]] == [names.model_path(key)]
        assert (report["embeddings"], report["left"]) == (0, 1)
        text = filled("push", "lab")
        assert text.code == 4 and f"conflict: {names.model_path(key)}\n" in text.out
    else:
        assert (report["conflicts"], report["embeddings"]) == ([], 1)


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("pull nowhere", 3, "There is no store to copy from at ./nowhere"),
        ("merge nowhere", 3, "There is no store to copy from at ./nowhere"),
        ("push lab --store nowhere", 3, "There is no store at ./nowhere yet"),
        ("push run", 3, "./run is not a wsa store"),
        ("pull store", 2, "./store is the store itself"),
        ("push lab/../store", 2, "./lab/../store is the store itself"),
        ("push other --game Breakou", 3, "Did you mean Breakout?"),
        ("push other --models vit", 3, "no model 'vit'"),
        ("pull", 2, "URL"),
        ("push ftp://lab/wsa", 2, "ftp://"),
    ],
)
def test_an_impossible_copy_changes_nothing(filled, unchanged, command, code, message):
    with unchanged():
        outcome = filled(*command.split())
    assert outcome.code == code and message in outcome.error
