"""WSA, its switches, and its presets, compared with the equations of the paper."""

from __future__ import annotations

import re
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsa import cli
from wsa.learn.configs.fusions import FUSIONS, PRESETS, FusionConfig, make_fusion_config
from wsa.learn.configs.learn import MethodOptions
from wsa.learn.fusion.base import Inputs
from wsa.learn.fusion.build import make_fusion, weighing
from wsa.learn.fusion.losses import entropy, imbalance
from wsa.store.common.errors import UsageError

pytestmark = pytest.mark.usefixtures("checked_shapes")


def compute_by_equations(fusion, config, inputs, context, present):
    """The method in float64, from its equations, one row and one model at a time."""
    numbers = {name: tensor.double() for name, tensor in fusion.state_dict().items()}

    def adapter(name, u):
        out = numbers[f"{name}.0.weight"] @ u.double() + numbers[f"{name}.0.bias"]
        if config.layer_norm:
            variance = ((out - out.mean()) ** 2).mean()
            normalized = (out - out.mean()) / (variance + 1e-5).sqrt()
            out = normalized * numbers[f"{name}.1.weight"] + numbers[f"{name}.1.bias"]
        return out.clamp_min(0)

    def score(pair):
        if config.scorer_hidden:
            pair = (numbers["scorer.0.weight"] @ pair + numbers["scorer.0.bias"]).clamp_min(0)
        last = 2 if config.scorer_hidden else 0
        scores = numbers[f"scorer.{last}.weight"] @ pair + numbers[f"scorer.{last}.bias"]
        scaled = scores[0] / (config.temperature or config.size**0.5)
        return scaled.clamp_min(0) if config.score_activation == "relu" else scaled

    states, weights = [], []
    for row in range(len(inputs[0])):
        adapted = {i: adapter(f"adapters.{i}", inputs[i][row].flatten()) for i in present}
        if context is None:
            c = torch.stack(list(adapted.values())).mean(dim=0)
        else:
            c = adapter("context", inputs[context][row, -1])
        scores = torch.stack([score(torch.cat([c, e])) for e in adapted.values()])
        if config.normalizer == "softmax":
            w = scores.exp() / scores.exp().sum()
        elif config.normalizer == "sigmoid":
            w = 1 / (1 + (-scores).exp())
        else:
            w = scores.clamp_min(0) / max(scores.clamp_min(0).sum(), 1e-8)
        states.append(sum((w[j] * e for j, e in enumerate(adapted.values())), torch.zeros_like(c)))
        of_all = torch.zeros(len(fusion.adapters), dtype=torch.float64)
        of_all[present] = w
        weights.append(of_all)
    return torch.stack(states), torch.stack(weights)


def make_wsa(widths, context, size, batch=3, **switches):
    torch.manual_seed(sum(widths) + size)
    config = make_fusion_config(size=size, **switches)
    fusion: Any = make_fusion(config, Inputs(tuple((2, width) for width in widths), context))
    with torch.no_grad():  # So that no factor is 1 and no term 0.
        for parameter in fusion.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return fusion, config, [torch.randn(batch, 2, width) for width in widths]


@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    size=st.integers(1, 12),
    batch=st.integers(1, 4),
    switches=st.fixed_dictionaries(
        {},
        optional={
            "score_activation": st.sampled_from(["none", "relu"]),
            "normalizer": st.sampled_from(["softmax", "relu-sum", "sigmoid"]),
            "layer_norm": st.booleans(),
            "temperature": st.sampled_from([0.5, 2.0]),
            "scorer_hidden": st.booleans(),
            "preset": st.sampled_from(["thesis", "paper"]),
        },
    ),
    data=st.data(),
)
def test_states_and_weights_equal_the_equations(widths, size, batch, switches, data):
    context = data.draw(st.none() | st.integers(0, len(widths) - 1))
    mask = data.draw(
        st.lists(st.booleans(), min_size=len(widths), max_size=len(widths)).filter(any)
    )
    fusion, config, inputs = make_wsa(widths, context, size, batch, **switches)
    present = [i for i, there in enumerate(mask) if there]
    state, weights = fusion(inputs, mask)
    expected_state, expected_weights = compute_by_equations(
        fusion, config, inputs, context, present
    )
    assert state.shape == (batch, size) and weights.shape == (batch, len(widths))
    torch.testing.assert_close(state.double(), expected_state, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights.double(), expected_weights, rtol=1e-3, atol=1e-4)
    assert (weights[:, [i for i in range(len(widths)) if i not in present]] == 0).all()
    if config.normalizer == "softmax":
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(batch))


def test_presets_have_the_authors_settings():
    thesis, paper = make_fusion_config(preset="thesis"), make_fusion_config(preset="paper")
    assert (thesis.score_activation, thesis.normalizer, thesis.layer_norm) == (
        "relu", "softmax", False,
    )  # fmt: skip
    assert (paper.score_activation, paper.normalizer, paper.layer_norm) == (
        "relu", "relu-sum", True,
    )  # fmt: skip
    assert thesis.temperature == paper.temperature == 1
    assert not thesis.scorer_hidden and not paper.scorer_hidden
    assert make_fusion_config(preset="paper", scorer_hidden=True).scorer_hidden
    assert make_fusion_config() == FusionConfig()


@pytest.mark.parametrize(("preset", "layers"), [("thesis", "scorer."), ("paper", "")])
def test_dead_rows_are_the_rows_without_a_gradient(preset, layers):
    shares = []
    for seed in range(6):
        torch.manual_seed(seed)
        inputs = [torch.randn(8, 1, width) for width in (4, 5, 6)]
        shapes = tuple((1, u.shape[2]) for u in inputs)
        fusion: Any = make_fusion(make_fusion_config(preset=preset, size=6), Inputs(shapes))
        dead = 0
        for row in range(8):
            fusion.zero_grad()
            state, weights = fusion([u[row : row + 1] for u in inputs])
            (state @ torch.randn(6)).sum().backward()
            # The scorer has none in the thesis; the paper's adapters have none either.
            gradients = [p.grad for n, p in fusion.named_parameters() if n.startswith(layers)]
            is_dead = not any(grad is not None and grad.any() for grad in gradients)
            assert fusion.dead_rows(weights) == float(is_dead)
            dead += is_dead
        shares.append(fusion.dead_rows(fusion(inputs)[1]).item())
        assert shares[-1] == dead / 8
    assert 0 < sum(shares) < 6


def test_fusions_without_dead_rows_report_none():
    weights = torch.full((3, 1), 1.0)
    for name in FUSIONS:
        if name not in ("cnn", "mix"):
            assert make_fusion(FusionConfig(name), Inputs(((1, 4),))).dead_rows(weights) is None
    alone = make_fusion(make_fusion_config(preset="thesis"), Inputs(((1, 4),)))
    assert alone.dead_rows(weights) is None  # The softmax over one model is 1.


def test_presets_initialize_as_the_authors_do():
    inputs = Inputs(((1, 40), (1, 8, 8, 3), (1, 30)), 2, 2)
    thesis: Any = make_fusion(make_fusion_config(size=16, preset="thesis"), inputs)
    for name, parameter in thesis.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            flat = parameter.flatten(1)
            if len(flat) > flat.shape[1]:
                flat = flat.T
            torch.testing.assert_close(flat @ flat.T, 2 * torch.eye(len(flat)))
    paper: Any = make_fusion(make_fusion_config(size=16, preset="paper"), inputs)
    for adapter in (*paper.adapters, paper.context):
        weight = adapter[0].weight
        torch.testing.assert_close(weight @ weight.T, 1e-4 * torch.eye(16))
    assert paper.scorer[0].weight.norm().item() == pytest.approx(1)


def test_one_model_is_not_scored():
    fusion, _, (embedding,) = make_wsa([6], None, 4)
    fusion.scorer = None
    state, weights = fusion([embedding])
    torch.testing.assert_close(state, fusion.adapt([embedding], [0])[:, 0], rtol=0, atol=0)
    assert weights.tolist() == [[1.0]] * 3


@pytest.mark.parametrize("context", [None, 0])
def test_every_parameter_has_a_gradient(context):
    fusion, _, inputs = make_wsa([5, 6, 7], context, 16, batch=8)
    fusion(inputs)[0].square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        # The last bias is added to every score, so it changes no weight.
        assert (parameter.grad.abs().max() > 1e-4) == (name != "scorer.2.bias"), name


def test_dropout_is_active_in_training_only():
    fusion, _, inputs = make_wsa([5, 6], None, 64, dropout=0.5)
    assert not torch.equal(fusion(inputs)[0], fusion(inputs)[0])
    fusion.eval()
    assert torch.equal(fusion(inputs)[0], fusion(inputs)[0])


def step_down(fusion, loss):
    """Take a step of length 0.02 against the gradient of a loss."""
    fusion.zero_grad()
    loss.backward()
    total = sum(p.grad.square().sum() for p in fusion.parameters() if p.grad is not None)
    with torch.no_grad():
        for parameter in fusion.parameters():
            if parameter.grad is not None:
                parameter -= 0.02 * parameter.grad / total**0.5


@pytest.mark.parametrize("name", weighing())
def test_steps_on_the_losses_raise_the_entropy_and_even_out_the_use(name):
    fusion, _, inputs = make_wsa([5, 6, 7], None, 8, batch=16, name=name)
    before = entropy(fusion(inputs)[1])
    step_down(fusion, -before)
    assert entropy(fusion(inputs)[1]) > before + 1e-4
    before = imbalance(fusion(inputs)[1])
    step_down(fusion, before)
    weights = fusion(inputs)[1]
    assert imbalance(weights) < before - 1e-5
    usage = weights.mean(dim=0)
    assert imbalance(weights).item() == pytest.approx(sum((u.item() - 1 / 3) ** 2 for u in usage))


def test_entropy_and_imbalance_distinguish_collapse_from_choice():
    collapsed = torch.tensor([[1.0, 0.0]] * 4)
    choosing = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2)
    uniform = torch.full((4, 2), 0.5)
    assert [round(entropy(w).item(), 3) for w in (collapsed, choosing, uniform)] == [0, 0, 0.693]
    assert [round(imbalance(w).item(), 3) for w in (collapsed, choosing, uniform)] == [0.5, 0, 0]
    assert torch.isfinite(entropy(torch.zeros(2, 2)))  # Dead rows of the published code.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "was"}, r"--fusion was: .* Did you mean wsa\? Choose from wsa, lin"),
        ({"preset": "these"}, "--fusion-preset these: .* Did you mean thesis"),
        ({"size": 0}, "--fusion-size must be at least 1"),
        ({"temperature": 0.0}, "--temperature must be positive"),
        ({"dropout": 1.0}, "--dropout must be from 0 to below 1"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        make_fusion_config(**options)


def test_fusions_without_a_context_refuse_one():
    for name in ("lin", "fix", "uniform"):
        with pytest.raises(UsageError, match="leave out --context"):
            make_fusion(make_fusion_config(name), Inputs(((1, 4), (1, 5)), 1))


def test_a_wrong_number_of_embeddings_or_no_present_model_is_refused():
    fusion, _, inputs = make_wsa([5, 6], None, 4)
    with pytest.raises(IndexError):
        fusion(inputs[:1])
    with pytest.raises(ValueError, match="at least one model"):
        fusion(inputs, [False, False])
    with pytest.raises(ValueError, match="zip"):
        fusion(inputs, [True])


def test_the_command_line_offers_every_fusion_and_preset():
    assert cli.parse("learn", ["--fusion", "moe"]).fusion == "moe"
    with pytest.raises(UsageError) as error:
        cli.parse("learn", ["--fusion", "xyzzy"])
    assert set(FUSIONS) <= set(re.findall(r"\w+", str(error.value)))
    assert get_args(get_type_hints(MethodOptions)["fusion_preset"]) == tuple(PRESETS)


def test_tests_check_shapes():
    """`test_run.py` shows that commands do not import what checks them."""
    fusion, _, inputs = make_wsa([5, 6], None, 4)
    with pytest.raises(Exception, match="embeddings") as caught:
        fusion([u.long() for u in inputs])
    assert "TypeCheckError" in type(caught.value).__name__
