"""`wsa probe`, as a user meets it."""

from __future__ import annotations

import csv
import json

import pytest

PROBE = ("probe", "--game", "Breakout", "--samples", "200")
NAME = "test_resnet_r160_in1k:random"


def test_variables_of_the_game_are_read_out(filled, key, unchanged):
    with unchanged():
        code, out, err = filled(*PROBE, "--json", "--baselines", "pixels")
    found = json.loads(out)
    assert code == 0
    assert found["split_by"] == "segments" and "too few episodes" in err
    assert found["learned_from"] + found["chosen_by"] + found["judged"] <= 200
    floor, pixels, model = found["models"]
    assert (model["name"], model["key"], model["numbers"]) == (NAME, key, 96)
    assert pixels["name"] == "pixels 88" and floor["numbers"] == 0
    assert {"ball x", "ball y", "player x"} <= model["scores"].keys() == floor["scores"].keys()
    assert model["scores"]["player x"]["r2"] > floor["scores"]["player x"]["r2"]
    assert 0 <= model["mean_f1"] <= 1 and model["kept"] == pytest.approx(1)
    assert all(value < 0.6 for value in found["left_out"].values())


def test_tables_are_markdown(filled):
    code, out, err = filled(*PROBE, "--target", "reward", "--horizon", "10")
    lines = out.splitlines()
    assert code == 0
    assert " ".join(lines[0].split()) == "| model | numbers | F1 (plain mean of the values') | R2 |"
    assert any(line.startswith(f"| {NAME}") for line in lines)
    assert any(line.startswith("| next 10 steps") for line in lines)
    assert err.splitlines()[-1].startswith("probe: 1 of 1 models")


def test_a_line_for_each_model_and_variable(filled, key):
    code, out, err = filled(*PROBE, "--target", "action", "--csv", "--models", key)
    rows = list(csv.DictReader(out.splitlines()))
    assert code == 0
    assert [(row["model"], row["variable"], row["r2"]) for row in rows] == [
        ("(most frequent, mean)", "action", ""),
        (NAME, "action", ""),
    ]
    assert "played at random" in err


def test_untrained_and_trained_are_told_apart(filled, key):
    untrained = "timm:test_resnet.r160_in1k:random"
    assert filled(*PROBE, "--models", untrained, "--dry-run").code == 0
    for name in (untrained.removesuffix(":random"), "lite0", "lite0-0123456789ab"):
        outcome = filled(*PROBE, "--models", name, "--dry-run")
        assert outcome.code == 3
        assert outcome.error.endswith(f"Run: wsa encode --game Breakout --models {name}")
        assert f"has not encoded frames of Breakout in ./store. There is {key}." in outcome.error


def test_a_dry_run_reads_nothing_but_records(filled, unchanged):
    with unchanged():
        code, out, _ = filled(*PROBE, "--dry-run", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["segments"], found["steps"], found["samples"]) == (4, 200, 200)
    assert list(found["numbers"].values()) == [96] and found["memory_bytes"] > 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("--samples 10", 2, "--samples must be from 100 to 100000, not 10."),
        ("--seed -1", 2, "--seed must be from 0 to 2147483647, not -1."),
        ("--horizon 0", 2, "--horizon 0: give numbers of steps from 1 to 1000."),
        ("--baselines random", 2, "--baselines random: there is pixels; an untrained network is a"),
        ("--game Enduro", 2, "Nobody has said which bytes of Enduro's memory hold what"),
        ("--game Pong", 3, "has no frames of Pong. Collect some: wsa collect --game Pong"),
        ("--policies expert", 3, "No segment of Breakout played by expert in ./store"),
    ],
)
def test_what_cannot_be_probed(filled, unchanged, options, code, said):
    with unchanged():
        outcome = filled(*PROBE, *options.split())
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.error
