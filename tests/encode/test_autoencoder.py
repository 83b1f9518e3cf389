from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from wsa.encode.models.paper.autoencoder import Autoencoder, ContextEncoder
from wsa.learn.pretrain.data import Examples, scale


def test_it_has_the_size_and_the_cost_of_the_papers(cost: Callable[..., tuple[int, int]]) -> None:
    encoder = ContextEncoder()
    assert cost(encoder, encoder, torch.rand(1, 1, 84, 84)) == (57_504, 16_228_352)


def test_shapes() -> None:
    network = Autoencoder()
    pixels = torch.rand(3, 1, 84, 84)
    assert network.encoder(pixels).shape == (3, 64, 16, 16)
    assert network(pixels).shape == pixels.shape
    assert {panel.shape for panel in network.show(pixels)} == {(3, 3, 84, 84)}


def test_its_loss_is_the_mean_squared_error_of_what_it_makes() -> None:
    network = Autoencoder()
    pixels = torch.rand(2, 1, 84, 84)
    loss, _ = network.loss(pixels, 0)
    torch.testing.assert_close(loss, ((network(pixels) - pixels) ** 2).mean())


@pytest.mark.slow
def test_it_learns_to_reconstruct_real_frames(
    examples_of: Callable[..., Examples], fit: Callable[..., list[float]]
) -> None:
    torch.manual_seed(0)
    examples = scale(examples_of(Autoencoder.training_input).draw(1, 1, 8), "cpu")
    network = Autoencoder()
    losses = fit(network, examples, 40, 1e-3)
    # Better than the best constant picture of one grey, and still falling.
    assert losses[-1] < 0.5 * examples.var() < losses[0]
    assert all(grad_of(p) > 0 for p in network.parameters())


def grad_of(parameter: Any) -> float:
    return float(parameter.grad.abs().sum())
