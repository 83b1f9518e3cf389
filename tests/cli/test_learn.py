"""What `wsa learn` takes: algorithms, fusions, and runs that begin from others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

MODEL = "timm:test_resnet.r160_in1k:random"
OTHER = "timm:test_vit.r160_in1k:random"
RESNET, VIT = "test_resnet_r160_in1k", "test_vit_r160_in1k"
LEARN = ("learn", "--game", "Breakout", "--updates", 4, "--batch-size", 4, "--fusion-size", 8)


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.slow
def test_models_join_and_leave(filled, tmp_path):
    encode = ("encode", "--models", OTHER, "--output", "pooled", "--scheduler", "inproc")
    assert filled(*encode).code == 0
    first = filled(*LEARN, "--models", RESNET, "--run-dir", "one")
    assert first.code == 0, first.err
    more = filled(*LEARN[:-2], "--init", "one", "--add", VIT, "--run-dir", "two", "--json")
    assert more.code == 0, more.err
    assert json.loads(more.out)["updates"] == 4
    keys = config(tmp_path / "two")["models"]
    assert [key.rpartition("-")[0] for key in keys] == [RESNET, VIT]
    assert config(tmp_path / "two")["network"] == config(tmp_path / "one")["network"]
    fewer = filled(
        *LEARN[:-2], "--init", "two", "--drop", RESNET, "--algo", "bc", "--run-dir", "three"
    )
    assert fewer.code == 0, fewer.err
    assert config(tmp_path / "three")["models"] == keys[1:]
    for options, says in (
        (("--init", "two", "--models", RESNET), "--models differ from those of two"),
        (("--init", "two", "--fusion-size", "16"), "the network options differ"),
        (("--init", "two", "--clip-embeddings", "3"), "the network options differ"),
        (("--init", "two", "--drop", "vit"), "--drop vit: the run's models are"),
        (("--init", "two", "--add", RESNET), f"--add {keys[0]}: the run already has this model"),
        (("--init", "two", "--context", VIT), "the context of two is mean"),
        (("--init", "nowhere"), "nowhere/checkpoints has no checkpoint"),
        (("--add", VIT), "name the run with --init"),
    ):
        outcome = filled(*LEARN[:-2], *options, "--run-dir", "no")
        assert outcome.code in (2, 3) and says in outcome.error, outcome.err
        assert outcome.err.count("\n") <= 2 and not (tmp_path / "no").exists()


@pytest.mark.slow
def test_the_best_is_played_only_if_asked(filled, tmp_path):
    learned = filled(*LEARN, "--algo", "bc", "--save-best", "--run-dir", "new")
    assert learned.code == 0, learned.err
    assert config(tmp_path / "new")["hyperparameters"]["type"] == "bc"
    for which in ("final", "best"):
        played = filled("eval", "new", "--episodes", 1, "--checkpoint", which, "--json")
        assert json.loads(played.out)["checkpoint"] == which
    policies = [
        line.split(",")[1] for line in (tmp_path / "new" / "eval.csv").read_text().splitlines()
    ]
    assert policies == ["policy", "run", "random", "best", "random"]
    outcome = filled("eval", "run", "--checkpoint", "best")
    assert outcome.code == 3 and "--save-best" in outcome.error


@pytest.mark.slow  # Played in the tests' own process in `learn/test_run.py`.
def test_a_variant_is_played_and_named(filled, tmp_path):
    played = filled("eval", "run", "--episodes", 1, "--variant", "look:grey+noise=0.1", "--json")
    assert json.loads(played.out)["variant"] == "look:grey+noise=0.1"
    assert "look:grey+noise=0.1" in (tmp_path / "run" / "eval.csv").read_text()


def test_a_variant_is_named_as_it_is_spelled(filled):
    outcome = filled("eval", "run", "--variant", "look:gray")
    assert outcome.code == 2 and "Did you mean look:grey" in outcome.error


@pytest.mark.variants
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--algo", "dqn", "--n-step", 3), {"type": "dqn", "n_step": 3}),
        (("--cql-alpha", 4), {"type": "cql", "cql_alpha": 4, "n_step": 1}),
    ],
)
def test_algorithms(filled, tmp_path, options, expected):
    outcome = filled(*LEARN, *options, "--run-dir", "new")
    assert outcome.code == 0, outcome.err
    found = config(tmp_path / "new")["hyperparameters"]
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("fusion", ["lin", "fix", "res", "dpa", "mean", "uniform", "single"])
def test_every_fusion_can_be_asked_for(filled, unchanged, fusion):
    with unchanged():
        assert filled(*LEARN, "--fusion", fusion, "--dry-run").code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--fusion cnn", "every model gives a vector"),
        ("--fusion lin --weight-entropy-coef 0.1", "--fusion lin learns none"),
        ("--fusion fix --context test_resnet_r160_in1k", "leave out --context"),
        ("--hidden 12,many", "--hidden: 'many' is not a whole number"),
        ("--temperature 0", "--temperature must be positive"),
        ("--frame-stack 5", "--frame-stack must be from 1 to 4"),
        ("--save-best --validation-fraction 0", "--save-best needs"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_a_line(filled, unchanged, options, says):
    with unchanged():
        outcome = filled(*LEARN, *options.split(), "--run-dir", "new")
    assert outcome.code == 2 and says in outcome.error, outcome.err
