"""The autoencoder of the paper: size, shapes, loss, and learning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from wsa.encode.models.paper.autoencoder import Autoencoder, ContextEncoder
from wsa.learn.pretrain.data import Examples, scale


def test_the_size_and_the_cost_equal_those_of_the_paper(
    measure_cost: Callable[..., tuple[int, int]],
) -> None:
    encoder = ContextEncoder()
    assert measure_cost(encoder, encoder, torch.rand(1, 1, 84, 84)) == (57_504, 16_228_352)


def test_outputs_have_the_shape_of_the_input() -> None:
    network = Autoencoder()
    pixels = torch.rand(3, 1, 84, 84)
    assert network.encoder(pixels).shape == (3, 64, 16, 16)
    assert network(pixels).shape == pixels.shape
    assert {panel.shape for panel in network.show(pixels)} == {(3, 3, 84, 84)}


def test_the_loss_is_the_mean_squared_error() -> None:
    network = Autoencoder()
    pixels = torch.rand(2, 1, 84, 84)
    loss, _ = network.loss(pixels, 0)
    torch.testing.assert_close(loss, ((network(pixels) - pixels) ** 2).mean())


@pytest.mark.slow
def test_the_network_learns_to_reconstruct_real_frames(
    read_examples: Callable[..., Examples], overfit: Callable[..., list[float]]
) -> None:
    torch.manual_seed(0)
    examples = scale(read_examples(Autoencoder.training_input).draw(1, 1, 8), "cpu")
    network = Autoencoder()
    losses = overfit(network, examples, 40, 1e-3)
    # Better than the best constant picture.
    assert losses[-1] < 0.5 * examples.var() < losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
