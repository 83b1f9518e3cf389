"""The paper's encoders as frozen models: their input, their outputs, and their weights."""

import json
from collections import defaultdict

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from wsa.encode.inference import encoder as forward
from wsa.encode.inference import preprocess
from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.inference.segment_inputs import read_segment_frames
from wsa.encode.live import shrunk_frames
from wsa.encode.live.frame_history import FrameInputs, FrameWindow
from wsa.encode.live.shrunk_frames import ShrunkFrames
from wsa.encode.models import networks, registry
from wsa.encode.models.paper import load
from wsa.encode.models.paper.catalog import NETWORKS, OTHER_NETWORKS
from wsa.encode.models.registry import Request, parse_request
from wsa.encode.registration import identity
from wsa.encode.registration.register import open_model, register
from wsa.learn.pretrain import outputs, trainer
from wsa.learn.pretrain.data import scale
from wsa.learn.pretrain.trainer import trainee
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.format.windows import window_rows
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.snapshot import take_snapshot

SHAPES = {"ae": (16, 16, 64), "sr": (608,), "oke": (21, 21, 128), "okk": (21, 21, 4), "vos": (512,)}


TRAINED_AS = {
    "ae": "ae",
    "sr": "mae",
    "oke": "transporter",
    "okk": "transporter",
    "vos": "segmentation",
}


def find_trainee(alias):
    """The network that an encoder is part of during training."""
    return trainee(TRAINED_AS[alias])


@pytest.fixture(scope="module")
def encoders(make_encoder):
    """Untrained encoders by alias, and the paper's `sr`, which sees four large frames."""
    encoders = {alias: make_encoder(parse_request(f"{alias}:random", {})) for alias in NETWORKS}
    (paper,) = OTHER_NETWORKS["sr"]
    module = load.build("wsa:sr", "random", where=paper)
    return encoders | {paper: Encoder(module, module.preprocessing, parse_output("pooled"))}


def test_a_stored_frame_is_resized_once_for_all_models(atari_store, encoders, monkeypatch):
    """Without changing a bit of any embedding."""
    snapshot = take_snapshot(atari_store)
    meta = snapshot.segments("Pong")[1]
    segment = read_segment_frames(snapshot, meta, rows=True)
    rows = np.arange(5, 9)
    frames = np.unique(segment.frame[rows])
    expected = {
        alias: np.concatenate([encoder(part) for part in segment.inputs(window_of(encoder), at)])
        for alias, encoder in encoders.items()
        for at in [frames if window_of(encoder) == 1 else rows]
    }
    resized = defaultdict(int)  # By height.
    shrink = preprocess.shrink

    def count(pixels, how):
        resized[how.height] += len(pixels)
        return shrink(pixels, how)

    monkeypatch.setattr(forward, "shrink", count)
    for alias, encoder in encoders.items():
        window = window_of(encoder)
        embeddings = encoder.embed_inputs(segment, window, frames if window == 1 else rows)
        np.testing.assert_array_equal(embeddings, expected[alias])
    for height, window in ((210, 4), (84, 2)):
        windows = window_rows(rows, segment.starts[rows], window)
        assert resized[height] == len(np.unique(segment.frame[windows]))


@pytest.mark.parametrize("kept", [1024, 3])
def test_a_played_frame_is_resized_once_while_there_is_room(
    kept, atari_store, encoders, monkeypatch
):
    """Without changing a bit of any embedding."""
    monkeypatch.setattr(shrunk_frames, "MAX_SHRUNK", kept)
    snapshot = take_snapshot(atari_store)
    segment = read_segment_frames(snapshot, snapshot.segments("Pong")[1], rows=True)
    resized = defaultdict(int)
    shrink = preprocess.shrink

    def count(pixels, how):
        resized[how.alike] += len(pixels)
        return shrink(pixels, how)

    models = [*encoders.values()]
    together = ShrunkFrames(models, [window_of(encoder) for encoder in models])
    for row in range(5, 9):
        for encoder in models:
            at = window_rows(np.array([row]), segment.starts[[row]], window_of(encoder))
            frames = segment.frames[segment.frame[at if window_of(encoder) > 1 else at[:, 0]]]
            expected = encoder(frames)
            monkeypatch.setattr(forward, "shrink", count)
            windows = [tuple(one) if one.ndim == 4 else (one,) for one in frames]
            inputs = FrameInputs(
                [FrameWindow(w, tuple(map(hashing.frame_digest, w))) for w in windows]
            )
            np.testing.assert_array_equal(together.embed(encoder, inputs), expected)
            monkeypatch.setattr(forward, "shrink", shrink)
    assert all(len(cache._levels) <= kept for cache in together._caches.values())
    longest = dict.fromkeys(resized, 0)
    for encoder in models:
        longest[encoder.alike] = max(longest[encoder.alike], window_of(encoder))
    for how, window in longest.items():
        windows = window_rows(np.arange(5, 9), segment.starts[5:9], window)
        distinct = len(np.unique(segment.frame[windows]))
        assert resized[how] == distinct if kept > 3 else resized[how] >= distinct
    assert len(longest) >= 2


def window_of(encoder):
    window = getattr(encoder.module, "window", 1)
    return window


@pytest.mark.parametrize("name", ["stdim", "mae"])
def test_a_weights_file_determines_the_network_of_sr(name, tmp_path):
    trained = trainee(name)().frozen()["sr"]
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "sr.safetensors")
    built = load.build("wsa:sr", f"file:{tmp_path / 'sr.safetensors'}")
    assert type(built.module) is type(trained) and built.window == trained.window
    assert (built.preprocessing.height, built.preprocessing.width) == (
        trained.sees.height,
        trained.sees.width,
    )


@pytest.mark.parametrize("alias", NETWORKS)
def test_a_frozen_encoder_sees_what_it_learned_on(alias, read_examples, make_encoder, atari_store):
    """The same scale, size, frames, and order, on a real game."""
    examples = read_examples(find_trainee(alias).training_input, "Pong")
    request = parse_request(f"{alias}:random", {})
    encoder = make_encoder(request)
    window = identity.identify(encoder.module, request).window
    snapshot = take_snapshot(atari_store)
    screens = np.concatenate([snapshot.read_frames(m) for m in snapshot.segments("Pong")])
    rows = examples.training["Pong"][-3:]
    at = examples.frame_rows(rows, np.random.default_rng(0))
    frames = screens[examples._frame[at[:, -window:] if window > 1 else at[:, :1]]]
    inputs = []
    first = next(m for m in encoder.module.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    encoder(frames if window > 1 else frames[:, 0])
    trained = scale(examples.take(rows, np.random.default_rng(0)), "cpu")
    trained = trained[:, -window:] if window > 1 else trained[:, :1]
    assert torch.equal(torch.cat(inputs), trained)
    assert trained.max() > 0.3 and trained.min() >= 0
    if window > 1:
        assert (trained[:, -1] != trained[:, -2]).any()


@pytest.mark.parametrize("alias", NETWORKS)
def test_by_default_the_whole_output_is_kept(alias, store):
    request = parse_request(f"{alias}:random", {})
    spec = register(take_snapshot(store), request, 0.1).spec
    assert spec.shape == SHAPES[alias] and spec.identity.random
    assert (spec.timm_name, spec.license) == (f"wsa:{alias}", "none: random weights")
    assert identity.find_model(take_snapshot(store), request) == spec
    assert open_model(take_snapshot(store), spec.key).passes == 0  # The probe agrees.


def test_a_geometry_meant_for_other_models_changes_nothing(store):
    plain, padded = (parse_request("ae", {}, geometry=how) for how in ("squash", "pad"))
    spec = register(take_snapshot(store), plain, 0.1, engine="torch").spec
    assert identity.find_model(take_snapshot(store), padded) == spec


@pytest.mark.parametrize(
    ("alias", "output", "shape"),
    [("oke", "grid:7", (7, 7, 128)), ("vos", "grid:21", (21, 21, 20)), ("ae", "pooled", (64,))],
)
def test_a_smaller_output_is_a_model_of_its_own(alias, output, shape, store):
    spec = register(take_snapshot(store), parse_request(f"{alias}:random", {}, output), 0.1).spec
    assert (spec.shape, spec.identity.output) == (shape, output)


def test_a_stored_code_decodes_to_the_same_masks_as_a_live_one(tmp_path, make_encoder, atari_store):
    network = load.network("vos")
    safetensors.torch.save_file(network.state_dict(), tmp_path / "vos.safetensors")
    request = parse_request("vos", {"vos": str(tmp_path / "vos.safetensors")})
    snapshot = take_snapshot(atari_store)
    screens = snapshot.read_frames(snapshot.segments("Pong")[0])
    windows = np.stack([screens[:-1], screens[1:]], axis=1)[:2]
    code = stored(make_encoder(request)(windows))
    assert code.dtype == np.float16
    decoder = load.open_decoder("vos", tmp_path / "vos.safetensors")
    assert not any(p.requires_grad for p in decoder.parameters())
    masks = decoder(torch.from_numpy(code).float())
    assert masks.shape == (2, 20, 84, 84)
    live = decoder(torch.from_numpy(stored(make_encoder(request)(windows))).float())
    assert torch.equal(masks, live)
    whole = make_encoder(parse_request("vos", {"vos": str(tmp_path / "vos.safetensors")}, "map"))
    np.testing.assert_allclose(masks.permute(0, 2, 3, 1), whole(windows), atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("alias", NETWORKS)
def test_the_files_of_a_training_are_loaded(alias, half, tmp_path):
    trainee = find_trainee(alias)().eval()
    outputs.write_encoders(tmp_path, trainee, half)
    file = tmp_path / f"{alias}.safetensors"
    request = parse_request(alias, {alias: str(file)})
    assert request.source == f"file:{file}"
    built = networks.build(request)
    weights = trainee.frozen()[alias].state_dict()
    for name, tensor in built.module.state_dict().items():
        expected = weights[name]
        if half and tensor.is_floating_point():
            expected = expected.half().float()
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected), name
    assert not built.training and not any(p.requires_grad for p in built.parameters())


@pytest.mark.parametrize("alias", NETWORKS)
def test_the_shipped_weights_match_their_manifest(alias):
    request = parse_request(alias, {})
    file = load.shipped(alias)
    data = file.read_bytes()
    manifest = json.loads(file.with_name("manifest.json").read_text())["files"][alias]
    assert manifest["blake3"] == hashing.checksum(data) and manifest["bytes"] == len(data)
    assert registry.local_weights(request) == "wsa" and "Apache-2.0" in request.license
    built = networks.build(request).module
    sees = msgspec.json.decode(msgspec.json.encode(built.sees.preprocessing()))
    assert manifest["window"] == built.window and manifest["sees"] == sees
    trained, untrained = built.state_dict(), load.network(alias).state_dict()
    for name, tensor in safetensors.torch.load_file(file).items():
        assert tensor.dtype == torch.float16 and tensor.isfinite().all()
        assert torch.equal(trained[name], tensor.float())
        assert tensor.ndim < 2 or not torch.equal(tensor.float(), untrained[name].half().float())


def test_the_shipped_weights_are_small_and_trained_on_ten_games():
    folder = load.shipped("ae").parent
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 20e6
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["games"]) >= 10 and manifest["files"].keys() == NETWORKS.keys()


def test_a_weights_file_of_another_network_is_refused(tmp_path):
    outputs.write_encoders(tmp_path, trainer.trainee("transporter")(), False)
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "oke.safetensors").read_bytes()[:-9])
    for file in ("okk", "torn"):
        with pytest.raises(ConflictError, match="does not hold the weights of oke") as caught:
            networks.build(parse_request("oke", {"oke": str(tmp_path / f"{file}.safetensors")}))
        assert caught.value.kind == "other-weights"


def test_a_store_can_name_only_the_papers_networks():
    for name in ("wsa:os", "wsa:", "wsa:autoencoder:Autoencoder"):
        with pytest.raises(UsageError):
            networks.build(Request("ae", name, "random", "map"))


def test_weights_of_a_later_version_are_another_model(store, tmp_path, monkeypatch):
    request = parse_request("ae", {})
    spec = register(take_snapshot(store), request, 0.1, engine="torch").spec
    snapshot = take_snapshot(store)
    assert identity.find_model(snapshot, request) == spec
    later = {name: 2 * t for name, t in safetensors.torch.load_file(load.shipped("ae")).items()}
    safetensors.torch.save_file(later, tmp_path / "ae.safetensors")
    monkeypatch.setattr(load, "shipped", lambda alias: tmp_path / f"{alias}.safetensors")
    assert identity.find_model(snapshot, request) is None
