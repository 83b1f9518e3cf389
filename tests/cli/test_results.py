"""What commands print and leave: tables, JSON, dry runs, and nothing new the second time."""

from __future__ import annotations

import re
import types
from typing import Any

import pytest
from command_kit import ALIAS, COLLECT, ENCODE, LEARN, MODEL, read_files, read_json

from wsa.encode.models.registry import ALIASES
from wsa.learn.commands.learn import mean_returns
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.runs import data, evaluations
from wsa.learn.training import metrics
from wsa.store.objects import flat_map


def test_collecting_and_encoding_again_do_nothing(filled, key, unchanged):
    with unchanged():
        assert filled(*COLLECT, "--json").json["segments"] == 0
        report = filled(*ENCODE, "--json").json
    assert (report["objects"], report["passes"], report["copied"]) == (0, 0, 0)
    assert (report["present"], report["fit_passes"]) == (4, 0)
    # A model that is named twice is encoded once; a stored key has the output it was made with.
    assert filled(*ENCODE[:2], f"{MODEL},{MODEL}", *ENCODE[3:], "--json").json["present"] == 4
    by_key = filled("encode", "--models", key, "--scheduler", "inproc", "--json").json
    assert (list(by_key["models"]), by_key["objects"], by_key["present"]) == ([key], 0, 4)
    for option in ("--output map", "--geometry pad", "--precision bf16"):
        refused = filled("encode", "--models", key, *option.split())
        assert (
            refused.code == 2 and f"has no effect: a key such as {key} has its own" in refused.error
        )
    assert filled("encode", "--models", f"{key[:-1]}g").code == 2
    unknown = key[:-1] + ("0" if key[-1] != "0" else "1")
    assert filled("encode", "--models", unknown).code == 3


def test_a_finished_run_is_left_alone(filled, tmp_path):
    checkpoints = read_files(tmp_path / "run" / "checkpoints")
    planned = filled("learn", "--resume", "run", "--dry-run", "--json").json
    for command in ((*LEARN, "--updates", 3, "--run-dir", "run"), ("learn", "--resume", "run")):
        summary = filled(*command, "--json").json
        assert summary["updates"] == 0
        counts = {name: n for name, n in summary.items() if name.startswith("parameters")}
        assert counts == {name: planned[name] for name in counts} and len(counts) == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Trainable parameters" in page and f"{counts['parameters']:,}" in page
    assert read_files(tmp_path / "run" / "checkpoints") == checkpoints


def test_a_dry_run_of_training_changes_nothing(filled, unchanged):
    with unchanged():
        text = filled(*LEARN, "--dry-run")
        found = filled(*LEARN, "-n", "--json").json
    assert text.code == 0
    for column in ("steps", "segments", "cache_bytes", "minutes", "parameters"):
        assert found[column] > 0 and column.replace("_", " ") in text.out


def test_a_dry_run_of_a_run_that_is_there_says_what_is_left(filled, unchanged):
    with unchanged():
        for updates, left in ((3, 0), (5, 2)):
            command = (*LEARN, "--updates", updates, "--run-dir", "run", "--dry-run", "--json")
            outcome = filled(*command)
            assert (outcome.code, outcome.json["updates"]) == (0, left)
            assert (outcome.json["minutes"] > 0) == (left > 0)
            assert f"trained so far: 3 of {updates} updates" in outcome.err


def test_a_dry_run_of_encoding_changes_nothing(filled, unchanged):
    command = ("encode", "--models", MODEL, "--output", "grid:2", "--scheduler", "inproc")
    with unchanged():
        text = filled(*command, "--dry-run")
        found = filled(*command, "-n", "--json").json["models"][ALIAS]
    assert text.code == 0 and "nothing was changed" in text.out
    assert found["objects"] == 4
    assert found["passes"] + found["copies"] == 196
    assert found["bytes"] == 196 * 2 * 2 * 96 * 2
    assert found["minutes"] > 0


def test_a_dry_run_of_collecting_starts_no_store(wsa, tmp_path, unchanged):
    with unchanged():
        outcome = wsa(*COLLECT, "--dry-run", "--json")
    assert outcome.err.startswith("store ./store, not there yet\n")
    assert not (tmp_path / "store").exists()
    assert all(outcome.json[name] > 0 for name in ("steps", "segments", "bytes", "minutes"))


def test_json_is_one_document_and_the_store_is_named_beside_it(filled):
    for command in (
        "list",
        "show Breakout",
        "du",
        "models",
        "verify",
        "export x.zarr --game Breakout --dry-run",
        "learn --game Breakout --dry-run",
        "collect --game Breakout --steps 8 --num-envs 1",
    ):
        outcome = filled(*command.split(), "--json")
        assert outcome.json, command
        assert outcome.err.splitlines()[0] == "store ./store", command


def test_the_option_names_the_store_before_the_environment(filled, tmp_path, monkeypatch):
    monkeypatch.setenv("WSA_STORE", str(tmp_path / "elsewhere"))
    assert filled("list").code == 3
    assert filled("list", "--store", "store").code == 0
    monkeypatch.delenv("WSA_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert "There is no store at ./data/wsa/store yet." in filled("list").err


def test_progress_is_plain_lines_on_standard_error(filled):
    outcome = filled(*COLLECT[:3], "--steps", 240, *COLLECT[5:])
    assert outcome.out.splitlines()[:2] == ["segments         2", "steps            40"]
    _, plan, progress = outcome.err.splitlines()[:3]
    assert plan == (
        "Breakout, protocol classic (sticky actions 0, up to 30 no-ops, FIRE at a reset, 4 "
        "actions, skip 4, at most 150 steps an episode): 40 of 240 steps to play (160 "
        "emulator frames)"
    )
    assert progress.startswith("collect: 40 of 40 steps, ") and progress.endswith(" left")
    assert "\r" not in outcome.err and "\x1b" not in outcome.err


def test_list_counts_games_and_what_is_encoded(filled, key):
    out = filled("list").out.splitlines()
    header = "game segments steps distinct frames episodes mean return size"
    assert " ".join(out[0].split()) == header
    assert out[2].split()[:6] == ["Breakout", "4", "200", "196", "0", "-"]
    assert out[3:5] == ["", "segments with frames, and with embeddings of each model"]
    assert [line.split() for line in out[7:]] == [
        ["Breakout", "(frames)", "4", "of", "4", "100%"],
        ["Breakout", key, "4", "of", "4", "100%"],
    ]
    games = filled("list", "--games").out.split()
    assert len(games) == 104 and "MsPacman" in games
    assert filled("list", "--games", "--json").json == games


def test_show_takes_a_game_a_segment_or_a_model(filled, key):
    assert filled("show", key, "--json").json["games"] == {"Breakout": "4 of 4 segments"}
    assert "Breakout  4 of 4 segments" in filled("show", key).out
    game = filled("show", "Breakout").out
    assert filled("show", "ALE/Breakout-v5").out == game
    # A game's card names runs, not each of their segments.
    assert not re.search(r"[0-9a-f]{12}-e000-000000000-", game)
    (run,) = re.findall(r"run ([0-9a-f]{12})", game)
    card = filled("show", f"{run}-e001-000000064-00036", "--json").json
    assert (card["game"], card["start"], card["steps"]) == ("Breakout", 64, 36)
    assert list(card["embeddings"]) == [key]
    assert filled("show", f"{run}-e009-000000064-00036").code == 3
    assert filled("show", "other-0123456789ab").code == 3
    assert filled("show", "Breakot").code == 2


def test_show_writes_a_page(filled, key, tmp_path):
    outcome = filled("show", "Breakout", "--html", "new/page.html", "--json")
    assert outcome.err == "store ./store\n"
    page = (tmp_path / "new" / "page.html").read_text()
    assert outcome.json == {"page": "new/page.html", "bytes": len(page.encode())}
    assert f"{key}, frame 1" in page and "none: random weights" in page
    (run,) = re.findall(r"run ([0-9a-f]{12})", filled("show", "Breakout").out)
    for options, message in (
        ((f"{run}-e001-000000064-00036", "--html", "page.html"), "--html is for a game"),
        (("Breakout", "--probe", "p.json"), "add --html"),
        (("Breakout", "--html", "new"), "is a folder"),
        (("Breakout", "--html", "page.html", "--probe", "p.json"), "there is no such file"),
    ):
        refused = filled("show", *options)
        assert refused.code == 2 and message in refused.error
    assert not (tmp_path / "page.html").exists()


def test_models_lists_licenses_and_marks_random_weights(filled, key):
    lines = {line.split()[0]: line.split() for line in filled("models").out.splitlines() if line}
    for alias, published in ALIASES.items():
        assert lines[alias][1:3] == [published.timm_name, published.license]
    assert lines[key][1:4] == [ALIAS, "(random", "weights)"]
    found = filled("models", "--json").json
    assert found["aliases"]["palette"]["weights_here"] == "needs none"
    assert found["stored"][0]["license"] == "none: random weights"
    assert found["aliases"]["swin"]["license"] == "mit"


def test_models_needs_no_store(wsa, unchanged):
    with unchanged():
        code, out, err = wsa("models")
    assert (code, err) == (0, "store ./store, not there yet\n")
    assert "The store has no models yet" in out


def test_doctor_checks_libraries_and_the_store(filled, tmp_path, monkeypatch):
    from wsa.learn.commands import doctor

    code, out, _ = filled("doctor")
    assert code == 0
    assert "104 ALE games with their ROMs" in out
    assert "./store: 13 objects, Breakout" in out
    monkeypatch.setattr(doctor, "LIBRARIES", ("zarr", "no-such-library"))
    monkeypatch.setattr(doctor, "FLOORS", {"zarr": (99,)})
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "wsa.json").write_text('{"format":2}')
    code, out, _ = filled("doctor", "--json", "--store", "new")
    found = read_json(out)
    assert code == 3
    bad = {name for name, check in found.items() if check["ok"] is False}
    assert bad == {"zarr", "no-such-library", "store"}
    assert found["no-such-library"]["found"] == "not installed; pip install no-such-library"
    assert found["zarr"]["found"].endswith("; pip install 'zarr>=99'")


def test_play_without_a_reward_is_reported(wsa):
    outcome = wsa("collect", "--game", "Freeway", "--steps", "60", "--num-envs", "2", "--json")
    assert outcome.json["rewarded_steps"] == 0
    warning = (
        "none of these 60 steps of Freeway earned a reward, so CQL and DQN have nothing to learn"
    )
    assert warning in outcome.err and warning in wsa("show", "Freeway").err


def test_learning_without_a_reward_is_reported(filled, monkeypatch):
    def read_without_rewards(*arguments, **details):
        flat = flat_map.materialize(*arguments, **details)
        flat.rows = flat.rows.copy()
        flat.rows["reward"] = 0
        return flat

    monkeypatch.setattr(data, "materialize", read_without_rewards)
    outcome = filled(*LEARN, "--updates", 2, "--run-dir", "new", "--json")
    assert "of Breakout earned a reward" in outcome.err
    assert {"losses", "validation", "weight"} <= outcome.json.keys()
    assert "report new/report.html\nPlay full games with it: wsa eval new" in outcome.err
    cloning = filled(*LEARN, "--updates", 2, "--algo", "bc", "--run-dir", "cloned")
    assert cloning.code == 0 and "earned a reward" not in cloning.err


def test_the_result_of_a_run_has_the_returns_of_its_games(tmp_path):
    assert mean_returns(tmp_path) == {}
    with metrics.Metrics(tmp_path) as run:
        for step in range(200):
            run.write(step, {metrics.TRAINING_RETURN: 0.0 if step < 150 else 4.0})
        run.write(200, {metrics.EVALUATION_RETURN: 3.0})
    assert mean_returns(tmp_path) == {"training_return": 2.0, "evaluation_return": 3.0}


def test_an_evaluation_may_leave_its_results_elsewhere(filled, tmp_path):
    config = tmp_path / "run" / "config.json"
    config.write_text(re.sub(r'("max_steps": ?)150', r"\g<1>20", config.read_text()))
    command = ("eval", "run", "--episodes", "1", "--num-envs", "1")
    planned = filled(*command, "--dry-run", "--json").json
    assert planned == {"games": 1, "random_games": 1, "steps_at_most": 2 * 20}
    run = read_files(tmp_path / "run")
    outcome = filled(*command, "--out", "elsewhere", "--json")
    assert outcome.json
    assert outcome.err.startswith("store ./store\n")
    assert "games: the run plays 1, and a random policy as many if this machine" in outcome.err
    assert "1 of 1 games had not ended after 20 steps" in outcome.err
    assert "games elsewhere/eval.csv, elsewhere/eval_weights.npz" in outcome.err
    assert "report elsewhere/report.html" in outcome.err
    results = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert results == {"eval.csv", "eval_weights.npz", "evaluations", "report.html"}
    table = (tmp_path / "elsewhere" / "eval.csv").read_bytes()
    assert len(table.splitlines()) == 1 + 2
    filled(*command, "--out", "elsewhere", "--again")  # The same games are not recorded twice.
    assert (tmp_path / "elsewhere" / "eval.csv").read_bytes() == table
    assert read_files(tmp_path / "run") == run
    (tmp_path / "file").write_text("")
    refused = filled(*command, "--out", "file/results")
    assert refused.code == 6 and "file/results" in refused.error


def test_repeating_an_evaluation_plays_nothing(filled, tmp_path, unchanged):
    run = ("eval", "run", "--num-envs", "1", "--seed", "77", "--json", "--out", "out")
    first = filled(*run, "--episodes", "1")
    with unchanged():
        second = filled(*run, "--episodes", "1")
    played, found = read_json(first.out), read_json(second.out)
    costs = {
        "frames",
        "found_in_store",
        "seen_before_live",
        "hit_rate",
        "backbone_passes",
        "seconds",
    }
    assert played["return_low"] is played["return_high"] is None, "one game has no interval"
    assert played["backbone_passes"] > 0 and not any(found[name] for name in costs)
    assert {k: v for k, v in found.items() if k not in costs} == {
        k: v for k, v in played.items() if k not in costs
    }
    assert list(found) == list(played)
    assert "played before" in second.err and "another evaluation" not in second.err
    planned = read_json(filled(*run, "--episodes", "1", "--dry-run").out)
    assert planned == {"games": 0, "random_games": 0, "steps_at_most": 0}
    # Anything else is another evaluation, whose weights replace this one's.
    for other in (("--variant", "look:invert"), ("--epsilon", "0.5"), ("--again",), ("--video",)):
        assert read_json(filled(*run, "--episodes", "1", *other, "--dry-run").out)["games"] == 1
    (tmp_path / "out" / "eval_weights.npz").write_bytes(b"of another one")
    outcome = filled(*run, "--episodes", "1")
    assert read_json(outcome.out) == found and "is of another evaluation" in outcome.err
    # Without the weights or the table there is nothing to refer to.
    for name in ("eval_weights.npz", "eval.csv"):
        (tmp_path / "out" / name).unlink()
        assert read_json(filled(*run, "--episodes", "1", "--dry-run").out)["games"] == 1
        (tmp_path / "out" / name).write_bytes(b"")
    (record,) = (tmp_path / "out" / "evaluations").iterdir()
    record.write_text("{")
    damaged = filled(*run, "--episodes", "1", "--dry-run")
    assert damaged.code == 5 and damaged.error.endswith("or play the games again with --again.")


@pytest.mark.parametrize("name", ["trained", "updates"])  # An older wsa recorded `updates`.
def test_games_of_a_newer_network_are_not_recorded_as_those_of_an_older_one(filled, tmp_path, name):
    run = tmp_path / "run"
    key = evaluations.key_of(run, EvaluationRequest(episodes=1))
    (run / evaluations.TABLE).touch()
    for network, recorded in (("0" * 12, False), (key.checkpoint[:12], True)):
        player = types.SimpleNamespace(digest=network, weighs=False)
        finished: Any = types.SimpleNamespace(player=player, summary=lambda: {name: 3, "a": 1})
        evaluations.keep(run, run, key, finished)
        found = evaluations.find(run, run, key)
        assert (found is not None) == recorded
    assert found is not None
    assert list(found.result.items()) == [("trained", 3), ("unit", "updates"), ("a", 1)]
