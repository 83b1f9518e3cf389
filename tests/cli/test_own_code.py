"""Fusions, algorithms and policies of a user: the examples of the guides, and what is refused."""

import json
import re
import socket
import sys
from pathlib import Path

import pytest
from command_kit import LEARN, read_config

import wsa as api
from wsa import cli
from wsa.encode.jobs import cluster
from wsa.learn.bench import runner
from wsa.store.common import user_code
from wsa.store.common.errors import StorageError

GUIDES = Path(__file__).parents[2] / "docs/howto"
BLOCK = re.compile(r"^```python\n# (\w+)\.py\n(.*?)^```", re.DOTALL | re.MULTILINE)
TRAIN = (*LEARN, "--updates", 2, "--validation-fraction", 0)
FUSION, ALGORITHM = "own_fusion:Static", "own_algorithm:WeightedBC"
POLICY = "own_policy:Repeating"


def read_examples(guide):
    """Names and sources of the modules that a guide shows."""
    return BLOCK.findall((GUIDES / guide).read_text())


@pytest.fixture
def own(filled, tmp_path, monkeypatch):
    """`wsa` in a folder with the guides' modules, which no command has named yet."""
    monkeypatch.setattr(user_code, "_typed", set())
    for guide in ("own-fusion.md", "own-algorithm.md", "own-policy.md"):
        for name, source in read_examples(guide):
            (tmp_path / f"{name}.py").write_text(source)
    return filled


def forget_names():
    """Forget the modules that earlier commands named, as a new process does."""
    user_code._typed.clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "name"), [(("--fusion",), FUSION), (("--algo",), ALGORITHM)], ids=["fusion", "algo"]
)
def test_own_code_trains_continues_and_plays_only_where_it_is_named(own, tmp_path, flags, name):
    started = own(*TRAIN, *flags, name, "--run-dir", "own")
    assert started.code == 0, started.err
    assert f"wsa eval own --trust {name}\n" in started.err
    assert name in (tmp_path / "own/config.json").read_text()
    checkpoints = sorted((tmp_path / "own/checkpoints").iterdir())
    resume = ("learn", "--resume", "own")
    evaluate = ("eval", "own", "--episodes", 1, "--num-envs", 1)
    for command in (resume, evaluate, (*TRAIN, "--init", "own", "--run-dir", "next")):
        forget_names()
        refused = own(*command)
        assert refused.code == 3 and f"--trust {name}" in refused.error
        assert "own/config.json" in refused.error
    assert not (tmp_path / "next").exists()
    assert own(*resume, "--trust", name).code == 0
    assert sorted((tmp_path / "own/checkpoints").iterdir()) == checkpoints
    forget_names()
    assert own(*evaluate, "--trust", name).code == 0
    forget_names()
    with pytest.raises(api.MissingError):
        api.load_run("own")
    run = api.load_run("own", trust=[name], device="cpu")
    assert run.trained == 2


def test_an_own_algorithms_options_and_losses_are_recorded(own, tmp_path):
    both = ("--fusion", FUSION, "--algo", ALGORITHM, "--bonus", 2.5, "--log-frequency", 1)
    assert own(*TRAIN, *both, "--run-dir", "own").code == 0
    assert read_config(tmp_path / "own")["hyperparameters"]["bonus"] == 2.5
    line = json.loads((tmp_path / "own/metrics.jsonl").read_text().splitlines()[-1])
    assert "losses/weighted_bc" in line
    refused = own(*TRAIN, *both, "--clip-coef", 0.1, "--run-dir", "other")
    assert refused.code == 2 and "is an option of --algo ppo" in refused.error


def test_an_own_update_replaces_that_of_ppo(own, tmp_path):
    (tmp_path / "own_net.py").write_text(NET)
    learned = own(
        "learn", "--online", "--algo", "own_a2c:A2C", "--game", "breakout",
        "--models", "own_net:make", "--output", "pooled", "--total-timesteps", 80, "--num-envs", 2,
        "--num-minibatches", 2, "--fusion-size", 4, "--max-episode-steps", 12, "--run-dir", "a2c",
    )  # fmt: skip
    assert learned.code == 0, learned.err
    lines = [json.loads(line) for line in (tmp_path / "a2c/metrics.jsonl").read_text().splitlines()]
    losses = {key for line in lines for key in line if key.startswith("losses/")}
    assert losses == {"losses/policy_loss", "losses/value_loss"}
    checkpoints = sorted((tmp_path / "a2c/checkpoints").iterdir())
    assert [path.stem for path in checkpoints] == ["000000080"]


def test_an_own_policy_collects_once(own):
    command = ("collect", "--game", "Breakout", "--policy", POLICY, "--steps", 20, "--num-envs", 2)
    assert own(*command, "--json").code == 0
    assert own(*command, "--json").json["segments"] == 0
    assert POLICY in {meta.policy for meta in api.open("store").segments("Breakout")}
    for policy, option, value in ((POLICY, "--eps", 0.1), ("random", "--eps", 0.1),
                                  ("random", "--trust", "a:B")):  # fmt: skip
        refused = own(*command[:3], "--policy", policy, option, value)
        assert refused.error.endswith(f"{option} is for a run's network. Leave it out.")


NET = """
import torch
from wsa import Input, UserModel

def make():
    torch.manual_seed(0)
    return UserModel(torch.nn.Conv2d(1, 4, 8, 8), Input(32, 32, channels="gray"))
"""


def test_an_own_model_is_imported_where_it_is_named(own, tmp_path):
    (tmp_path / "own_net.py").write_text(NET)
    learned = own(
        "learn", "--online", "--algo", "dqn", "--game", "breakout", "--models", "own_net:make",
        "--output", "pooled", "--total-timesteps", 8, "--learning-starts", 4, "--batch-size", 2,
        "--buffer-size", 8, "--fusion-size", 4, "--max-episode-steps", 12, "--run-dir", "net",
    )  # fmt: skip
    assert learned.code == 0, learned.err
    named = ("--weights", "own_net_make=own_net:make")
    assert f"wsa eval net {' '.join(named)}\n" in learned.err
    evaluate = ("eval", "net", "--episodes", 1, "--num-envs", 1)
    assert own(*evaluate).code == 3 and own(*evaluate, *named).code == 0


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("no_such_net:make", 3, "no_such_net:make cannot be imported"),
        ("own_net:maek", 3, "own_net on {host} has no callable 'maek'"),
        ("broken_net:make", 4, "broken_net:make raised ZeroDivisionError"),
        ("exiting_net:make", 4, "exiting_net:make raised SystemExit"),
    ],
)
def test_a_misspelled_model_is_reported_at_once(own, tmp_path, monkeypatch, name, code, message):
    def connect(*arguments, **options):
        pytest.fail("workers start")

    monkeypatch.setattr(cluster, "connect", connect)
    monkeypatch.setattr(runner, "connect", connect)
    (tmp_path / "own_net.py").write_text(NET)
    (tmp_path / "broken_net.py").write_text("1 / 0\n")
    (tmp_path / "exiting_net.py").write_text("raise SystemExit(0)\n")
    grid = ("--seeds", 1, "--updates", 2, "--fusions", "mean", "--bench-dir", "grid")
    for command in (
        ("encode", "--models", name),
        ("encode", "--models", f"mine={name}", "--dry-run"),
        ("encode", "--models", f"{name}@pooled", "--scheduler", "slurm"),
        ("encode", "--models", name, "--watch"),
        ("bench", "--games", "Breakout", "--models", name, *grid),
    ):
        refused = own(*command)
        assert refused.code == code and "Traceback" not in refused.err, (command, refused.err)
        assert message.format(host=socket.gethostname()) in refused.error
    # Workers at an address have their own modules.
    monkeypatch.setattr(cluster, "connect", reached)
    assert "reached" in own("encode", "--models", name, "--scheduler", "tcp://lab:8786").err


def reached(*arguments, **options):
    """Stand in for a connection to workers."""
    raise StorageError("unavailable", "reached")


WRONG = """
import numpy as np
from wsa.learn.configs.algorithms import BCConfig, OnlineDQNConfig
from wsa.learn.fusion.base import Fusion

class NoFusion: pass
class Breaks(Fusion):
    def __init__(self, inputs, config): raise KeyError("inputs")
class NoLength(Fusion):
    def __init__(self, inputs, config): super().__init__()
class Raises(Fusion):
    out_features = 3
    def __init__(self, inputs, config): super().__init__()
    def forward(self, embeddings, mask=None): return embeddings["x"]
class Exits(Raises):
    def forward(self, embeddings, mask=None): raise SystemExit(0)
class Short(Fusion):
    out_features = 3
    def __init__(self, inputs, config): super().__init__()
    def forward(self, embeddings, mask=None): return embeddings[0][:, 0, :2], None
class NoTag(BCConfig, frozen=True): pass
class NoLearner(BCConfig, frozen=True, tag="wrong_code:NoLearner"):
    LEARNER = ""
class Online(OnlineDQNConfig, frozen=True, tag="wrong_code:Online"): pass
number = 3
def no_policy(actions, seed): return 3
def too_many(actions, seed): return lambda frames, first, envs: np.full(len(envs), len(actions))
def too_few(actions, seed): return lambda frames, first, envs: np.zeros(1 + len(envs), int)
def broken(actions, seed): return lambda frames, first, envs: {}["x"]
def raises(actions, seed): raise KeyError(seed)
def exits(actions, seed): raise SystemExit(0)
def exits_later(actions, seed): return lambda frames, first, envs: exits(actions, seed)
"""


@pytest.mark.parametrize(
    ("flag", "name", "code", "message"),
    [
        ("--fusion", "no_such_module:Mine", 3, "cannot be imported"),
        ("--fusion", "wrong_code:Misspelled", 3, "no callable 'Misspelled'"),
        ("--fusion", "wrong_code:number", 3, "no callable 'number'"),
        ("--fusion", "wrong_code:NoFusion", 4, "not a subclass of wsa.learn.fusion.base.Fusion"),
        ("--fusion", "wrong_code:Breaks", 4, "raised KeyError"),
        ("--fusion", "wrong_code:NoLength", 4, "has no out_features"),
        ("--fusion", "wrong_code:Raises", 4, "raised TypeError"),
        ("--fusion", "wrong_code:Exits", 4, "raised SystemExit (0)"),
        (
            "--fusion",
            "wrong_code:Short",
            4,
            "shape (2, 2) for two states, but its out_features is 3",
        ),
        ("--fusion", "broken_code:Mine", 4, "raised ZeroDivisionError"),
        ("--fusion", "exiting_code:Mine", 4, "raised SystemExit (0)"),
        ("--fusion", "mien", 2, "Did you mean mean?"),
        ("--algo", "no_such_module:Mine", 3, "cannot be imported"),
        ("--algo", "exiting_code:Mine", 4, "raised SystemExit (0)"),
        ("--algo", "wrong_code:NoFusion", 4, "not a subclass of"),
        ("--algo", "wrong_code:NoTag", 4, 'tag="wrong_code:NoTag"'),
        ("--algo", "wrong_code:NoLearner", 4, "LEARNER"),
        ("--algo", "wrong_code:Online", 2, "Add --online"),
        ("--algo", "cqll", 2, "Did you mean cql?"),
    ],
)
def test_code_that_is_no_fusion_or_algorithm_is_refused(own, tmp_path, flag, name, code, message):
    (tmp_path / "wrong_code.py").write_text(WRONG)
    (tmp_path / "broken_code.py").write_text("1 / 0\n")
    (tmp_path / "exiting_code.py").write_text("raise SystemExit(0)\n")
    refused = own(*TRAIN, flag, name, "--run-dir", "own")
    assert refused.code == code and message in refused.error and "Traceback" not in refused.err
    # A fusion that can be built is tried when its run starts.
    assert (tmp_path / "own").exists() == name.endswith((":Raises", ":Exits", ":Short"))


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("no_such_module:mine", 3, "cannot be imported"),
        ("wrong_code:misspelled", 3, "no callable"),
        ("wrong_code:raises", 4, "raised KeyError"),
        ("wrong_code:exits", 4, "raised SystemExit (0)"),
        ("wrong_code:exits_later", 4, "raised SystemExit (0)"),
        ("wrong_code:no_policy", 4, "returned int, not a policy"),
        ("wrong_code:too_many", 4, "whole numbers from 0 to 3"),
        ("wrong_code:too_few", 4, "not 2 whole numbers"),
        ("wrong_code:broken", 4, "raised KeyError"),
    ],
)
def test_code_that_is_no_policy_is_refused(own, tmp_path, name, code, message):
    (tmp_path / "wrong_code.py").write_text(WRONG)
    refused = own("collect", "--game", "Breakout", "--policy", name, "--steps", 8, "--num-envs", 2)
    assert refused.code == code and message in refused.error and "Traceback" not in refused.err
    assert not any(meta.policy == name for meta in api.open("store").segments("Breakout"))


def test_a_fusion_may_look_at_numbers(own, tmp_path):
    """Networks are also built without numbers, only to count their parameters."""
    (tmp_path / "best_code.py").write_text(BEST)
    trained = own(*TRAIN, "--fusion", "best_code:Best", "--run-dir", "own")
    assert trained.code == 0, trained.err


BEST = """
from wsa.learn.fusion.base import Adapted, present_of

class Best(Adapted):
    conditioned = False
    def forward(self, embeddings, mask=None):
        adapted = self.adapt(embeddings, present_of(mask, self.models))
        return adapted[:, int(adapted.norm(dim=2).mean(0).argmax().item())], None
"""


def test_a_command_that_a_library_ends_has_failed(wsa, monkeypatch):
    monkeypatch.setattr(cli, "_run", lambda verb, rest: sys.exit(0))
    ended = wsa("list")
    assert ended.code == 1 and ended.error.startswith("wsa list: something called sys.exit(0)")


@pytest.mark.variants
@pytest.mark.parametrize("part", ["fusion", "algorithm"])
def test_a_run_imports_no_module_that_the_user_has_not_named(own, tmp_path, part):
    (tmp_path / "evil_code_of_a_run.py").write_text(
        "from pathlib import Path\nPath('canary').touch()\nclass Evil: pass\n"
    )
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    if part == "fusion":
        config["network"]["fusion"]["name"] = "evil_code_of_a_run:Evil"
    else:
        config["hyperparameters"]["type"] = "evil_code_of_a_run:Evil"
    path.write_text(json.dumps(config))
    for command in (
        ("eval", "run"),
        ("eval", "run", "--trust", "other:Evil,evil_code_of_a_run:Other"),
        ("learn", "--resume", "run"),
        (*TRAIN, "--init", "run"),
        (*TRAIN, "--run-dir", "run"),
        ("collect", "--game", "Breakout", "--policy", "run"),
    ):
        refused = own(*command)
        assert refused.code == 3 and "--trust evil_code_of_a_run:Evil" in refused.error
        assert not (tmp_path / "canary").exists() and "evil_code_of_a_run" not in sys.modules
    assert own("eval", "run", "--trust", "evil_code_of_a_run:Evil").code == 4
    assert (tmp_path / "canary").exists()
    sys.modules.pop("evil_code_of_a_run")
