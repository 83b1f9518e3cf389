from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wsa.learn.fusion import WeightSharingAttention


def literal(
    fusion: WeightSharingAttention, inputs: list[Tensor], context: int | None
) -> tuple[Tensor, Tensor]:
    """The method in float64, from its equations, one row and one model at a time."""
    numbers = {name: tensor.double() for name, tensor in fusion.state_dict().items()}

    def adapter(name: str, u: Tensor) -> Tensor:
        linear = numbers[f"{name}.0.weight"] @ u.double() + numbers[f"{name}.0.bias"]
        spread = ((linear - linear.mean()) ** 2).mean()
        normal = (linear - linear.mean()) / (spread + 1e-5).sqrt()
        return (normal * numbers[f"{name}.1.weight"] + numbers[f"{name}.1.bias"]).clamp_min(0)

    states, weights = [], []
    for row in range(len(inputs[0])):
        adapted = [adapter(f"adapters.{i}", u[row]) for i, u in enumerate(inputs)]
        if context is None:
            c = sum(adapted, torch.zeros_like(adapted[0])) / len(adapted)
        else:
            c = adapter("context", inputs[context][row])
        first, second = (
            (numbers[f"scorer.{i}.weight"], numbers[f"scorer.{i}.bias"]) for i in (0, 2)
        )
        hidden = [(first[0] @ torch.cat([c, e]) + first[1]).clamp_min(0) for e in adapted]
        scores = torch.stack([second[0][0] @ h + second[1][0] for h in hidden])
        w = scores.exp() / scores.exp().sum()
        states.append(sum((w[i] * e for i, e in enumerate(adapted)), torch.zeros_like(c)))
        weights.append(w)
    return torch.stack(states), torch.stack(weights)


def made(
    widths: list[int], context: int | None, size: int, batch: int = 3
) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(sum(widths) + size)
    fusion = WeightSharingAttention(widths, context, size)
    with torch.no_grad():  # So that no factor is 1 and no term 0.
        for parameter in fusion.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return fusion, [torch.randn(batch, width) for width in widths]


@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    size=st.integers(1, 12),
    batch=st.integers(1, 4),
    data=st.data(),
)
def test_equals_the_equations(
    widths: list[int], size: int, batch: int, data: st.DataObject
) -> None:
    context = data.draw(st.none() | st.integers(0, len(widths) - 1))
    fusion, inputs = made(widths, context, size, batch)
    state, weights = fusion(inputs)
    expected_state, expected_weights = literal(fusion, inputs, context)
    assert state.shape == (batch, size) and weights.shape == (batch, len(widths))
    torch.testing.assert_close(state.double(), expected_state, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights.double(), expected_weights, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(batch))


@pytest.mark.parametrize("context", [None, 1])
def test_one_scorer_serves_all_models(context: int | None) -> None:
    fusion, _ = made([5, 6, 7, 8], context, 16)
    scorer = (2 * 16 * 16 + 16) + (16 + 1)  # Whatever the number of models.
    assert sum(p.numel() for p in fusion.scorer.parameters()) == scorer
    total = sum(p.numel() for p in fusion.parameters())
    adapters = [width * 16 + 16 + 2 * 16 for width in (5, 6, 7, 8)]
    assert total == sum(adapters) + (0 if context is None else adapters[context]) + scorer


def test_permuting_the_models_permutes_the_weights() -> None:
    fusion, inputs = made([4, 6, 3], None, 8)
    state, weights = fusion(inputs)
    order = [2, 0, 1]
    other = WeightSharingAttention([(4, 6, 3)[i] for i in order], None, 8)
    other.scorer.load_state_dict(fusion.scorer.state_dict())
    for place, i in enumerate(order):
        other.adapters[place].load_state_dict(fusion.adapters[i].state_dict())
    other_state, other_weights = other([inputs[i] for i in order])
    torch.testing.assert_close(other_weights, weights[:, order])
    torch.testing.assert_close(other_state, state)
    assert weights[0].unique().numel() == 3


@pytest.mark.parametrize("context", [None, 0])
def test_gradients_reach_everything(context: int | None) -> None:
    fusion, inputs = made([5, 6, 7], context, 16, batch=8)
    fusion(inputs)[0].square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        # Only the last bias, a constant added to every score, changes no weight.
        assert (parameter.grad.abs().max() > 1e-4) == (name != "scorer.2.bias"), name


def test_the_context_changes_the_weights() -> None:
    # One linear map as scorer would fail this: what it makes of the context is the same for every
    # model, so the softmax takes it away.
    fusion, inputs = made([5, 6], 0, 16)
    assert fusion.context is not None
    before, weights = fusion(inputs)
    with torch.no_grad():
        fusion.context[1].bias.copy_(torch.linspace(3, -3, 16))
    after, changed = fusion(inputs)
    assert (changed - weights).abs().max() > 0.01
    assert (after - before).abs().max() > 0.01


def test_a_model_can_be_turned_off_and_a_score_can_be_negative() -> None:
    fusion, inputs = made([5, 6], None, 4)
    with torch.no_grad():
        fusion.scorer[0].weight.copy_(torch.cat([torch.zeros(4, 4), torch.eye(4)], dim=1))
        fusion.scorer[0].bias.fill_(0.0)
        fusion.scorer[2].weight.fill_(-30.0)
        fusion.scorer[2].bias.fill_(-50.0)
        for adapter, bias in zip(fusion.adapters, (0.0, 2.0), strict=True):
            adapter[1].weight.fill_(0.1)
            adapter[1].bias.fill_(bias)
    weights = fusion(inputs)[1]
    # With the authors' ReLU both scores would be 0 and the weights a half each.
    assert (weights[:, 1] < 1e-6).all() and (weights[:, 0] > 1 - 1e-6).all()
    weights[:, 0].sum().backward()


def test_another_number_of_embeddings_is_refused() -> None:
    fusion, inputs = made([5, 6], None, 4)
    with pytest.raises(ValueError, match="zip"):
        fusion(inputs[:1])
