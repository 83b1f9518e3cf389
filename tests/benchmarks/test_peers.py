"""The comparison with peers gives all the same hyperparameters, and reads their games alike."""

import msgspec
import pytest

from benchmarks.peers import compare as peers
from benchmarks.peers import d3rlpy_cql, sb3
from wsa import cli
from wsa.learn.configs.algorithms import PPOConfig


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ppo", ["wsa, pixels", "wsa, palette"]),
        ("dqn", ["wsa, pixels", "wsa, palette"]),
        ("cql", ["wsa, palette"]),
    ],
)
def test_the_commands_of_wsa_train_with_the_stated_hyperparameters(method, expected, tmp_path):
    config = peers.hyperparameters(method, 2048)
    names = []
    for contender in peers.contenders(peers.Options(tmp_path), tmp_path):
        if contender.method == method and contender.name.startswith("wsa"):
            command = contender.command(config, 1, tmp_path / "run")
            assert command[1:4] == ["-m", "wsa.cli", "learn"]
            options = cli.parse("learn", command[4:])
            assert options.algo == method and options.algorithm == config
            names.append(contender.name)
    assert names == expected


def test_peers_get_the_hyperparameters_under_their_names():
    def given(method):
        return msgspec.structs.asdict(peers.hyperparameters(method, 2048))

    ppo = sb3.ppo(given("ppo"))
    assert (ppo["n_steps"], ppo["batch_size"], ppo["n_epochs"]) == (128, 256, 4)
    assert (ppo["clip_range"], ppo["clip_range_vf"], ppo["vf_coef"]) == (0.1, 0.1, 0.25)
    assert ppo["learning_rate"](1.0) == 2.5e-4 and ppo["learning_rate"](0.0) == 0
    assert sb3.ppo(msgspec.structs.asdict(PPOConfig(anneal_lr=False)))["learning_rate"] == 2.5e-4
    dqn = sb3.dqn(given("dqn"))
    assert dqn["train_freq"] * 8 / dqn["gradient_steps"] == 4  # Steps between updates.
    assert dqn["exploration_initial_eps"] == dqn["exploration_final_eps"] == 0.01
    cql = d3rlpy_cql.cql(given("cql"))
    assert (cql["batch_size"], cql["alpha"], cql["target_update_interval"]) == (32, 1.0, 1000)


def test_games_are_read_from_both_libraries(tmp_path):
    for name in ("wsa", "sb3"):
        (tmp_path / name).mkdir()
    (tmp_path / "wsa/metrics.jsonl").write_text(
        '{"step": 8, "time": 105.0, "charts/SPS": 9.0}\n'
        '{"step": 8, "time": 106.5, "charts/episodic_return": -21.0}\n'
    )
    assert list(peers.read_games(tmp_path / "wsa")) == [(106.5, -21.0)]
    (tmp_path / "sb3/0.monitor.csv").write_text('#{"t_start": 100.5}\nr,l,t\n-20.0,900,4.5\n')
    assert list(peers.read_games(tmp_path / "sb3")) == [(105.0, -20.0)]


def test_a_score_is_reached_once_twenty_games_have_it():
    games = [(minute / 10, -21.0) for minute in range(20)]
    assert peers.minute_of(-21, games) == "1.9"
    assert peers.minute_of(-20, games) == "-"
    games += [(2 + minute / 10, 0.0) for minute in range(20)]
    assert peers.minute_of(-10.5, games) == "2.9"
