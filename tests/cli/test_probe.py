"""`wsa probe`: its tables, JSON, dry run, and what it refuses."""

import csv
import json

import pytest

from wsa.learn.probe import samples as probe_data
from wsa.learn.report.probe_result import probe_parts, read_probe

PROBE = ("probe", "--game", "Breakout", "--samples", "200")
NAME = "test_resnet_r160_in1k:random"


def test_running_out_of_memory_is_one_line(filled, monkeypatch):
    def draw(*_):
        raise MemoryError

    monkeypatch.setattr(probe_data, "draw", draw)
    outcome = filled(*PROBE)
    assert outcome.code == 6 and "Use fewer --samples" in outcome.error, outcome.err


def test_positions_are_read_out_as_json(filled, key, unchanged, tmp_path):
    with unchanged():
        code, out, err = filled(*PROBE, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["split_by"] == "segments" and "too few episodes" in err
    assert found["splits"] == 4 and found["judged"] <= found["samples"] == 200
    state, *_, floor = found["models"]
    others = {line["name"]: line for line in found["models"][1:-1]}
    assert (state["kind"], floor["kind"]) == ("state", "floor")
    assert others.keys() == {NAME, "pixels 88"}
    assert (others[NAME]["key"], others[NAME]["numbers"]) == (key, 96)
    assert others[NAME]["kept"] == pytest.approx(1)
    assert {"ball x", "player x"} <= state["both"]["r2"].keys()
    assert state["both"]["r2"]["player x"] == pytest.approx(1, abs=1e-3)
    assert others[NAME]["both"]["r2"]["player x"] > floor["both"]["r2"]["player x"]
    assert found["calibration"]["r2"]["ranks"] and found["ranked_by"] == "r2"
    assert found["hit_within"] == 4 and 0 < found["on_screen"]["ball x"] < 1
    assert found["seen_in_training"]["player"]["random"] > 0
    assert found["play"]["random"]["steps"] == 200 and "better" not in found["play"]
    assert "There is only random play" in err and not state["f1"] and "transfer" not in state
    # The page of `wsa show --html` shows it.
    (tmp_path / "probe.json").write_text(out)
    means, variables = probe_parts(read_probe(tmp_path / "probe.json", "Breakout"))
    assert [row[0] for row in means.rows] == [line["name"] for line in found["models"]]
    assert means.columns == ("model", "numbers", "R2", "hit") and "ball x" in variables.columns


def test_tables_are_markdown(filled):
    code, out, err = filled(*PROBE, "--target", "reward", "--horizon", "10")
    lines = out.splitlines()
    assert code == 0
    assert " ".join(lines[0].split()) == "| model | numbers | R2 | 64 axes: R2 |"
    assert any(line.startswith(f"| {NAME}") for line in lines)
    assert "F1 (plain mean over values), first split" in lines
    assert any("next 10 steps" in line for line in lines)
    assert err.splitlines()[-1].startswith("probe: 2 of 2 embeddings")


@pytest.mark.slow
def test_f1_is_added_on_request(filled):
    code, out, _ = filled(*PROBE, "--f1", "--splits", "3", "--samples", "150")
    assert code == 0
    assert "Ranked by R2." in out and "A hit is within 4 units of memory." in out
    head, _, f1 = out.partition("F1 of exact values, first split")
    for part in (head, f1):
        assert "(true state)" in part and NAME in part and "pixels 88" in part
    assert "| ball " in head and "position seen in training" in head


def test_csv_has_a_row_for_each_model_and_variable(filled, key):
    code, out, err = filled(*PROBE, "--target", "action", "--csv", "--models", key)
    rows = list(csv.DictReader(out.splitlines()))
    assert code == 0
    assert {(row["model"], row["variable"], row["r2"]) for row in rows} == {
        (NAME, "action", ""),
        ("pixels 88", "action", ""),
        ("(mean)", "action", ""),
    }
    assert all(row["f1"] for row in rows)
    assert "played at random" in err


def test_untrained_and_trained_models_are_different(filled, key):
    untrained = "timm:test_resnet.r160_in1k:random"
    assert filled(*PROBE, "--models", untrained, "--dry-run").code == 0
    for name in (untrained.removesuffix(":random"), "lite0", "lite0-0123456789ab"):
        outcome = filled(*PROBE, "--models", name, "--dry-run")
        assert outcome.code == 3
        assert outcome.error.endswith(f"Run: wsa encode --game Breakout --models {name}")
        assert f"has not encoded frames of Breakout in ./store. Available: {key}." in outcome.error


@pytest.mark.slow  # To encode takes ten seconds; `learn/probe/test_probe.py` has the same of a fake store.
def test_untrained_networks_are_added_to_encoders_of_wsa(filled):
    assert (
        filled("encode", "--game", "Breakout", "--models", "vos", "--scheduler", "inproc").code == 0
    )
    command = (*PROBE, "--models", "vos", "--samples", "100", "--splits", "3", "--untrained", "2")
    estimate = filled(*command, "--dry-run", "--json").json
    assert (estimate["untrained_networks"], estimate["untrained_passes"]) == (2, 200)
    code, out, _ = filled(*command)
    assert code == 0
    assert "| vos untrained, 2 seeds | 512" in out and "the minimum and maximum" in out


def test_a_dry_run_reads_only_records(filled, unchanged):
    with unchanged():
        found = filled(*PROBE, "--dry-run", "--json").json
    assert (found["segments"], found["steps"], found["samples"]) == (4, 200, 200)
    assert list(found["numbers"].values()) == [96] and found["memory_bytes"] > 0
    assert (found["pixels"], found["untrained_networks"]) == ([96], 0)


def test_a_store_without_frames_has_no_pixels(filled, tmp_path):
    assert filled("push", "bare", "--no-frames").code == 0
    code, out, err = filled(*PROBE, "--store", "bare", "--splits", "3", "--json")
    assert code == 0 and "wsa pull URL --game Breakout" in err
    assert [line["kind"] for line in json.loads(out)["models"]] == ["state", "model", "floor"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--samples 10", 2, "--samples must be from 100 to 100000, not 10."),
        ("--seed -1", 2, "--seed must be from 0 to 2147482647, not -1."),
        ("--csv --json", 2, "Give --csv or --json, not both."),
        ("--splits 2", 2, "--splits must be from 3 to 20, not 2."),
        ("--untrained 11", 2, "--untrained must be from 0 to 10, not 11."),
        ("--horizon 5", 2, "--horizon has no effect: it is for --target reward. Leave it out."),
        ("--horizon 0", 2, "--horizon 0: give numbers of steps from 1 to 1000."),
        ("--game Enduro", 2, "The memory of Enduro is not annotated"),
        ("--game Pong", 3, "has no frames of Pong. Collect some: wsa collect --game Pong"),
        ("--policies expert", 3, "No segment of Breakout played by expert in ./store"),
    ],
)
def test_an_impossible_probe_is_refused(filled, unchanged, options, code, message):
    with unchanged():
        outcome = filled(*PROBE, *options.split())
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.error
