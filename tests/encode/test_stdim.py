"""The ST-DIM encoder: size, orientation, contrastive loss, and learning."""

import numpy as np
import pytest
import torch

from wsa.encode.models.paper.state import StateEncoder
from wsa.learn.pretrain.stdim import InfoMax


def test_the_size_and_the_cost_equal_those_of_the_paper(measure_cost):
    encoder = StateEncoder()
    assert measure_cost(encoder, encoder, torch.rand(1, 4, 210, 160)) == (2_016_032, 47_734_784)


def test_feature_maps_are_upright():
    # A transposed screen would give a code of the same length.
    encoder = StateEncoder()
    patches = encoder.patches(torch.rand(2, 4, 210, 160))
    assert patches.shape == (2, 128, 11, 8)
    assert encoder.code[0](patches).shape == (2, 64, 9, 6)
    assert (InfoMax.training_input.height, InfoMax.training_input.width) == (210, 160)


def test_the_loss_equals_a_loop_over_places_and_examples():
    torch.manual_seed(0)
    network = InfoMax()
    examples = torch.rand(3, 5, 210, 160)
    with torch.no_grad():
        loss, parts = network.loss(examples, 0)
        now, before = examples[:, 1:], examples[:, :4]
        whole = network.globally(network.encoder(now))
        here, then = network.encoder.patches(now), network.encoder.patches(before)
    losses = {"global_local": 0.0, "local_local": 0.0}
    for y in range(11):
        for x in range(8):
            local = network.locally(here[:, :, y, x]).detach()
            for name, code in (("global_local", whole), ("local_local", local)):
                for i in range(3):
                    scores = [float(code[i] @ then[j, :, y, x]) for j in range(3)]
                    right = scores[i] - float(np.logaddexp.reduce(scores))
                    losses[name] -= right / (11 * 8 * 3)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(losses, rel=1e-4)
    assert loss.item() == pytest.approx(sum(losses.values()), rel=1e-4)


def test_the_positive_example_is_the_window_one_step_earlier(read_examples):
    examples = read_examples(InfoMax.training_input, "Breakout")
    rows = examples.training["Breakout"]
    at = examples.frame_rows(rows, np.random.default_rng(0))
    np.testing.assert_array_equal(at[:, -1], rows)
    steps = np.diff(at, axis=1)
    assert (steps[:, -1] == 1).all()  # The newest frame is never repeated.
    assert ((steps == 0) | (steps == 1)).all() and (np.diff(steps, axis=1) >= 0).all()
    # Frames are repeated only at the beginning of an episode, not of a segment.
    assert (steps == 0).any() and (steps.min(axis=1) == 1).any()


def test_pictures_have_the_size_of_the_screen():
    panels = InfoMax().show(torch.rand(2, 5, 210, 160))
    assert [panel.shape for panel in panels] == [(2, 3, 210, 160)] * 2
