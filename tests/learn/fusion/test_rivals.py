"""The paper's other fusions and the controls: outputs, shapes, and numbers of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wsa.learn.configs.fusions import FUSIONS, make_fusion_config
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion.base import Inputs, SpatialAdapter, side_of
from wsa.learn.fusion.build import fusion_class, make_fusion
from wsa.learn.networks.heads import ActorCritic, QNetwork, Torso
from wsa.learn.networks.parameters import count_parameters
from wsa.learn.networks.recurrent import RecurrentActorCritic
from wsa.store.common.errors import UsageError

pytestmark = pytest.mark.usefixtures("checked_shapes")

# SR, OKE, OKK, VOS and the context's autoencoder: thesis, chapter on methodology.
PAPER = ((1, 512), (1, 21, 21, 128), (1, 21, 21, 4), (1, 84, 84, 20), (1, 16, 16, 64))
MIXED = ((2, 18), (2, 3, 3, 5), (2, 4, 5, 2))


@pytest.mark.parametrize(
    ("name", "switches", "millions"),
    [
        ("wsa", {"size": 256}, 8.71),
        ("wsa", {"size": 512}, 17.36),
        ("wsa", {"size": 1024}, 34.67),
        ("lin", {}, 8.71),
        ("fix", {"size": 256}, 4.91),
        ("fix", {"size": 512}, 9.76),
        ("fix", {"size": 1024}, 19.46),
        ("cnn", {"layers": 1}, 4.27),
        ("cnn", {"layers": 2}, 4.28),
        ("cnn", {"layers": 3}, 4.29),
        ("mix", {}, 4.53),
        ("res", {"size": 512}, 0.32),
        ("res", {"size": 1024}, 0.58),
        ("res", {"size": 2048}, 1.11),
    ],
)
def test_numbers_of_parameters_are_the_papers(name, switches, millions):
    assert count_trainable(name, **switches) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_dpa_is_wsa_without_its_scorer(size):
    assert count_trainable("dpa", size=size) == count_trainable("wsa", size=size) - (2 * size + 1)


def count_trainable(name, **switches):
    """Parameters of the fusion and of heads of 256 units for 4 actions."""
    conditioned = name in ("wsa", "dpa")
    inputs = Inputs(PAPER if conditioned else PAPER[:4], 4 if conditioned else None, 4)
    config = NetworkConfig(
        make_fusion_config(name, "thesis", **switches), frame_stack=1, normalize="none"
    )
    with torch.device("meta"):
        return count_parameters(ActorCritic(inputs, 4, config)).total


def test_parameters_of_the_fusion_and_of_the_head_are_counted_separately():
    config = NetworkConfig(make_fusion_config(size=8), frame_stack=1, hidden=(5,))
    policy = ActorCritic(Inputs(((1, 3),)), 4, config)
    heads = 2 * (8 * 5 + 5) + (5 * 4 + 4) + (5 + 1)
    fusion = (3 * 8 + 8) + 2 * 8 + (16 * 8 + 8) + (8 + 1)  # Adapter, its norm, scorer.
    counts = count_parameters(policy)
    assert (counts.fusion, counts.head, counts.total) == (fusion, heads, fusion + heads)
    recurrent = count_parameters(RecurrentActorCritic(policy.torso, 4))
    assert (recurrent.fusion, recurrent.head) == (
        fusion,
        4 * 8 * (8 + 8 + 2) + (8 * 4 + 4) + (8 + 1),
    )
    assert counts.named()["parameters"] == sum(p.numel() for p in policy.parameters())


@pytest.mark.parametrize(
    ("shape", "out", "kernel", "stride"),
    [(PAPER[1], 32, 6, 1), (PAPER[2], 16, 6, 1), (PAPER[3], 16, 5, 5)],
)
def test_spatial_adapters_are_the_papers(shape, out, kernel, stride):
    first, second, last = SpatialAdapter(shape, 16)
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    assert isinstance(last, nn.ReLU)
    assert (first.kernel_size, first.out_channels) == ((1, 1), out)
    assert (second.kernel_size, second.stride) == ((kernel, kernel), (stride, stride))
    assert second.padding == (0, 0) and second.bias is not None


@given(
    frames=st.integers(1, 4),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    channels=st.integers(1, 9),
    less=st.integers(0, 15),
)
def test_spatial_adapters_output_the_requested_side(frames, height, width, channels, less):
    shape = (frames, height, width, channels)
    side = max(1, side_of(shape) - less)
    output = SpatialAdapter(shape, side)(torch.zeros(2, *shape))
    assert output.shape == (2, 16, side, side)


def make(name, **switches):
    torch.manual_seed(3)
    shapes = MIXED[:1] if name == "single" else MIXED
    fusion: Any = make_fusion(make_fusion_config(name, **{"size": 6, **switches}), Inputs(shapes))
    return fusion, [torch.randn(4, *shape) for shape in shapes]


def adapt_maps(fusion, embeddings):
    return [adapter(u) for adapter, u in zip(fusion.spatial, embeddings, strict=True)]


@pytest.mark.parametrize("name", list(FUSIONS))
def test_every_fusion_has_the_same_signature(name):
    fusion, embeddings = make(name)
    state, weights = fusion(embeddings)
    assert state.shape == (4, fusion.out_features)
    assert weights is None or weights.shape == (4, len(embeddings))
    assert (weights is not None) == fusion.weighs
    mask = [True] + [False] * (len(embeddings) - 1)
    masked, weights = fusion(embeddings, mask)
    other = [embeddings[0], *(torch.full_like(u, 5.0) for u in embeddings[1:])]
    torch.testing.assert_close(fusion(other, mask)[0], masked)  # Absent models have no influence.
    if weights is not None:
        torch.testing.assert_close(weights, torch.eye(3)[:1].expand(4, 3))


OTHERS = {
    "size": 12, "layers": 2, "channels": 5, "score_activation": "relu", "normalizer": "sigmoid",
    "layer_norm": False, "temperature": 2.0, "scorer_hidden": False, "dropout": 0.5, "init": "small",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FUSIONS if name != "single"])
def test_the_options_of_a_fusion_are_those_that_change_it(name):
    def output(**switches):
        fusion, _ = make(name, **switches)
        torch.manual_seed(1)  # Building draws numbers, and so does dropout.
        return fusion([torch.randn(4, *shape) for shape in MIXED])[0]

    others = [*OTHERS.items(), ("init", "orthogonal")]
    changing = {field for field, value in others if not same(output(), output(**{field: value}))}
    assert changing == set(fusion_class(name).options)


def same(one, other):
    return one.shape == other.shape and torch.equal(one, other)


@pytest.mark.parametrize("name", ["wsa", "fix", "mean", "single"])
def test_small_weights_of_adapters_have_a_gain_of_a_hundredth(name):
    fusion, _ = make(name, init="small")
    for adapter in fusion.adapters:
        norms = torch.linalg.matrix_norm(adapter[0].weight, 2)
        torch.testing.assert_close(norms, torch.tensor(0.01))
        assert not adapter[0].bias.any()


def test_lin_concatenates_the_embeddings():
    fusion, embeddings = make("lin")
    expected = torch.cat([part.flatten(1) for part in adapt_maps(fusion, embeddings)], dim=1)
    assert torch.equal(fusion(embeddings)[0], expected)
    assert fusion.out_features == 36 + 16 * 9 + 16 * 16
    masked = fusion(embeddings, [True, False, True])[0]
    assert (masked[:, 36 : 36 + 144] == 0).all() and torch.equal(masked[:, :36], expected[:, :36])


def test_fix_concatenates_the_adapted_embeddings():
    fusion, embeddings = make("fix")
    parts = zip(fusion.adapters, adapt_maps(fusion, embeddings), strict=True)
    expected = torch.cat([adapter(part.flatten(1)) for adapter, part in parts], dim=1)
    assert torch.equal(fusion(embeddings)[0], expected) and expected.shape == (4, 18)


def test_cnn_folds_vectors_into_maps():
    fusion, embeddings = make("cnn", layers=2)
    # The smallest map has side 3; 2 x 18 numbers are 4 channels of that.
    maps = adapt_maps(fusion, embeddings)
    assert [tuple(m.shape[1:]) for m in maps] == [(2, 18), (16, 3, 3), (16, 3, 3)]
    stacked = torch.cat([maps[0].reshape(4, 4, 3, 3), maps[1], maps[2]], dim=1)
    one, other = (fusion.convolutions[i] for i in (0, 2))
    hidden = nn.functional.conv2d(stacked, one.weight, one.bias, padding=1).relu()
    hidden = nn.functional.conv2d(hidden, other.weight, other.bias, padding=1).relu()
    torch.testing.assert_close(fusion(embeddings)[0], hidden.flatten(1))


def test_mix_convolves_the_maps_alone():
    fusion, embeddings = make("mix")
    maps = adapt_maps(fusion, embeddings)
    mixed = fusion.convolution(torch.cat(maps[1:], dim=1)).flatten(1)
    expected = torch.cat([mixed, embeddings[0].flatten(1)], dim=1)
    assert torch.equal(fusion(embeddings)[0], expected) and expected.shape == (4, 32 * 9 + 36)


def test_res_is_a_fixed_recurrent_network():
    fusion, embeddings = make("res", size=7)
    radius = torch.linalg.eigvals(fusion.reservoir).abs().max().item()
    assert radius == pytest.approx(0.9, rel=1e-4)
    state = torch.zeros(4, 7)
    for i in range(2):  # Frames of the state.
        frame = [u[:, i : i + 1] for u in embeddings]
        row = torch.cat([part.flatten(1) for part in adapt_maps(fusion, frame)], dim=1)
        state = torch.tanh(row @ fusion.reservoir_in + state @ fusion.reservoir)
    output = fusion(embeddings)[0]
    torch.testing.assert_close(output, state.detach())
    assert not output.requires_grad
    assert {"reservoir", "reservoir_in"} <= set(
        fusion.state_dict()
    )  # The authors do not save them.
    # Rows of a batch do not influence each other.
    order = [2, 0, 3, 1]
    torch.testing.assert_close(fusion([u[order] for u in embeddings])[0], output[order])
    other, _ = make("res", size=7)
    other.load_state_dict(fusion.state_dict())
    assert torch.equal(other(embeddings)[0], output)


def test_dpa_queries_with_the_context():
    fusion, embeddings = make("dpa")
    adapted = fusion.adapt(embeddings, range(3))
    context = adapted.mean(dim=1)
    scores = torch.stack([(context * adapted[:, i]).sum(dim=1) for i in range(3)], dim=1) / 6**0.5
    weights = scores.softmax(dim=1)
    state, output = fusion(embeddings)
    torch.testing.assert_close(output, weights)
    torch.testing.assert_close(state, sum(weights[:, i, None] * adapted[:, i] for i in range(3)))


def test_controls_replace_parts_of_wsa():
    shapes = (*MIXED, (2, 4))
    embeddings = [torch.randn(4, *shape) for shape in shapes]
    inputs = Inputs(shapes, 3, 3)
    fusions: dict[str, Any] = {
        name: make_fusion(make_fusion_config(name, size=6), inputs)
        for name in ("mean", "unshared", "moe")
    }
    for fusion in fusions.values():
        adapted = fusion.adapt(embeddings, range(3))
        context = fusion.condition(adapted, embeddings)
        assert torch.equal(context, fusion.context(embeddings[3][:, -1]))
        state, weights = fusion(embeddings)
        if fusion is fusions["mean"]:
            torch.testing.assert_close(state, (adapted.sum(dim=1) + context) / 4)
            continue
        if fusion is fusions["moe"]:  # The gate does not see the embeddings.
            hidden = fusion.router(context)
            scores = [gate(hidden) for gate in fusion.gates]
        else:
            pairs = [torch.cat([context, adapted[:, i]], dim=1) for i in range(3)]
            scores = [f(pair) for f, pair in zip(fusion.scorers, pairs, strict=True)]
        scaled = torch.cat(scores, dim=1) / 6**0.5
        torch.testing.assert_close(weights, scaled.softmax(dim=1))
    uniform, embeddings = make("uniform")
    state = uniform(embeddings)[0]
    torch.testing.assert_close(state, uniform.adapt(embeddings, range(3)).mean(dim=1))


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("cnn", ((1, 4), (1, 5)), "every model gives a vector. Encode one with --output grid:7"),
        ("mix", ((1, 4),), "choose --fusion lin or wsa"),
        ("cnn", ((1, 4), (1, 3, 3, 2)), "1 x 4 = 4 numbers are not a multiple of 9. Choose"),
        ("single", ((1, 4), (1, 5)), "takes one model, but there are 2. Name one with --models"),
    ],
)
def test_unsuitable_shapes_are_refused(name, shapes, message):
    with pytest.raises(UsageError, match=message):
        make_fusion(make_fusion_config(name), Inputs(shapes))


@pytest.mark.parametrize("normalize", ["none", "layer", "standard"])
def test_a_torso_splits_and_normalizes(normalize):
    # The second model sees the whole state, so its last embedding is used alone.
    shapes = ((3, 4), (1, 2, 2, 3))
    config = NetworkConfig(make_fusion_config("lin"), frame_stack=3, normalize=normalize)
    torso = Torso(Inputs(shapes), config)
    mean, deviation = torch.randn(16), torch.rand(16) + 0.5
    torso.set_moments(mean, deviation)
    stacks = 4 * torch.randn(5, 3, 16)
    rows = stacks
    if normalize == "standard":
        rows = ((stacks - mean) / deviation).clamp(-5, 5)
        assert (rows.abs() == 5).any()
    first, second = rows[:, :, :4], rows[:, -1:, 4:]
    if normalize == "layer":
        first, second = (nn.functional.layer_norm(x, x.shape[2:]) for x in (first, second))
    fusion: Any = torso.fusion
    expected = fusion([first, second.reshape(5, 1, 2, 2, 3)])[0]
    torch.testing.assert_close(torso(stacks)[0], expected)
    torch.testing.assert_close(torso(stacks.half())[0], expected, rtol=0.02, atol=0.02)


def test_heads_have_the_requested_layers():
    config = NetworkConfig(make_fusion_config(size=8), frame_stack=1, hidden=(16, 12))
    network = QNetwork(Inputs(((1, 4),)), 3, config)
    layers = [m for m in network.head if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(8, 16), (16, 12), (12, 3)]
    actor = ActorCritic(
        Inputs(((1, 4),)), 3, NetworkConfig(make_fusion_config(size=8), frame_stack=1, hidden=())
    )
    logits, values, weights = actor(torch.randn(5, 1, 4))
    assert logits.shape == (5, 3) and values.shape == (5,)
    assert weights is not None and weights.shape == (5, 1)
    assert logits.abs().max() < 0.1  # Actions are about equally likely at first.
