"""Choosing a fusion's width by the number of parameters of its network."""

import dataclasses

import msgspec
import pytest
import torch

from wsa import cli
from wsa.learn.configs.algorithms import CQLConfig, OnlineDQNConfig, PPOConfig
from wsa.learn.configs.fusions import FUSIONS, FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari
from wsa.learn.fusion.base import Fusion, Inputs
from wsa.learn.fusion.build import fusion_class
from wsa.learn.networks import matching
from wsa.learn.networks.heads import ActorCritic, QNetwork
from wsa.learn.networks.matching import match_parameters, widened, width_of
from wsa.learn.networks.parameters import count_parameters
from wsa.learn.runs.network import parameters_of, windows_and_shapes
from wsa.learn.runs.setup.make_run import make_offline, make_online
from wsa.learn.study import combine_plan
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

SHAPES = ((2, 36), (2, 3, 3, 5), (2, 4, 5, 2))


def network(name, **switches):
    return NetworkConfig(FusionConfig(name, **switches), frame_stack=2, hidden=(16,))


def count(config):
    shapes = SHAPES[:1] if config.fusion.name == "single" else SHAPES
    with torch.device("meta"):
        return count_parameters(ActorCritic(Inputs(shapes), 4, config)).total


@pytest.mark.parametrize("name", FUSIONS)
def test_the_chosen_width_is_the_closest(name):
    wanted = 20_001
    found = match_parameters(network(name), wanted, count)
    by = fusion_class(name).scaled_by
    width = found.hidden[0] if by == "hidden" else getattr(found.fusion, by)
    assert width_of(found) == f"{matching._FLAGS[by]} {width}"
    miss = abs(count(found) - wanted)
    for other in (width - 1, width + 1):
        assert abs(count(widened(network(name), by, other)) - wanted) >= miss
    untouched = msgspec.structs.replace(found, hidden=(16,), fusion=network(name).fusion)
    assert untouched == network(name)


def test_hidden_layers_keep_their_proportions():
    three = msgspec.structs.replace(network("lin"), hidden=(16, 8, 4))
    first, second, third = match_parameters(three, 40_000, count).hidden
    assert first > 16 and (second, third) == (round(first / 2), round(first / 4))


@pytest.mark.parametrize(
    ("config", "wanted", "linear", "words"),
    [
        (network("wsa"), 100, False, r"with --fusion-size 1 --fusion wsa has 1,691 here.*closest"),
        (network("wsa"), 10**15, False, r"with --fusion-size 65536 --fusion wsa has .*closest"),
        (network("cnn", channels=8), 4_000, False, "chooses --fusion-channels: leave one of"),
        (network("wsa", size=8), 4_000, False, "chooses --fusion-size: leave one of"),
        (network("lin"), 4_000, True, "--fusion lin has no width of its own.*linear heads"),
        (msgspec.structs.replace(network("res"), hidden=()), 4_000, False, "linear heads"),
    ],
)
def test_an_impossible_match_is_refused(config, wanted, linear, words):
    with pytest.raises(UsageError, match=words):
        match_parameters(config, wanted, count, linear_heads=linear)


def test_a_fusion_without_a_width_is_refused(monkeypatch):
    monkeypatch.setattr(matching, "fusion_class", lambda name: Fusion)
    with pytest.raises(UsageError, match=r"no width of its own to choose\. Leave it out"):
        match_parameters(network("wsa"), 4_000, count)


@pytest.mark.parametrize(("by", "flag"), [("layers", "--fusion-layers"), ("hidden", "--hidden")])
def test_a_users_fusion_says_what_sets_its_width(monkeypatch, by, flag):
    monkeypatch.setattr(
        matching, "fusion_class", lambda name: type("Own", (Fusion,), {"scaled_by": by})
    )
    found = match_parameters(network("cnn"), 50_000, count)
    assert width_of(found).startswith(flag)


def test_a_users_fusion_with_an_unknown_width_is_refused(monkeypatch):
    own = type("Own", (Fusion,), {"scaled_by": "width"})
    monkeypatch.setattr(matching, "fusion_class", lambda name: own)
    with pytest.raises(ConflictError, match="Choose from size, channels, layers, hidden"):
        match_parameters(network("wsa"), 4_000, count)


@pytest.fixture
def snapshot(walk_url):
    return take_snapshot(open_store(walk_url))


def test_a_run_has_the_chosen_width(kit, snapshot):
    models = [kit.key("lite0"), kit.key("vit")]
    details = {"network": NetworkConfig(frame_stack=2, hidden=(16,)), "match": 3_000}
    run = make_offline(snapshot, kit.GAME, models, "mean", 1, CQLConfig(), **details)  # type: ignore[arg-type]
    assert run.network.fusion.size not in (1, 256)
    assert parameters_of(run, *windows_and_shapes(run, snapshot)).total == pytest.approx(
        3_000, rel=0.05
    )
    with torch.device("meta"):
        network = QNetwork(Inputs(((2, 5), (2, 3))), len(run.protocol.actions), run.network)
    assert count_parameters(network) == parameters_of(run, *windows_and_shapes(run, snapshot))


@pytest.mark.parametrize("learner", [PPOConfig(), OnlineDQNConfig()])
def test_a_network_on_pixels_is_matched(snapshot, learner):
    pixels = NetworkConfig(FusionConfig("nature"), normalize="none", hidden=())
    protocol = atari.protocol("Pong", "classic")

    def plan(**size):
        return make_online(snapshot, "Pong", [], "mean", pixels, protocol, 1, learner, **size)

    run = plan(match=200_000)
    assert run == plan(parameters=200_000)
    assert parameters_of(run, (), ()).total == pytest.approx(200_000, rel=0.02)
    with pytest.raises(UsageError, match="they mean the same"):
        plan(match=200_000, parameters=200_000)


def test_all_fusions_of_a_study_are_matched(kit, snapshot, tmp_path):
    line = ["combine", "--games", kit.GAME, "--models", "lite0,vit", "--seeds", "1",
            "--frame-stack", "2", "--match-parameters", "9000"]  # fmt: skip
    o = dataclasses.replace(cli.parse("study", line), study_dir=str(tmp_path), dry_run=True)
    plan = combine_plan.plan(o, snapshot, "cpu")
    assert {run.method for run in plan.runs} >= {"wsa", "lin", "fix", "res", "dpa", "single vit"}
    for run in plan.runs:
        assert run.parameters == pytest.approx(9_000, rel=0.06), run.method
