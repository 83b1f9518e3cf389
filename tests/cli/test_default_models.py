"""Without `--models`: the encoders that come with wsa, and in a store of the paper's, their roles."""

import re

import pytest
from command_kit import ENCODE

from wsa.encode.configs import EncodeOptions
from wsa.encode.models.registry import DEFAULT
from wsa.store.common import names

OFFLINE = ("learn", "--game", "Pong", "--updates", 2, "--batch-size", 4)
ONLINE = (
    "learn", "--game", "Pong", "--online", "--algo", "ppo", "--total-timesteps", 16, "--num-envs", 1,
    "--num-steps", 16, "--num-minibatches", 2, "--update-epochs", 1,
)  # fmt: skip
ENCODE_DEFAULT = ("encode", "--scheduler", "inproc")
COLLECT = ("collect", "--game", "Pong", "--num-envs", 2, "--steps")


def planned_models(outcome):
    """Keys of the models that a run fuses, and the one that gives the context."""
    assert outcome.code == 0, outcome.err
    models, context = re.findall(r"; models ([^;]+); (?:context ([^;\s]+))?", outcome.err)[0]
    return models.split(", "), context


def aliases(keys):
    return sorted(names.key_alias(key) for key in keys)


def test_models_encoded_later_do_not_change_the_default(wsa):
    assert EncodeOptions().models == DEFAULT
    wsa(*COLLECT, 24)
    online, _ = planned_models(wsa(*ONLINE))
    assert wsa(*ENCODE_DEFAULT).code == 0
    keys, context = planned_models(wsa(*OFFLINE, "--dry-run"))
    assert (aliases(keys), context) == (sorted(DEFAULT), "mean")
    assert sorted(online) == sorted(keys)
    # A colleague's model changes nothing.
    assert wsa(*ENCODE).code == 0
    outcome = wsa(*OFFLINE, "--dry-run")
    assert planned_models(outcome) == (keys, "mean")
    pinned = f"--models {','.join(keys)}"
    assert f"so wsa takes these. To keep them: {pinned}\n" in outcome.err
    outcome = wsa(*OFFLINE, *pinned.split(), "--dry-run")
    assert planned_models(outcome) == (keys, "mean") and "To keep them" not in outcome.err
    # A default model that is not complete is not replaced by one that is.
    wsa(*COLLECT, 48)
    assert wsa(*ENCODE).code == 0
    outcome = wsa(*OFFLINE, "--dry-run")
    assert outcome.code == 3 and "has not encoded every segment of Pong" in outcome.error


@pytest.mark.slow
def test_of_the_papers_encoders_ae_gives_the_context(wsa):
    wsa(*COLLECT, 24)
    # An untrained model that is encoded first is not the one that comes with wsa.
    for models in ("sr:random", "ae,sr,okk,vos"):
        assert wsa("encode", "--models", models, "--scheduler", "inproc").code == 0

    def plan(*options):
        keys, context = planned_models(wsa(*OFFLINE, *options, "--dry-run"))
        return aliases(keys), context if context == "mean" else names.key_alias(context)

    trained = planned_models(wsa(*OFFLINE, "--models", "sr", "--dry-run"))
    untrained = planned_models(wsa(*OFFLINE, "--models", "sr:random", "--dry-run"))
    assert aliases(trained[0]) == aliases(untrained[0]) == ["sr"] and trained != untrained
    assert plan() == (["okk", "sr", "sr", "vos"], "ae")
    assert plan("--context", "mean") == (["ae", "okk", "sr", "sr", "vos"], "mean")
    assert plan("--context", "okk") == (["ae", "sr", "sr", "vos"], "okk")


@pytest.mark.slow
def test_the_demo_says_what_it_cost(wsa):
    outcome = wsa("demo", "--steps", 64, "--updates", 4, "--episodes", 1)
    assert outcome.code == 0, outcome.err
    rows = {line.split("  ")[0]: line for line in outcome.out.splitlines()}
    assert all(alias in rows["models"] for alias in DEFAULT)
    assert " 0  " in rows["passes to train"]
    assert "frames and windows were in the cache" in rows["passes to play"]
