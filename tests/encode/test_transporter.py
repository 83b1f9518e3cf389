"""Transporter: sizes, keypoints, transport, gradients, and learning."""

import numpy as np
import pytest
import torch

from wsa.encode.models.paper.keypoints import FeatureEncoder, KeypointEncoder
from wsa.learn.pretrain.transporter import Transporter, gaussians, means, transport


def test_the_sizes_and_the_costs_equal_those_of_the_paper(measure_cost):
    pixels = torch.rand(1, 1, 84, 84)
    features, keypoints = FeatureEncoder().eval(), KeypointEncoder().eval()
    assert measure_cost(features, features, pixels) == (288_608, 271_176_192)
    assert measure_cost(keypoints, keypoints, pixels) == (289_124, 271_401_984)
    assert sum(p.numel() for p in Transporter().parameters()) == 865_959


def test_the_two_frozen_encoders_share_no_weights():
    parts = Transporter().frozen()
    assert list(parts) == ["oke", "okk"]
    pointers = [{p.data_ptr() for p in part.parameters()} for part in parts.values()]
    assert not pointers[0] & pointers[1]
    pixels = torch.rand(2, 1, 84, 84)
    assert parts["oke"](pixels).shape == (2, 128, 21, 21)
    assert parts["okk"](pixels).shape == (2, 4, 21, 21)


def test_a_gaussian_lies_at_the_mean_of_each_map():
    maps = torch.full((1, 2, 21, 21), -1e4)
    maps[0, 0, 3, 17] = maps[0, 1, 20, 0] = 1e4
    torch.testing.assert_close(means(maps), torch.tensor([[[-0.7, 0.7], [1.0, -1.0]]]))
    bumps = gaussians(maps)
    places = np.linspace(-1, 1, 21)
    for y in range(21):
        for x in range(21):
            distance = (places[y] + 0.7) ** 2 + (places[x] - 0.7) ** 2
            assert bumps[0, 0, y, x].item() == pytest.approx(np.exp(-distance / 0.01), abs=1e-4)
    assert (bumps[0, 1] == bumps[0, 1].max()).nonzero().tolist() == [[20, 0]]


def test_transport_equals_the_equation_for_one_keypoint_after_another():
    torch.manual_seed(0)
    at_source, at_target = torch.rand(2, 2, 3, 5, 5)
    source, target = torch.rand(2, 2, 4, 5, 5)
    expected = source.clone()
    for b in range(2):
        for k in range(3):
            here, there = at_source[b, k], at_target[b, k]
            expected[b] = (1 - here) * (1 - there) * expected[b] + there * target[b]
    torch.testing.assert_close(transport(at_source, at_target, source, target), expected)


def test_only_the_target_gets_a_gradient():
    network = Transporter()
    source, target = torch.rand(2, 2, 1, 84, 84).requires_grad_().unbind()
    source.retain_grad()
    target.retain_grad()
    network(source, target).mean().backward()
    assert source.grad is None or not source.grad.any()
    assert target.grad is not None and target.grad.any()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
    # Also the first layers of both trunks.
    grads = {name: p.grad for name, p in network.named_parameters()}
    for name in ("keypoints.trunk.layers.0.0.weight", "features.layers.0.0.weight"):
        grad = grads[name]
        assert grad is not None and grad.abs().sum() > 0


def test_the_learning_rate_falls_by_5_percent_every_100_000_steps():
    network = Transporter()
    rates = [network.learning_rate(1e-3, step, 10**6) for step in (0, 99_999, 100_000, 250_000)]
    assert rates == pytest.approx([1e-3, 1e-3, 0.95e-3, 0.95**2 * 1e-3])


def test_a_pair_is_of_one_episode_and_fewer_than_20_steps_apart(read_examples):
    examples = read_examples(Transporter.training_input)
    rows = np.concatenate([np.repeat(r, 20) for r in examples.training.values()])
    source, target = examples.frame_rows(rows, np.random.default_rng(0)).T
    apart = np.abs(source - target)
    assert set(apart) == set(range(1, 20))
    assert (examples._first[source] == examples._first[target]).all()
    assert (source < target).any() and (source > target).any()
