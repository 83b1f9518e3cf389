"""The paper's own encoders as frozen models: what they see in use, what is kept, where weights lie."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

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
from wsa.encode.jobs import tasks
from wsa.encode.jobs.plan import Item
from wsa.encode.live import shrunk_frames
from wsa.encode.live.frame_history import FrameInputs, FrameWindow
from wsa.encode.live.shrunk_frames import ShrunkFrames
from wsa.encode.models import registry
from wsa.encode.models.paper import load
from wsa.encode.models.paper.base import Trainee
from wsa.encode.models.paper.load import NETWORKS, OTHER_NETWORKS
from wsa.encode.models.registry import Request, parse_request
from wsa.encode.registration import identity
from wsa.encode.registration.register import open_model, register
from wsa.learn.pretrain import outputs, trainer
from wsa.learn.pretrain.data import Examples, scale
from wsa.learn.pretrain.trainer import TRAINEES, trainee
from wsa.store.backends.base import Backend
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.format.windows import window_rows
from wsa.store.objects.model_spec import Preprocessing, parse_output
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

SHAPES = {
    "ae": (16, 16, 64),
    "sr": (608,),
    "oke": (21, 21, 128),
    "okk": (21, 21, 4),
    "vos": (512,),
}


def trainee_of(alias: str) -> type[Trainee]:
    """What an encoder is a part of, in training."""
    module = NETWORKS[alias][0].partition(":")[0] + ":"
    return next(trainee(name) for name, where in TRAINEES.items() if where.startswith(module))


def encoder_of(request: Request) -> Encoder:
    module = registry.build(request)
    how = identity.identify(module, request).preprocessing
    return Encoder(module, how, parse_output(request.output))


def every_encoder() -> dict[str, Encoder]:
    """Untrained, one of each alias, and the paper's `sr`, which looks at four large frames."""
    encoders = {alias: encoder_of(parse_request(f"{alias}:random", {})) for alias in NETWORKS}
    (paper,) = OTHER_NETWORKS["sr"]
    module = load.build("wsa:sr", "random", where=paper)
    return encoders | {paper: Encoder(module, module.preprocessing, parse_output("pooled"))}


def test_a_screen_is_made_small_once_for_all_of_them(
    played: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever models and windows show it; and nothing of what they give changes by a bit."""
    snapshot = take_snapshot(played)
    meta = snapshot.segments("Pong")[1]
    shown = read_segment_frames(snapshot, meta, rows=True)
    rows = np.arange(5, 12)
    frames = np.unique(shown.frame[5:12])
    encoders = every_encoder()
    expected = {
        alias: np.concatenate([encoder(some) for some in shown.inputs(window_of(encoder), at)])
        for alias, encoder in encoders.items()
        for at in [frames if window_of(encoder) == 1 else rows]
    }
    made: list[tuple[int, int, int]] = []
    shrink = preprocess.shrink

    def counted(some: torch.Tensor, how: Preprocessing) -> torch.Tensor:
        made.append((len(some), how.height, how.width))
        return shrink(some, how)

    monkeypatch.setattr(forward, "shrink", counted)
    for alias, encoder in encoders.items():
        window = window_of(encoder)
        item = Item(alias, meta, frames if window == 1 else rows, (), window)
        found = np.concatenate(list(tasks._embeddings(encoder, shown, item)))
        np.testing.assert_array_equal(found, expected[alias])
    asked = len(np.unique(shown.frame[window_rows(rows, shown.starts[rows], 4)]))
    assert sum(count for count, height, _ in made if height == 210) == asked
    two = len(np.unique(shown.frame[window_rows(rows, shown.starts[rows], 2)]))
    assert sum(count for count, height, _ in made if height == 84) == two


@pytest.mark.parametrize("kept", [1024, 3])
def test_a_screen_that_is_played_is_made_small_once_for_all_of_them(
    kept: int, played: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is room for it; and nothing of what they give changes by a bit either way."""
    monkeypatch.setattr(shrunk_frames, "MAX_SHRUNK", kept)
    snapshot = take_snapshot(played)
    shown = read_segment_frames(snapshot, snapshot.segments("Pong")[1], rows=True)
    encoders = [*every_encoder().values()]
    made: dict[Preprocessing, int] = defaultdict(int)
    shrink = preprocess.shrink

    def counted(some: torch.Tensor, how: Preprocessing) -> torch.Tensor:
        made[how.alike] += len(some)
        return shrink(some, how)

    together = ShrunkFrames(encoders, [window_of(encoder) for encoder in encoders])
    for row in range(5, 12):
        for encoder in encoders:
            at = window_rows(np.array([row]), shown.starts[[row]], window_of(encoder))
            frames = shown.frames[shown.frame[at if window_of(encoder) > 1 else at[:, 0]]]
            wanted = encoder(frames)
            monkeypatch.setattr(forward, "shrink", counted)
            windows = [tuple(one) if one.ndim == 4 else (one,) for one in frames]
            inputs = FrameInputs(
                [FrameWindow(w, tuple(map(hashing.frame_digest, w))) for w in windows]
            )
            np.testing.assert_array_equal(together.embed(encoder, inputs), wanted)
            monkeypatch.setattr(forward, "shrink", shrink)
    assert all(len(held._levels) <= kept for held in together._caches.values())
    longest = {how: 0 for how in made}
    for encoder in encoders:
        how = encoder.alike
        longest[how] = max(longest[how], window_of(encoder))
    for how, window in longest.items():
        asked = window_rows(np.arange(5, 12), shown.starts[5:12], window)
        distinct = len(np.unique(shown.frame[asked]))
        assert made[how] == distinct if kept > 3 else made[how] >= distinct
    assert len(longest) >= 2


def window_of(encoder: Encoder) -> int:
    window: int = getattr(encoder.module, "window", 1)
    return window


@pytest.mark.parametrize("name", ["stdim", "mae"])
def test_a_file_says_which_network_sr_stands_for(name: str, tmp_path: Path) -> None:
    trained = trainee(name)().frozen()["sr"]
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "sr.safetensors")
    built = load.build("wsa:sr", f"file:{tmp_path / 'sr.safetensors'}")
    assert type(built.module) is type(trained) and built.window == trained.window
    assert (built.preprocessing.height, built.preprocessing.width) == (
        trained.sees.height,
        trained.sees.width,
    )


@pytest.mark.parametrize("alias", NETWORKS)
def test_in_use_it_sees_to_the_bit_what_it_is_trained_on(
    alias: str, examples_of: Callable[..., Examples], played: Backend
) -> None:
    """Scale, height and width, which frames and in which order: from the screens of a real game."""
    kind = trainee_of(alias)
    examples = examples_of(kind.training_input, "Pong")
    request = parse_request(f"{alias}:random", {})
    encoder = encoder_of(request)
    window = identity.identify(encoder.module, request).window
    snapshot = take_snapshot(played)
    screens = np.concatenate([snapshot.read_frames(m) for m in snapshot.segments("Pong")])
    rows = examples.training["Pong"][-3:]
    at = examples.frame_rows(rows, np.random.default_rng(0))
    frames = screens[examples._frame[at[:, -window:] if window > 1 else at[:, :1]]]
    seen: list[torch.Tensor] = []
    first = next(m for m in encoder.module.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    encoder(frames if window > 1 else frames[:, 0])
    trained = scale(examples.take(rows, np.random.default_rng(0)), "cpu")
    trained = trained[:, -window:] if window > 1 else trained[:, :1]
    assert torch.equal(torch.cat(seen), trained)
    assert trained.max() > 0.3 and trained.min() >= 0
    if window > 1:
        assert (trained[:, -1] != trained[:, -2]).any()


@pytest.mark.parametrize("alias", NETWORKS)
def test_everything_is_kept_unless_less_is_asked_for(
    alias: str, examples_of: Callable[..., Examples], store: Backend
) -> None:
    request = parse_request(f"{alias}:random", {})
    spec = register(take_snapshot(store), request, 0.1).spec
    assert spec.shape == SHAPES[alias] and spec.identity.random
    assert (spec.timm_name, spec.licence) == (f"wsa:{alias}", "none: random weights")
    assert identity.find_model(take_snapshot(store), request) == spec
    again = open_model(take_snapshot(store), spec.key)  # The probe is embedded, and agrees.
    assert again.passes == 0


@pytest.mark.parametrize(
    ("alias", "output", "shape"),
    [("oke", "grid:7", (7, 7, 128)), ("vos", "grid:21", (21, 21, 20)), ("ae", "pooled", (64,))],
)
def test_less_is_an_output_of_its_own(
    alias: str, output: str, shape: tuple[int, ...], store: Backend
) -> None:
    spec = register(take_snapshot(store), parse_request(f"{alias}:random", {}, output), 0.1).spec
    assert (spec.shape, spec.identity.output) == (shape, output)


def test_a_stored_code_decodes_to_the_masks_that_a_live_one_does(
    tmp_path: Path, examples_of: Callable[..., Examples], played: Backend
) -> None:
    network = load.network("vos")
    safetensors.torch.save_file(network.state_dict(), tmp_path / "vos.safetensors")
    request = parse_request("vos", {"vos": str(tmp_path / "vos.safetensors")})
    snapshot = take_snapshot(played)
    screens = snapshot.read_frames(snapshot.segments("Pong")[0])
    windows = np.stack([screens[:-1], screens[1:]], axis=1)[:4]
    code = stored(encoder_of(request)(windows))
    assert code.dtype == np.float16
    decoder = load.open_decoder("vos", tmp_path / "vos.safetensors")
    assert not any(p.requires_grad for p in decoder.parameters())
    found = decoder(torch.from_numpy(code).float())
    assert found.shape == (4, 20, 84, 84)
    again = decoder(torch.from_numpy(stored(encoder_of(request)(windows))).float())
    assert torch.equal(found, again)
    whole = encoder_of(parse_request("vos", {"vos": str(tmp_path / "vos.safetensors")}, "map"))
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), whole(windows), atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("alias", NETWORKS)
def test_what_training_wrote_is_loaded(alias: str, half: bool, tmp_path: Path) -> None:
    trainee = trainee_of(alias)().eval()
    outputs.write_encoders(tmp_path, trainee, half)
    file = tmp_path / f"{alias}.safetensors"
    request = parse_request(alias, {alias: str(file)})
    assert request.source == f"file:{file}"
    built = registry.build(request)
    wanted = trainee.frozen()[alias].state_dict()
    for name, tensor in built.module.state_dict().items():
        rounded = (
            wanted[name].half().float() if half and tensor.is_floating_point() else wanted[name]
        )
        assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, rounded), name
    assert not built.training and not any(p.requires_grad for p in built.parameters())


@pytest.mark.parametrize("alias", NETWORKS)
def test_the_shipped_weights_are_those_of_the_manifest(alias: str) -> None:
    request = parse_request(alias, {})
    file = load.shipped(alias)
    data = file.read_bytes()
    told = json.loads(file.with_name("manifest.json").read_text())["files"][alias]
    assert told["blake3"] == hashing.checksum(data) and told["bytes"] == len(data)
    assert registry.local_weights(request) == "wsa" and "Apache-2.0" in request.licence
    built = registry.build(request).module
    sees = msgspec.json.decode(msgspec.json.encode(built.sees.preprocessing()))
    assert told["window"] == built.window and told["sees"] == sees
    trained, untrained = built.state_dict(), load.network(alias).state_dict()
    for name, tensor in safetensors.torch.load_file(file).items():
        assert tensor.dtype == torch.float16 and tensor.isfinite().all()
        assert torch.equal(trained[name], tensor.float())
        assert tensor.ndim < 2 or not torch.equal(tensor.float(), untrained[name].half().float())


def test_the_shipped_set_is_small_and_of_ten_games() -> None:
    folder = load.shipped("ae").parent
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 20e6
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["games"]) >= 10 and manifest["files"].keys() == NETWORKS.keys()


def test_files_of_another_network_are_refused(tmp_path: Path) -> None:
    outputs.write_encoders(tmp_path, trainer.trainee("transporter")(), False)
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "oke.safetensors").read_bytes()[:-9])
    for file in ("okk", "torn"):
        with pytest.raises(ConflictError, match="does not hold the weights of oke") as caught:
            registry.build(parse_request("oke", {"oke": str(tmp_path / f"{file}.safetensors")}))
        assert caught.value.kind == "other-weights"


def test_a_store_can_name_no_other_network() -> None:
    for name in ("wsa:os", "wsa:", "wsa:autoencoder:Autoencoder"):
        with pytest.raises(UsageError):
            registry.build(Request("ae", name, "random", "map"))


def test_weights_of_a_later_wsa_are_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_store(str(tmp_path / "store"), create=True)
    request = parse_request("ae", {})
    spec = register(take_snapshot(backend), request, 0.1, engine="torch").spec
    snapshot = take_snapshot(backend)
    assert identity.find_model(snapshot, request) == spec
    later = {name: 2 * t for name, t in safetensors.torch.load_file(load.shipped("ae")).items()}
    safetensors.torch.save_file(later, tmp_path / "ae.safetensors")
    monkeypatch.setattr(load, "shipped", lambda alias: tmp_path / f"{alias}.safetensors")
    assert identity.find_model(snapshot, request) is None
