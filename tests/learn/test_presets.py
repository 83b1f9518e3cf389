"""Presets of the authors' settings: what they set, and what flags replace."""

from __future__ import annotations

from typing import Any

import command_kit
import pytest
import torch
from torch import nn

from wsa.learn.bench import grid
from wsa.learn.bench.grid import Settings
from wsa.learn.configs.algorithms import CQLConfig, OnlineDQNConfig, PPOConfig
from wsa.learn.configs.fusions import FusionConfig, make_fusion_config
from wsa.learn.configs.learn import check_combination
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.configs.rl_presets import RL_PRESETS
from wsa.learn.fusion.base import Inputs
from wsa.learn.fusion.build import weighing
from wsa.learn.networks.heads import ActorCritic, QNetwork
from wsa.store.common.errors import UsageError

ONLINE: dict[str, Any] = {"online": True}


def parse(**flags):
    return command_kit.options("learn", **flags)


def test_the_thesis_preset_of_ppo():
    o = parse(**ONLINE, algo="ppo", rl_preset="thesis")
    assert o.algorithm == PPOConfig(
        terminal_on_life_loss=True, anneal_clip=True, clip_vloss=False, vf_coef=1.0
    )
    assert o.network == NetworkConfig(head_activation="tanh")
    assert o.algorithm.scheduled


def test_the_thesis_preset_of_dqn():
    o = parse(**ONLINE, algo="dqn", rl_preset="thesis", fusion_preset="thesis")
    learner = o.algorithm.learner
    assert (learner.double_q, learner.max_grad_norm, o.network.hidden) == (False, 10.0, (64, 64))
    assert (o.algorithm.num_envs, o.algorithm.train_frequency) == (8, 32)
    assert o.network.fusion == make_fusion_config(preset="thesis", init="torch")


def test_the_paper_preset_of_ppo():
    o = parse(**ONLINE, algo="ppo", rl_preset="paper")
    assert o.algorithm == PPOConfig(recurrent=True, anneal_lr=False, clip_rewards=False)
    assert o.network.frame_stack == 1 and o.network.hidden == NetworkConfig().hidden
    check_combination(o)
    pixels = parse(**ONLINE, algo="ppo", rl_preset="paper", fusion="nature")
    assert pixels.network.frame_stack == 1 and pixels.algorithm == o.algorithm


def test_flags_replace_the_settings_of_a_preset():
    o = parse(**ONLINE, algo="ppo", rl_preset="thesis", vf_coef=0.25, clip_vloss=True,
              head_activation="relu")  # fmt: skip
    assert (o.algorithm.vf_coef, o.algorithm.clip_vloss, o.algorithm.anneal_clip) == (
        0.25, True, True,
    )  # fmt: skip
    assert o.network == NetworkConfig()


def test_the_default_preset_is_the_defaults():
    for algo, config in (("ppo", PPOConfig), ("dqn", OnlineDQNConfig)):
        o = parse(**ONLINE, algo=algo, rl_preset="default")
        assert (o.algorithm, o.network) == (config(), NetworkConfig())
    assert parse().algorithm == CQLConfig()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"rl_preset": "thesis"}, "for --online with --algo ppo and --algo dqn"),
        ({"rl_preset": "paper", **ONLINE, "algo": "dqn"}, "for --online with --algo ppo: "),
    ],
)
def test_a_preset_is_refused_for_other_algorithms(flags, words):
    with pytest.raises(UsageError, match=words):
        parse(**flags)


def test_a_recurrent_policy_has_no_head_activation():
    with pytest.raises(UsageError, match="--head-activation have no meaning with --recurrent"):
        check_combination(parse(**ONLINE, algo="ppo", rl_preset="thesis", recurrent=True))


def test_heads_have_the_requested_activation():
    inputs = Inputs(((1, 3),))
    config = NetworkConfig(FusionConfig(size=4), frame_stack=1, hidden=(5, 6))
    tanh = NetworkConfig(FusionConfig(size=4), frame_stack=1, hidden=(5, 6), head_activation="tanh")
    for built, kind in ((config, nn.ReLU), (tanh, nn.Tanh)):
        policy = ActorCritic(inputs, 3, built)
        for head in (policy.actor, policy.critic, QNetwork(inputs, 3, built).head):
            assert [type(part) for part in head] == [nn.Linear, kind, nn.Linear, kind, nn.Linear]
    state = torch.randn(2, 4)
    first, _, second, _, last = (part for part in policy.actor)
    torch.testing.assert_close(policy.actor(state), last(second(first(state).tanh()).tanh()))


@pytest.mark.parametrize("name", [name for name in weighing() if name != "wsa"])
def test_a_preset_keeps_the_softmax_of_other_attention(name):
    for found in (
        make_fusion_config(name, "paper"),
        parse(fusion=name, fusion_preset="paper").network_config.fusion,
    ):
        assert (found.score_activation, found.normalizer) == ("none", "softmax")
        assert (found.scorer_hidden, found.init) == (False, "small")
    typed = parse(fusion=name, fusion_preset="paper", normalizer="relu-sum")
    assert typed.network_config.fusion.normalizer == "relu-sum"


def test_a_bench_applies_a_preset_to_each_fusion():
    o = command_kit.options(
        "bench", fusions=("wsa", "dpa", "lin"), models=("a", "b"), fusion_preset="paper",
        rl_preset="thesis", online=True, algo="ppo", seeds=(1,), games=("Pong",),
        total_timesteps=2048,
    )  # fmt: skip
    requests = [c.request for c in grid.cells(o, Settings({"store": "/lab/wsa"}, {}))]
    scoring = [(r.network.fusion.normalizer, r.network.fusion.init) for r in requests]  # type: ignore[attr-defined]
    assert scoring == [("relu-sum", "small"), ("softmax", "small"), ("relu-sum", "small")]
    assert grid.changed(o) == [
        "--online", "--algo ppo", "--fusion-preset paper", "--rl-preset thesis",
        "--total-timesteps 2048",
    ]  # fmt: skip


def test_presets_set_fields_that_exist():
    for of in RL_PRESETS.values():
        for config, defaults in of.items():
            assert defaults.learner.keys() <= set(config.__struct_fields__)
            assert defaults.network.keys() <= set(NetworkConfig.__struct_fields__)
            assert defaults.fusion.keys() <= set(FusionConfig.__struct_fields__)
