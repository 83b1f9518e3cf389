"""Taking over weights from a run whose models are others: added, dropped, or in another order."""

import pytest
import torch

from wsa.learn.configs.fusions import FUSIONS, FusionConfig, make_fusion_config
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion.base import Adapted, Inputs
from wsa.learn.fusion.build import fusion_class
from wsa.learn.networks.heads import ActorCritic, QNetwork
from wsa.learn.runs.presence import can_lose, named_model
from wsa.learn.runs.setup.warm_start import change_models, transfer
from wsa.learn.training import checkpoint
from wsa.store.common import user_code
from wsa.store.common.errors import UsageError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot

SHAPES = {"vit-1": (2, 5), "map-2": (2, 4, 4, 3), "clip-3": (1, 7), "dino-4": (2, 5)}
OPEN = [name for name in FUSIONS if can_lose(name)]
CONTEXT = "clip-3"


def network(models, name="wsa", context=None, seed=0, **options):
    torch.manual_seed(seed)
    keys = inputs_of(models, context)
    inputs = Inputs(
        tuple(SHAPES[key] for key in keys),
        None if context is None else keys.index(context),
        len(models),
    )
    built = QNetwork(
        inputs, 3, NetworkConfig(make_fusion_config(name, size=16, **options), frame_stack=2)
    )
    built.torso.set_moments(torch.randn(sum(inputs.widths)), torch.rand(sum(inputs.widths)) + 0.5)
    return built


def inputs_of(models, context):
    return [*models, *([context] if context and context not in models else [])]


def take_over(old, before, new, models, folder):
    path = checkpoint.save(folder / "checkpoints", 5, {"online": old})
    return transfer(new, new.torso, models, path, before)


def stacks(models):
    torch.manual_seed(9)
    frames = {
        key: torch.randn(6, 2, int(torch.tensor(shape[1:]).prod())) for key, shape in SHAPES.items()
    }
    return {key: frames[key] for key in models}


def side_by_side(models):
    return torch.cat(list(stacks(models).values()), dim=2)


@pytest.mark.parametrize(
    ("name", "context"),
    [
        (name, context)
        for name in OPEN
        for context in (None, CONTEXT)
        if context is None or fusion_class(name).conditioned
    ],
)
@pytest.mark.parametrize("preset", ["default", "thesis", "paper"])
def test_an_added_model_changes_nothing_while_it_is_masked(tmp_path, name, context, preset):
    before, after = ["vit-1", "map-2"], ["vit-1", "map-2", "dino-4"]
    old = network(before, name, context, preset=preset)
    new = network(after, name, context, seed=1, preset=preset)
    new_inputs, old_inputs = inputs_of(after, context), inputs_of(before, context)
    fresh = take_over(old, old_inputs, new, new_inputs, tmp_path)
    assert fresh and all(".2." in f for f in fresh)  # Only the third model's weights are new.
    expected, weights = old(side_by_side(old_inputs))
    found, masked = new(side_by_side(new_inputs), [True, True, False])
    assert torch.equal(found, expected)
    if weights is not None:
        assert torch.equal(masked[:, :2], weights) and (masked[:, 2] == 0).all()
    if preset == "default":
        assert not torch.equal(new(side_by_side(new_inputs))[0], expected)


@pytest.mark.parametrize("name", OPEN)
def test_dropping_a_model_equals_masking_it(tmp_path, name):
    before, after = ["vit-1", "map-2", "dino-4"], ["vit-1", "dino-4"]
    old, new = network(before, name), network(after, name, seed=1)
    assert take_over(old, before, new, after, tmp_path) == []
    expected, _ = old(side_by_side(before), [True, False, True])
    assert torch.equal(new(side_by_side(after))[0], expected)


def test_models_may_change_their_order(tmp_path):
    before, after = ["vit-1", "dino-4"], ["dino-4", "vit-1"]
    old, new = network(before), network(after, seed=1)
    assert take_over(old, before, new, after, tmp_path) == []
    expected, weights = old(side_by_side(before))
    found, turned = new(side_by_side(after))
    torch.testing.assert_close(found, expected)
    assert weights is not None and turned is not None
    torch.testing.assert_close(turned.flip(1), weights)


class Scales(Adapted):
    """A sum in which each model has a factor of its own, which is a parameter and not a module."""

    per_model = (*Adapted.per_model, "factors")

    def __init__(self, inputs, config):
        super().__init__(inputs, config)
        self.factors = torch.nn.ParameterList(torch.randn(()) for _ in inputs.models)


def test_a_list_of_parameters_is_taken_over_model_by_model(tmp_path):
    before, after = ["vit-1", "map-2", "clip-3"], ["clip-3", "dino-4", "vit-1"]
    old, new = network(before), network(after)
    for built, models in ((old, before), (new, after)):
        inputs = Inputs(tuple(SHAPES[key] for key in models))
        built.torso.fusion = Scales(inputs, FusionConfig(size=16))
    drawn = new.torso.fusion.factors[1].item()
    fresh = take_over(old, before, new, after, tmp_path)
    assert fresh and all(".1." in name or name.endswith(".1") for name in fresh)
    factors = old.torso.fusion.factors
    expected = [factors[2].item(), drawn, factors[0].item()]
    assert [factor.item() for factor in new.torso.fusion.factors] == expected


def test_a_masked_model_has_no_weight():
    built = network(["vit-1", "map-2", "dino-4"])
    weights = built(side_by_side(["vit-1", "map-2", "dino-4"]), [True, False, True])[1]
    assert weights is not None
    torch.testing.assert_close(weights[:, [0, 2]].sum(dim=1), torch.ones(6))
    assert (weights[:, 1] == 0).all()


def test_a_head_of_another_kind_starts_from_new_weights(tmp_path):
    old = network(["vit-1"])
    new = ActorCritic(
        old.torso.inputs, 3, NetworkConfig(make_fusion_config(size=16), frame_stack=2)
    )
    fresh = take_over(old, ["vit-1"], new, ["vit-1"], tmp_path)
    assert fresh and all(name.startswith(("actor.", "critic.")) for name in fresh)
    given = stacks(["vit-1"])["vit-1"]
    assert torch.equal(new.torso(given)[0], old.torso(given)[0])


def test_a_network_of_another_size_is_refused(tmp_path):
    bigger = QNetwork(
        network(["vit-1"]).torso.inputs,
        4,
        NetworkConfig(make_fusion_config(size=16), frame_stack=2),
    )
    with pytest.raises(UsageError, match=r"head\.2\.weight has shape \(3, 256\) there and \(4,"):
        take_over(network(["vit-1"]), ["vit-1"], bigger, ["vit-1"], tmp_path)


class Unlisted(Scales):
    per_model = ()


def test_a_users_fusion_without_lists_per_model_keeps_its_models(monkeypatch):
    name = f"{__name__}:Unlisted"
    monkeypatch.setattr(user_code, "_typed", {name})
    with pytest.raises(UsageError, match=f"--drop: {name} has no per_model, so a trained head"):
        change_models(["vit-1", "map-2"], [], {"vit-1"}, name)
    assert change_models(["vit-1"], [], set(), name) == ["vit-1"]


def test_models_are_added_and_dropped():
    models = ["vit-000000000001", "vit-000000000002", "clip-000000000003"]
    assert change_models(models, [], {models[2]}, "wsa") == models[:2]
    assert change_models(models, ["dino-000000000004"], {models[0]}, "wsa") == [
        *models[1:], "dino-000000000004",
    ]  # fmt: skip
    assert change_models(models, [], set(), "lin") == models
    with pytest.raises(UsageError, match="Use one of wsa, dpa, mean, uniform, single, un"):
        change_models(models, [], {models[2]}, "lin")
    for add, drop, message in (
        ([models[0]], set(), f"--add {models[0]}: the run already has this model"),
        ([], set(models), "--drop leaves no model"),
    ):
        with pytest.raises(UsageError, match=message):
            change_models(models, add, drop, "wsa")


def test_a_model_to_drop_is_named_by_key_or_alias(tmp_path):
    models = ["vit-000000000001", "vit-000000000002", "clip-000000000003"]
    store = Snapshot(open_store(str(tmp_path / "store"), create=True), {})
    assert named_model(models, store, "clip", "--drop") == models[2]
    assert named_model(models, store, models[0], "--drop") == models[0]
    for name in ("vit", "lite0", "lite0:random"):
        with pytest.raises(UsageError, match=f"--drop {name}: the run's models are vit-0000000000"):
            named_model(models, store, name, "--drop")
