"""What is taken where no model is named: encoders that come with wsa, and the paper's roles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wsa.encode.configs import EncodeOptions
from wsa.encode.models.registry import DEFAULT
from wsa.store.common import names

ONLINE = (
    *("--online", "--algo", "ppo", "--total-timesteps", 16, "--num-envs", 1),
    *("--num-steps", 16, "--num-minibatches", 2, "--update-epochs", 1),
)


@pytest.fixture
def learnt(wsa):
    """Train for a moment; the aliases of what is fused, and of what gives the context."""

    def learn(run: str, *options: object) -> tuple[list[str], str]:
        outcome = wsa("learn", "--game", "Pong", *options, "--run-dir", run)
        assert outcome.code == 0, outcome.err
        config = json.loads((Path(run) / "config.json").read_text())
        context = config["context"]
        return (
            [names.key_alias(key) for key in config["models"]],
            context if context == "mean" else names.key_alias(context),
        )

    return learn


def keys_of(run: str) -> list[str]:
    found: list[str] = json.loads((Path(run) / "config.json").read_text())["models"]
    return found


def test_the_shipped_set_is_taken_where_none_is_named(wsa, learnt):
    assert EncodeOptions().models == DEFAULT
    wsa("collect", "--game", "Pong", "--steps", 24, "--num-envs", 2)
    assert learnt("online", *ONLINE) == ([*DEFAULT], "mean")
    assert wsa("encode", "--scheduler", "inproc").code == 0
    fused, context = learnt("offline", "--updates", 2, "--batch-size", 4)
    assert (sorted(fused), context) == (sorted(DEFAULT), "mean")
    assert sorted(keys_of("offline")) == sorted(keys_of("online"))
    # What a colleague encodes changes nothing.
    another = ("--models", "timm:test_resnet.r160_in1k:random", "--output", "pooled")
    assert wsa("encode", *another, "--scheduler", "inproc").code == 0
    offline = ("learn", "--game", "Pong", "--updates", 2, "--batch-size", 4)
    outcome = wsa(*offline, "--run-dir", "later")
    assert keys_of("later") == keys_of("offline")
    pinned = f"--models {','.join(keys_of('later'))}"
    assert f"so these are taken. To keep them: {pinned}\n" in outcome.err
    outcome = wsa(*offline, *pinned.split(), "--run-dir", "pinned")
    assert keys_of("pinned") == keys_of("later") and "To keep them" not in outcome.err
    # Nor does a default model that lags behind: it is not replaced by one that is complete.
    wsa("collect", "--game", "Pong", "--steps", 48, "--num-envs", 2)
    assert wsa("encode", *another, "--scheduler", "inproc").code == 0
    outcome = wsa(*offline, "--run-dir", "behind")
    assert outcome.code == 3 and "has not encoded every segment of Pong" in outcome.error


@pytest.mark.slow
def test_of_the_papers_encoders_ae_gives_the_context(wsa, learnt):
    paper = ("--models", "ae,sr,okk,vos")
    wsa("collect", "--game", "Pong", "--steps", 24, "--num-envs", 2)
    # An untrained one that is there first is not what comes with wsa.
    assert wsa("encode", "--models", "sr:random", "--scheduler", "inproc").code == 0
    assert wsa("encode", *paper, "--scheduler", "inproc").code == 0
    offline = ("--updates", 2, "--batch-size", 4)
    assert learnt("trained", *offline, "--models", "sr") == (["sr"], "mean")
    assert learnt("untrained", *offline, "--models", "sr:random") == (["sr"], "mean")
    assert keys_of("trained") != keys_of("untrained")
    fused, context = learnt("offline", *offline)
    assert (sorted(fused), context) == (["okk", "sr", "sr", "vos"], "ae")
    fused, context = learnt("mean", *offline, "--context", "mean")
    assert (sorted(fused), context) == (["ae", "okk", "sr", "sr", "vos"], "mean")
    fused, context = learnt("named", *offline, "--context", "okk")
    assert (sorted(fused), context) == (["ae", "sr", "sr", "vos"], "okk")


@pytest.mark.slow
def test_the_demo_says_what_it_cost(wsa):
    outcome = wsa("demo", "--steps", 64, "--updates", 4, "--episodes", 1)
    assert outcome.code == 0, outcome.err
    told = {line.split("  ")[0]: line for line in outcome.out.splitlines()}
    assert all(alias in told["models"] for alias in DEFAULT)
    assert " 0  " in told["passes to train"]
    assert "frames and windows were in the cache" in told["passes to play"]
