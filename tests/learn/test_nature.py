"""The network on gray pixels."""

import torch

from wsa.learn.networks.nature import SIDE, NatureTorso


def test_training_and_acting_see_the_same_state():
    # Training uses another memory layout of the same pixels.
    torso = NatureTorso(depth=4)
    generator = torch.Generator().manual_seed(0)
    stacks = torch.randint(256, (3, 4, SIDE * SIDE), generator=generator).to(torch.uint8)
    trained, _ = torso.train()(stacks)
    acted, _ = torso.eval()(stacks)
    assert trained.shape == (3, torso.out_features)
    torch.testing.assert_close(trained, acted)
    trained.sum().backward()
    assert all(p.grad is not None and p.grad.is_contiguous() for p in torso.parameters())
