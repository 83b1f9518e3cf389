"""`--decode`: the network decodes a stored code into masks with the model's own frozen decoder."""

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from wsa import cli
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.run import encode
from wsa.encode.models.registry import parse_request
from wsa.encode.registration.identity import find_model
from wsa.learn.bench import grid
from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.configs.algorithms import CQLConfig
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari
from wsa.learn.networks.decoder import Decoder
from wsa.learn.networks.parameters import count_parameters
from wsa.learn.runs.config import read_config
from wsa.learn.runs.data import open_data
from wsa.learn.runs.evaluate import evaluate_run
from wsa.learn.runs.folder import begin
from wsa.learn.runs.network import make_network, parameters_of, windows_and_shapes
from wsa.learn.runs.player import load_network
from wsa.learn.runs.setup.configure import configure
from wsa.learn.runs.setup.make_run import make_offline
from wsa.learn.runs.train import train_stored
from wsa.learn.study.combine_plan import untrained
from wsa.learn.training import checkpoint
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

STEPS = 24
DECODER = 5_440_508  # Linear 512 to 10,584, two 3x3 convolutions of 24 channels, one 1x1 to 20.


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("WSA_CACHE", str(tmp_path_factory.getbasetemp() / "flat-cache"))


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    """A little Breakout, by `vos` as a code and as masks, untrained `vos`, and `sr`."""
    made = open_store(str(tmp_path_factory.mktemp("decode") / "store"), create=True)
    plan = plan_collection(
        take_snapshot(made), "Breakout", atari.protocol("Breakout", "classic", max_steps=12),
        steps=STEPS, num_envs=1, policy="random", seed=1, segment_steps=STEPS,
    )  # fmt: skip
    collect(plan, made)
    asked = (("vos", ""), ("vos", "map"), ("vos:random", ""), ("sr", ""))
    requests = [parse_request(name, {}, output) for name, output in asked]
    encode(made, Encoding(requests, device="cpu"), scheduler="inproc")
    return made


@pytest.fixture(scope="module")
def snapshot(backend):
    return take_snapshot(backend)


@pytest.fixture(scope="module")
def keys(snapshot):
    """The keys of the models, by what they are."""
    shapes = {e.model: e.shape[1:] for e in snapshot.embeddings("Breakout")}
    code = find_model(snapshot, parse_request("vos", {}))
    assert code is not None
    (masks,) = [key for key, shape in shapes.items() if len(shape) == 3]
    (sr,) = [key for key in shapes if key.startswith("sr-")]
    (random,) = [key for key in shapes if key not in (code.key, masks, sr)]
    return {"code": code.key, "map": masks, "random": random, "sr": sr}


def a_run(snapshot, models, **changes):
    learner = CQLConfig(updates=2, batch_size=4, validation_fraction=0.0, log_frequency=1)
    network = NetworkConfig(FusionConfig(size=8), frame_stack=1, normalize="none", hidden=(8,))
    return make_offline(
        snapshot, "Breakout", models, "mean", 1, learner, network=network, **changes
    )


@pytest.fixture(scope="module")
def run(snapshot, keys, tmp_path_factory):
    """A finished run over `sr` and the decoded `vos`."""
    folder = tmp_path_factory.mktemp("decoded") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSA_CACHE", str(tmp_path_factory.getbasetemp() / "flat-cache"))
        config = a_run(snapshot, [keys["sr"], keys["code"]], decode=[keys["code"]])
        begin(folder, config)
        train_stored(folder, config)
    return folder


def test_the_network_sees_the_masks_that_a_store_of_masks_has(snapshot, keys):
    decoded = a_run(snapshot, [keys["code"]], decode=[keys["code"]])
    stored = a_run(snapshot, [keys["map"]])
    flats = [open_data(config)[1] for config in (decoded, stored)]
    assert flats[0] is not None and flats[1] is not None
    codes, masks = (np.array(flat.windowed[:6]) for flat in flats if flat is not None)
    decoder = Decoder(decoded.decoders[keys["code"]])
    found = decoder(torch.from_numpy(codes).float()[:, None])
    assert found.shape == (6, 1, *Decoder.shape)
    np.testing.assert_allclose(found.reshape(6, -1), masks, atol=5e-3)  # Half precision codes.
    # Hence the learned network is the same, and the frozen part is counted apart.
    counts = [
        parameters_of(config, flat.windows, flat.shapes)
        for config, flat in zip((decoded, stored), flats, strict=True)
        if flat is not None
    ]
    assert counts[0] == counts[1]._replace(frozen=DECODER)
    assert counts[0].named()["parameters_frozen"] == DECODER
    assert "parameters_frozen" not in counts[1].named()
    # And a row of the cache is that of the code.
    assert (codes.shape[1], masks.shape[1]) == (512, 84 * 84 * 20)


def test_the_decoder_is_never_trained_and_never_saved(run):
    config = read_config(run)
    network, updates = load_network(
        config, open_data(config)[1], checkpoint.latest(run / "checkpoints")
    )
    assert updates == 2
    (decoder,) = (part for part in network.modules() if isinstance(part, Decoder))
    assert not list(decoder.parameters()) and not decoder.state_dict()
    assert count_parameters(network).frozen == DECODER
    saved = load_file(checkpoint.latest(run / "checkpoints"))
    assert sum(tensor.size for tensor in saved.values()) < DECODER
    # The same weights in every process: those of the package.
    fresh = Decoder(next(iter(config.decoders.values())))
    pairs = zip(decoder.buffers(), fresh.buffers(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert next(decoder.buffers()) is not next(fresh.buffers())  # Moved apart, and copied apart.
    assert isinstance(network.torso.normalizers[1], nn.Identity)


def test_a_model_that_is_left_out_is_neither_normalized_nor_decoded(run, monkeypatch):
    config = read_config(run)
    network, _ = load_network(config, open_data(config)[1], checkpoint.latest(run / "checkpoints"))
    stacks = torch.rand(3, 1, sum(network.torso.inputs.widths))
    sr = stacks[:, :, : network.torso.inputs.widths[0]]
    expected = network.torso.fusion([sr, torch.zeros(3, 1, *Decoder.shape)], [True, False])
    both = network.torso(stacks)[0]

    def decode(*_):
        raise AssertionError("the decoder runs")

    monkeypatch.setattr(Decoder, "forward", decode)
    state, weights = network.torso(stacks, [True, False])
    assert torch.equal(state, expected[0]) and not torch.equal(state, both)
    assert torch.equal(weights, torch.tensor([[1.0, 0.0]]).expand(3, 2))
    with pytest.raises(AssertionError, match="decoder runs"):
        network.torso(stacks, [False, True])


def test_a_saved_run_plays_again(run):
    first, again = (
        evaluate_run(run, EvaluationRequest(episodes=1, num_envs=1, epsilon=0.0, seed=5))
        for _ in range(2)
    )
    assert first.episodes == again.episodes
    said = first.summary()
    assert said["parameters_frozen"] == DECODER and said["backbone_passes"] > 0


def test_untrained_masks_are_a_control(snapshot, keys):
    config = a_run(snapshot, [keys["random"]], decode=[keys["random"]])
    trained = a_run(snapshot, [keys["code"]], decode=[keys["code"]])
    decoders = [Decoder(*made.decoders.values()) for made in (config, trained)]
    codes = torch.rand(1, 1, 512)
    assert not torch.equal(decoders[0](codes), decoders[1](codes))
    assert untrained(("vos",)) == ("vos:random",)  # As a study names both.


def test_what_cannot_be_decoded_is_refused(snapshot, keys, run):
    def refused(decode, models):
        with pytest.raises(UsageError, match=r"^--decode") as caught:
            a_run(snapshot, models, decode=[decode])
        return str(caught.value)

    assert "has no decoder; only vos has one" in refused("sr", [keys["sr"]])
    assert "with --output map" in refused(keys["map"], [keys["map"]])
    assert "the run's models are sr-" in refused("okk", [keys["sr"]])
    # The weights of another version, or of a user: not those of the digest.
    config = read_config(run)
    other = msgspec.structs.replace(config, decoders=dict.fromkeys(config.decoders, "ab" * 32))
    with pytest.raises(ConflictError, match="with digest abababababab"):
        load_network(other, open_data(other)[1], checkpoint.latest(run / "checkpoints"))


def test_a_run_decodes_and_one_that_continues_it_too(backend, snapshot, keys, run, tmp_path):
    def configured(*options) -> Any:
        line = ["--game", "Breakout", "--store", backend.url, *options]
        return configure(cli.parse("learn", line), snapshot, dry_run=True)

    models = f"{keys['sr']},{keys['code']}"
    digests = read_config(run).decoders
    assert configured("--models", models, "--decode", keys["code"]).decoders == digests
    online = configured("--online", "--algo", "ppo", "--models", models, "--decode", keys["code"])
    assert online.decoders == digests
    assert parameters_of(online, online.model_windows, online.shapes).frozen == DECODER
    assert configured("--init", str(run)).decoders == digests
    assert configured("--init", str(run), "--drop", keys["code"]).decoders == {}
    # A run that did not decode cannot begin to; a model that joins it can be decoded.
    for name, models in (("code", ["sr", "code"]), ("sr", ["sr"])):
        config = a_run(snapshot, [keys[model] for model in models])
        begin(tmp_path / name, config)
        network = make_network(config, *windows_and_shapes(config, snapshot))
        checkpoint.save(tmp_path / name / "checkpoints", 1, {"online": network})
    begun = ("--init", str(tmp_path / "code"))
    assert configured(*begun).decoders == {}
    with pytest.raises(UsageError, match=r"^--decode vos: .* takes the code of vos as it is"):
        configured(*begun, "--decode", keys["code"])
    joined = ("--init", str(tmp_path / "sr"), "--add", keys["code"])
    assert configured(*joined, "--decode", keys["code"]).decoders == digests
    with pytest.raises(UsageError, match="--decode is an option of fusions"):
        cli.parse("learn", ["--online", "--algo", "ppo", "--fusion", "nature", "--decode", "vos"])


def test_runs_of_a_bench_decode_the_models_that_they_have():
    line = ["--games", "Pong", "--models-subsets", "sr+vos,sr", "--fusions", "wsa", "--seeds", "1"]
    o = cli.parse("bench", [*line, "--decode", "vos"])
    grid.check(o)
    settings = grid.Settings({"store": "s"}, {})
    assert [cell.request.method.decode for cell in grid.cells(o, settings)] == [("vos",), ()]
    with pytest.raises(UsageError, match="--decode okk: no run has this model"):
        grid.check(cli.parse("bench", [*line, "--decode", "okk"]))
