"""The autoencoder of the paper: size, shapes, loss, and learning."""

import torch

from wsa.encode.models.paper.context import ContextEncoder
from wsa.learn.pretrain.autoencoder import Autoencoder


def test_the_size_and_the_cost_equal_those_of_the_paper(measure_cost):
    encoder = ContextEncoder()
    assert measure_cost(encoder, encoder, torch.rand(1, 1, 84, 84)) == (57_504, 16_228_352)


def test_outputs_have_the_shape_of_the_input():
    network = Autoencoder()
    pixels = torch.rand(3, 1, 84, 84)
    assert network.encoder(pixels).shape == (3, 64, 16, 16)
    assert network(pixels).shape == pixels.shape
    assert {panel.shape for panel in network.show(pixels)} == {(3, 3, 84, 84)}


def test_the_loss_is_the_mean_squared_error():
    network = Autoencoder()
    pixels = torch.rand(2, 1, 84, 84)
    loss, _ = network.loss(pixels, 0)
    torch.testing.assert_close(loss, ((network(pixels) - pixels) ** 2).mean())
