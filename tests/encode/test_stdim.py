from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wsa.encode.models.paper.stdim import InfoMax, StateEncoder
from wsa.learn.pretrain.data import Examples, scale


def test_it_has_the_size_and_the_cost_of_the_papers(cost: Callable[..., tuple[int, int]]) -> None:
    encoder = StateEncoder()
    assert cost(encoder, encoder, torch.rand(1, 4, 210, 160)) == (2_016_032, 47_734_784)


def test_its_last_map_is_upright() -> None:
    # A transposed screen gives a flat map of the same length, and a network that has gone wrong.
    encoder = StateEncoder()
    patches = encoder.patches(torch.rand(2, 4, 210, 160))
    assert patches.shape == (2, 128, 11, 8)
    assert encoder.code[0](patches).shape == (2, 64, 9, 6)
    assert (InfoMax.training_input.height, InfoMax.training_input.width) == (210, 160)


def test_its_loss_is_that_of_a_loop_over_places_and_moments() -> None:
    torch.manual_seed(0)
    network = InfoMax()
    examples = torch.rand(3, 5, 210, 160)
    with torch.no_grad():
        loss, parts = network.loss(examples, 0)
        now, before = examples[:, 1:], examples[:, :4]
        whole = network.globally(network.encoder(now))
        here, then = network.encoder.patches(now), network.encoder.patches(before)
    found = {"global_local": 0.0, "local_local": 0.0}
    for y in range(11):
        for x in range(8):
            local = network.locally(here[:, :, y, x]).detach()
            for name, code in (("global_local", whole), ("local_local", local)):
                for i in range(3):
                    scores = [float(code[i] @ then[j, :, y, x]) for j in range(3)]
                    right = scores[i] - float(np.logaddexp.reduce(scores))
                    found[name] -= right / (11 * 8 * 3)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(found, rel=1e-4)
    assert loss.item() == pytest.approx(sum(found.values()), rel=1e-4)


def test_the_past_of_a_moment_is_its_own_window_one_step_earlier(
    examples_of: Callable[..., Examples],
) -> None:
    examples = examples_of(InfoMax.training_input, "Breakout")
    rows = examples.training["Breakout"]
    at = examples.frame_rows(rows, np.random.default_rng(0))
    np.testing.assert_array_equal(at[:, -1], rows)
    steps = np.diff(at, axis=1)
    assert (steps[:, -1] == 1).all()  # The newest frame is never a repeated one.
    assert ((steps == 0) | (steps == 1)).all() and (np.diff(steps, axis=1) >= 0).all()
    # Frames are repeated only where an episode truly begins: no window is cut at a segment's edge.
    assert (steps == 0).any() and (steps.min(axis=1) == 1).any()


@pytest.mark.slow
def test_it_learns_which_past_is_whose(
    examples_of: Callable[..., Examples], fit: Callable[..., list[float]]
) -> None:
    torch.manual_seed(0)
    examples = scale(examples_of(InfoMax.training_input, "Breakout").draw(1, 1, 8), "cpu")
    network = InfoMax()
    losses = fit(network, examples, 50, 1e-3)
    assert losses[0] == pytest.approx(2 * np.log(8), rel=0.05)  # It knows nothing at first.
    # Most places of a screen never change, and tell nothing.
    assert losses[-1] < 0.95 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_pictures_are_of_the_screen() -> None:
    panels = InfoMax().show(torch.rand(2, 5, 210, 160))
    assert [panel.shape for panel in panels] == [(2, 3, 210, 160)] * 2
