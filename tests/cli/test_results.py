"""What the command prints and leaves: tables, JSON, dry runs, and that a second time changes nothing."""

from __future__ import annotations

import json
import re

import pytest

from wsa.encode.models.registry import ALIASES
from wsa.learn.runs import data
from wsa.store.objects import flat_map

MODEL = "timm:test_resnet.r160_in1k:random"
ENCODE = ("encode", "--models", MODEL, "--output", "pooled", "--scheduler", "inproc")
COLLECT = (
    "collect", "--game", "Breakout", "--steps", "200", "--num-envs", "2", "--segment-steps", "64",
    "--max-episode-steps", "150",
)  # fmt: skip


def strict(text):
    """A JSON document and nothing else; NaN and infinity are none."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_collecting_and_encoding_twice_does_nothing_the_second_time(filled, unchanged):
    with unchanged():
        collected = filled(*COLLECT, "--json")
        encoded = filled(*ENCODE, "--json")
    assert strict(collected.out)["segments"] == 0
    report = strict(encoded.out)
    assert (report["objects"], report["passes"], report["copied"]) == (0, 0, 0)
    assert (report["present"], report["strip_passes"]) == (4, 0)


def test_a_model_named_twice_is_one(filled):
    outcome = filled(*ENCODE[:2], f"{MODEL},{MODEL}", *ENCODE[3:], "--json")
    assert strict(outcome.out)["present"] == 4


def test_a_finished_run_is_left_alone(filled, tmp_path):
    before = {p: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").iterdir()}
    planned = strict(filled("learn", "--resume", "run", "--dry-run", "--json").out)
    again = ("--game", "Breakout", "--updates", 3, "--run-dir", "run", "--json")
    for arguments in (again, ("--resume", "run", "--json")):
        outcome = filled("learn", *arguments)
        assert (outcome.code, strict(outcome.out)["updates"]) == (0, 0)
        told = {k: v for k, v in strict(outcome.out).items() if k.startswith("parameters")}
        assert told == {k: planned[k] for k in told} and len(told) == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Trainable parameters" in page and f"{told['parameters']:,}" in page
    assert {p: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").iterdir()} == before


@pytest.mark.parametrize(
    ("command", "columns"),
    [
        ((*COLLECT[:4], "300", *COLLECT[5:]), {"steps", "segments", "bytes", "minutes"}),
        (
            ("learn", "--game", "Breakout"),
            {"steps", "segments", "cache_bytes", "minutes", "parameters"},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_dry_run_changes_nothing(filled, unchanged, command, columns):
    with unchanged():
        spoken = filled(*command, "--dry-run")
        outcome = filled(*command, "-n", "--json")
    assert (spoken.code, outcome.code) == (0, 0)
    found = strict(outcome.out)
    assert columns <= found.keys()
    assert all(found[column] > 0 for column in columns)
    assert all(column.replace("_", " ") in spoken.out for column in columns)


def test_a_dry_run_of_encoding_changes_nothing(filled, unchanged):
    command = ("encode", "--models", MODEL, "--output", "grid:2", "--scheduler", "inproc")
    with unchanged():
        spoken = filled(*command, "--dry-run")
        whole = strict(filled(*command, "-n", "--json").out)
    found = whole["models"]["test_resnet_r160_in1k"]
    assert spoken.code == 0
    assert "nothing was changed" in spoken.out
    assert found["objects"] == 4
    assert found["passes"] + found["copies"] == 196
    assert found["bytes"] == 196 * 2 * 2 * 96 * 2
    assert found["minutes"] > 0


def test_a_dry_run_starts_no_store(wsa, tmp_path, unchanged):
    with unchanged():
        outcome = wsa(*COLLECT, "--dry-run")
    assert outcome.code == 0
    assert outcome.err.startswith("store ./store, not there yet\n")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "list --games",
        "show Breakout",
        "du",
        "export x.zarr --game Breakout --dry-run",
        "models",
        "verify",
        "doctor",
        "eval run --episodes 1",
    ],
)
def test_json_is_one_document_and_nothing_else(filled, command):
    code, out, _ = filled(*command.split(), "--json")
    assert code == 0
    assert strict(out)


@pytest.mark.parametrize(
    "command",
    [
        *("list", "show Breakout", "du", "models", "verify"),
        pytest.param("eval run --episodes 1", marks=pytest.mark.slow),
        "export x.zarr --game Breakout",
        "learn --game Breakout --dry-run",
        "collect --game Breakout --steps 8 --num-envs 1",
    ],
)
def test_every_verb_names_its_store(filled, command):
    assert filled(*command.split()).err.splitlines()[0] == "store ./store"


def test_store_is_chosen_by_option_before_environment(filled, tmp_path, monkeypatch):
    monkeypatch.setenv("WSA_STORE", str(tmp_path / "elsewhere"))
    assert filled("list").code == 3
    assert filled("list", "--store", "store").code == 0
    monkeypatch.delenv("WSA_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert "There is no store at ./data/wsa/store yet." in filled("list").err


def test_progress_is_plain_lines_on_standard_error(filled):
    more = ("--steps", 300, "--num-envs", 2, "--max-episode-steps", 150)
    outcome = filled("collect", "--game", "Breakout", *more)
    assert outcome.out.splitlines()[:2] == ["segments         2", "steps            100"]
    assert outcome.err.splitlines()[1] == (
        "Breakout, protocol classic (sticky actions 0, up to 30 no-ops, FIRE at a reset, 4 "
        "actions, skip 4, at most 150 steps an episode): 100 of 300 steps to play (400 "
        "emulator frames)"
    )
    assert outcome.err.splitlines()[2].startswith("collect: 100 of 100 steps, ")
    assert outcome.err.splitlines()[2].endswith(" left")
    assert "\r" not in outcome.err and "\x1b" not in outcome.err


def test_list(filled, key):
    out = filled("list").out.splitlines()
    assert out[0].split() == [
        "game",
        "segments",
        "steps",
        "distinct",
        "frames",
        "episodes",
        "mean",
        "return",
        "size",
    ]
    assert out[2].split()[:6] == ["Breakout", "4", "200", "196", "0", "-"]
    assert out[3:5] == ["", "segments with frames, and with embeddings of each model"]
    assert [line.split() for line in out[7:]] == [
        ["Breakout", "(frames)", "4", "of", "4", "100%"],
        ["Breakout", key, "4", "of", "4", "100%"],
    ]
    games = filled("list", "--games").out.split()
    assert len(games) == 104 and "MsPacman" in games
    assert strict(filled("list", "--games", "--json").out) == games


def test_show_prints_every_detail_of_the_protocol(filled, key):
    out = filled("show", "Breakout").out
    for line in (
        "name               classic",
        "frame skip         4",
        "sticky             0",
        "noop max           30",
        "fire reset         yes",
        "full action space  no",
        "max pool           yes",
        "max steps          150",
        "actions            NOOP, FIRE, RIGHT, LEFT",
    ):
        assert f"  {line}\n" in out
    assert f"  {key}  1.00\n" in out
    assert "(random weights)" in out
    card = strict(filled("show", "Breakout", "--json").out)
    assert card["protocols"][0]["sticky"] == 0
    assert card["emulator"][0].startswith("ale-py ")


def test_show_takes_a_segment_or_a_model(filled, key):
    games = strict(filled("show", key, "--json").out)["games"]
    assert games == {"Breakout": "4 of 4 segments"}
    assert "Breakout  4 of 4 segments" in filled("show", key).out
    segment = re.search(r"[0-9a-f]{12}-e000-000000000-", filled("show", "Breakout", "--json").out)
    assert segment is None  # A game's card names runs, not each of its segments.
    (run,) = re.findall(r"run ([0-9a-f]{12})", filled("show", "Breakout").out)
    card = strict(filled("show", f"{run}-e001-000000064-00036", "--json").out)
    assert (card["game"], card["start"], card["steps"]) == ("Breakout", 64, 36)
    assert list(card["embeddings"]) == [key]
    assert filled("show", f"{run}-e009-000000064-00036").code == 3
    assert filled("show", "other-0123456789ab").code == 3
    assert filled("show", "ALE/Breakout-v5").out == filled("show", "Breakout").out
    assert filled("show", "Breakot").code == 2


def test_show_writes_a_page(filled, key, tmp_path):
    code, out, err = filled("show", "Breakout", "--html", "new/page.html", "--json")
    assert (code, err) == (0, "store ./store\n")
    told = strict(out)
    page = (tmp_path / "new" / "page.html").read_text()
    assert told == {"page": "new/page.html", "bytes": len(page.encode())}
    assert f"{key}, frame 1" in page and "none: random weights" in page
    (run,) = re.findall(r"run ([0-9a-f]{12})", filled("show", "Breakout").out)
    for options, said in (
        ((f"{run}-e001-000000064-00036", "--html", "page.html"), "--html is for a game"),
        (("Breakout", "--probe", "p.json"), "add --html"),
        (("Breakout", "--html", "new"), "is a folder"),
        (("Breakout", "--html", "page.html", "--probe", "p.json"), "there is no such file"),
    ):
        outcome = filled("show", *options)
        assert outcome.code == 2 and said in outcome.error
    assert not (tmp_path / "page.html").exists()


def test_models_says_licence_and_what_an_alias_is_and_marks_random_weights(filled, key):
    out = filled("models").out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    for alias, name in ALIASES.items():
        assert lines[alias][1] == name
        assert lines[alias][2] in ("apache-2.0", "mit")
    assert lines[key][1:4] == ["test_resnet_r160_in1k", "(random", "weights)"]
    found = strict(filled("models", "--json").out)
    assert found["stored"][0]["licence"] == "none: random weights"
    assert found["aliases"]["swin"]["licence"] == "mit"


def test_models_without_a_store(wsa, unchanged):
    with unchanged():
        code, out, err = wsa("models")
    assert (code, err) == (0, "store ./store, not there yet\n")
    assert "The store has no models yet" in out


def test_doctor(wsa, filled):
    code, out, _ = filled("doctor")
    assert code == 0
    assert "104 ALE games with their ROMs" in out
    assert "./store: 13 objects, Breakout" in out


def test_doctor_finds_what_is_bad(wsa, tmp_path, monkeypatch):
    from wsa.learn.commands import doctor

    monkeypatch.setattr(doctor, "LIBRARIES", ("zarr", "no-such-library"))
    monkeypatch.setattr(doctor, "FLOORS", {"zarr": (99,)})
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "wsa.json").write_text('{"format":2}')
    code, out, _ = wsa("doctor", "--json")
    found = strict(out)
    assert code == 3
    assert {name for name, one in found.items() if one["ok"] is False} == {
        *("zarr", "no-such-library", "store"),
    }
    assert found["no-such-library"]["found"] == "not installed; pip install no-such-library"
    assert found["zarr"]["found"].endswith("; pip install 'zarr>=99'")


def test_a_model_of_the_store_is_asked_for_by_its_key(filled, key):
    """With the output that it was registered with, whatever the default is."""
    again = strict(filled("encode", "--models", key, "--scheduler", "inproc", "--json").out)
    assert (list(again["models"]), again["objects"], again["passes"]) == ([key], 0, 0)
    assert again["present"] > 0
    assert filled("encode", "--models", f"{key[:-1]}g").code == 2
    other = key[:-1] + ("0" if key[-1] != "0" else "1")
    assert filled("encode", "--models", other).code == 3


def test_play_without_a_reward_is_reported(wsa):
    play = ("collect", "--game", "Freeway", "--steps", "60", "--num-envs", "2")
    outcome = wsa(*play, "--json")
    assert strict(outcome.out)["rewarded_steps"] == 0
    said = "none of these 60 steps of Freeway earned a reward, so CQL and DQN have nothing to learn"
    assert said in outcome.err
    assert said in wsa("show", "Freeway").err


def test_learning_without_a_reward_is_reported(filled, monkeypatch):
    run = ("learn", "--game", "Breakout", "--updates", 2, "--json")
    assert "earned a reward" not in filled(*run, "--run-dir", "a").err
    read = flat_map.materialise

    def worthless(*arguments, **details):
        flat = read(*arguments, **details)
        flat.rows = flat.rows.copy()
        flat.rows["reward"] = 0
        return flat

    monkeypatch.setattr(data, "materialise", worthless)
    outcome = filled(*run, "--run-dir", "b")
    assert "of Breakout earned a reward" in outcome.err
    found = strict(outcome.out)
    assert {"losses", "validation", "weight"} <= found.keys()
    assert "report b/report.html\nPlay full games with it: wsa eval b" in outcome.err
    assert "earned a reward" not in filled(*run, "--algo", "bc", "--run-dir", "c").err


def test_an_evaluation_may_leave_its_results_elsewhere(filled, tmp_path):
    run = ("eval", "run", "--episodes", "1", "--num-envs", "1")
    planned = filled(*run, "--dry-run", "--json")
    assert strict(planned.out) == {"games": 1, "random_games": 1, "steps_at_most": 2 * 150}
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    outcome = filled(*run, "--out", "elsewhere")
    assert outcome.code == 0
    assert "by the run, then as many by a random policy" in outcome.err
    assert "games elsewhere/eval.csv, elsewhere/eval_weights.npz" in outcome.err
    assert "report elsewhere/report.html" in outcome.err
    kept = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert kept == {"eval.csv", "eval_weights.npz", "evaluations", "report.html"}
    table = (tmp_path / "elsewhere" / "eval.csv").read_bytes()
    assert len(table.splitlines()) == 1 + 2
    filled(*run, "--out", "elsewhere", "--again")  # The same games again.
    assert (tmp_path / "elsewhere" / "eval.csv").read_bytes() == table
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    (tmp_path / "file").write_text("")
    refused = filled(*run, "--out", "file/results")
    assert refused.code == 6 and "file/results" in refused.error


def test_repeating_an_evaluation_plays_nothing(filled, tmp_path, unchanged):
    run = ("eval", "run", "--num-envs", "1", "--seed", "77", "--json", "--out", "out")
    first = filled(*run, "--episodes", "1")
    with unchanged():
        second = filled(*run, "--episodes", "1")
    played, found = strict(first.out), strict(second.out)
    costs = {
        "frames",
        "found_in_store",
        "seen_before_live",
        "hit_rate",
        "backbone_passes",
        "seconds",
    }
    assert played["backbone_passes"] > 0 and not any(found[name] for name in costs)
    assert {k: v for k, v in found.items() if k not in costs} == {
        k: v for k, v in played.items() if k not in costs
    }
    assert "played before" in second.err and "another evaluation" not in second.err
    planned = strict(filled(*run, "--episodes", "1", "--dry-run").out)
    assert planned == {"games": 0, "random_games": 0, "steps_at_most": 0}
    # Anything else is another evaluation, whose weights replace this one's.
    for other in (("--variant", "look:invert"), ("--epsilon", "0.5"), ("--again",), ("--video",)):
        assert strict(filled(*run, "--episodes", "1", *other, "--dry-run").out)["games"] == 1
    (tmp_path / "out" / "eval_weights.npz").write_bytes(b"of another one")
    outcome = filled(*run, "--episodes", "1")
    assert strict(outcome.out) == found and "is of another evaluation" in outcome.err
    # Without the table there is nothing to refer to.
    (tmp_path / "out" / "eval.csv").unlink()
    assert strict(filled(*run, "--episodes", "1", "--dry-run").out)["games"] == 1
