from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wsa.encode.models.paper.transporter import (
    FeatureEncoder,
    KeypointEncoder,
    Transporter,
    gaussians,
    means,
    transport,
)
from wsa.learn.pretrain.data import Examples, scale


def test_they_have_the_sizes_and_the_costs_of_the_papers(
    cost: Callable[..., tuple[int, int]],
) -> None:
    pixels = torch.rand(1, 1, 84, 84)
    features, keypoints = FeatureEncoder().eval(), KeypointEncoder().eval()
    assert cost(features, features, pixels) == (288_608, 271_176_192)
    assert cost(keypoints, keypoints, pixels) == (289_124, 271_401_984)
    assert sum(p.numel() for p in Transporter().parameters()) == 865_959


def test_each_frozen_half_holds_nothing_of_the_other() -> None:
    parts = Transporter().frozen()
    assert list(parts) == ["oke", "okk"]
    held = [{p.data_ptr() for p in part.parameters()} for part in parts.values()]
    assert not held[0] & held[1]
    pixels = torch.rand(2, 1, 84, 84)
    assert parts["oke"](pixels).shape == (2, 128, 21, 21)
    assert parts["okk"](pixels).shape == (2, 4, 21, 21)


def test_gaussians_lie_at_the_mean_of_each_map() -> None:
    maps = torch.full((1, 2, 21, 21), -1e4)
    maps[0, 0, 3, 17] = maps[0, 1, 20, 0] = 1e4
    torch.testing.assert_close(means(maps), torch.tensor([[[-0.7, 0.7], [1.0, -1.0]]]))
    found = gaussians(maps)
    places = np.linspace(-1, 1, 21)
    for y in range(21):
        for x in range(21):
            apart = (places[y] + 0.7) ** 2 + (places[x] - 0.7) ** 2
            assert found[0, 0, y, x].item() == pytest.approx(np.exp(-apart / 0.01), abs=1e-4)
    assert (found[0, 1] == found[0, 1].max()).nonzero().tolist() == [[20, 0]]


def test_transport_is_that_of_the_equation_one_keypoint_after_the_other() -> None:
    torch.manual_seed(0)
    at_source, at_target = torch.rand(2, 2, 3, 5, 5)
    source, target = torch.rand(2, 2, 4, 5, 5)
    wanted = source.clone()
    for b in range(2):
        for k in range(3):
            here, there = at_source[b, k], at_target[b, k]
            wanted[b] = (1 - here) * (1 - there) * wanted[b] + there * target[b]
    torch.testing.assert_close(transport(at_source, at_target, source, target), wanted)


def test_only_the_target_gets_a_gradient() -> None:
    network = Transporter()
    source, target = torch.rand(2, 2, 1, 84, 84).requires_grad_().unbind()
    source.retain_grad()
    target.retain_grad()
    network(source, target).mean().backward()
    assert source.grad is None or not source.grad.any()
    assert target.grad is not None and target.grad.any()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
    # Those of the two trunks' first layers as well.
    grads = {name: p.grad for name, p in network.named_parameters()}
    for name in ("keypoints.trunk.layers.0.0.weight", "features.layers.0.0.weight"):
        grad = grads[name]
        assert grad is not None and grad.abs().sum() > 0


def test_its_rate_falls_by_a_twentieth_every_100_000_steps() -> None:
    network = Transporter()
    rates = [network.learning_rate(1e-3, step, 10**6) for step in (0, 99_999, 100_000, 250_000)]
    assert rates == pytest.approx([1e-3, 1e-3, 0.95e-3, 0.95**2 * 1e-3])


def test_pairs_are_of_one_episode_and_near(examples_of: Callable[..., Examples]) -> None:
    examples = examples_of(Transporter.training_input)
    rows = np.concatenate([np.repeat(r, 20) for r in examples.training.values()])
    source, target = examples.frame_rows(rows, np.random.default_rng(0)).T
    apart = np.abs(source - target)
    assert set(apart) == set(range(1, 20))
    assert (examples._first[source] == examples._first[target]).all()
    assert (source < target).any() and (source > target).any()


@pytest.mark.slow
def test_it_learns_to_move_what_moves(
    examples_of: Callable[..., Examples], fit: Callable[..., list[float]]
) -> None:
    torch.manual_seed(0)
    examples = scale(examples_of(Transporter.training_input, "Pong").draw(1, 1, 3), "cpu")
    network = Transporter()
    losses = fit(network, examples, 8, 3e-3)
    assert losses[-1] < 0.7 * losses[0]
    with torch.inference_mode():
        panels = network.eval().show(examples)
    assert [panel.shape for panel in panels] == [(3, 3, 84, 84)] * 4
