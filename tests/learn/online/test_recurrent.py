"""The recurrent policy: its memory in training and in evaluation, and its size."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from learn_kit import NETWORK, PPO, STATES, WalkEncoder, WalkRun, screens_of

from wsa.learn.configs.fusions import FusionConfig, make_fusion_config
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.evaluation.greedy_policy import GreedyPolicy, LiveStacks
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import ActorCritic, Torso
from wsa.learn.networks.recurrent import RecurrentActorCritic

pytestmark = pytest.mark.usefixtures("one_thread", "checked_shapes")


def test_memory_is_reset_where_an_episode_begins_and_only_there():
    torch.manual_seed(0)
    torso = ActorCritic(Inputs(((2, STATES),)), 3, NETWORK).torso
    network = RecurrentActorCritic(torso, 3)
    stacks = torch.randn(6, 2, STATES)
    first = torch.tensor([1.0, 0, 0, 1, 0, 0])
    whole = network(stacks, first, network.initial_state(1))[0]
    memory, steps = network.initial_state(1), []
    for t in range(6):
        logits, _, _, memory = network(stacks[t : t + 1], first[t : t + 1], memory)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps), whole)
    for t, same in ((3, True), (4, False)):
        alone = network(stacks[t:], first[t:], network.initial_state(1))[0]
        assert torch.allclose(alone, whole[t:], rtol=1.3e-6, atol=1e-5) == same


def test_evaluation_carries_a_memory_for_each_environment(tmp_path):
    network = WalkRun(tmp_path, msgspec.structs.replace(PPO, recurrent=True)).network
    torch.nn.init.orthogonal_(network.actor.weight, 5.0)
    generator = np.random.default_rng(0)
    states = generator.integers(STATES, size=(40, 2))
    first = generator.random((40, 2)) < 0.1
    first[0] = True
    encoder: Any = WalkEncoder()
    policy = GreedyPolicy(network, LiveStacks(encoder, 2, 2), 3, 0.0, 1)
    played = np.array(
        [policy(screens_of(s), f, np.arange(2)) for s, f in zip(states, first, strict=True)]
    )
    forgetful = []
    for env in range(2):
        before = [states[t if first[t, env] else t - 1, env] for t in range(40)]
        stacks = torch.eye(STATES)[np.stack([before, states[:, env]], axis=1)].half()
        begins = torch.from_numpy(first[:, env]).float()
        logits = network(stacks, begins, network.initial_state(1))[0]
        np.testing.assert_array_equal(played[:, env], logits.argmax(dim=1))
        forgetful.append(
            network(stacks, torch.ones(40), network.initial_state(1))[0].argmax(dim=1).numpy()
        )
    assert (played != np.array(forgetful).T).any()


def test_a_masked_model_has_no_part_in_logits_memory_and_weights():
    torch.manual_seed(0)
    config = NetworkConfig(FusionConfig(size=8), frame_stack=2, normalize="none")
    network = RecurrentActorCritic(Torso(Inputs(((2, 5), (2, 3))), config), 3)
    stacks, changed = torch.randn(2, 4, 2, 8)
    changed[..., :5] = stacks[..., :5]  # Only the second model's part differs.
    first, mask = torch.zeros(4), (True, False)
    with torch.no_grad():
        one, other = (network(s, first, network.initial_state(2), mask) for s in (stacks, changed))
        unmasked = network(stacks, first, network.initial_state(2))
    for a, b in zip((*one[:3], *one[3]), (*other[:3], *other[3]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(one[2], torch.tensor([[1.0, 0.0]]).repeat(4, 1))
    assert not torch.equal(one[0], unmasked[0])

    class FirstStack:
        def see(self, *_):
            return stacks[:1]

    seen: Any = FirstStack()
    policy = GreedyPolicy(network, seen, 3, 0.0, 1, mask=mask)
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    assert policy(frames, np.ones(1, np.bool_), np.zeros(1, np.int64)) == one[0][0].argmax()
    np.testing.assert_array_equal(policy.weights, [[1.0, 0.0]])


@pytest.mark.parametrize(
    ("size", "millions"), [(128, 4.45), (256, 9.11), (512, 19.2), (1024, 42.6)]
)
def test_it_has_the_papers_number_of_parameters(size, millions):
    """Those of the published fork's WSA with an LSTM, 6 actions, and one frame in a state."""
    shapes = ((1, 512), (1, 21, 21, 128), (1, 21, 21, 4), (1, 84, 84, 20), (1, 16, 16, 64))
    config = NetworkConfig(make_fusion_config("wsa", "paper", size=size), frame_stack=1)
    with torch.device("meta"):
        network = RecurrentActorCritic(Torso(Inputs(shapes, 4, 4), config), 6)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.005)
