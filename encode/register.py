"""From what a user asks for to a model in the store, and from a model in the store to an encoder.

Registering builds the model, finds its basis in the store or fits it on the strip, embeds the probe
frames, and commits spec, basis and probe. Whoever opens a registered model embeds the probe frames
again: a wrong mean, another resize kernel, a swapped file or a drifted library is refused before
one row is written or one action taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np
import timm
import torch
import torchvision
from numpy.typing import NDArray
from safetensors import SafetensorError
from timm.data.config import resolve_model_data_config
from torch import nn

from wsa.encode import basis as bases
from wsa.encode import models, probe, strip
from wsa.encode.basis import Basis
from wsa.encode.forward import Encoder, check_precision, stored
from wsa.encode.inputs import input_digests, read_shown
from wsa.encode.models import Request
from wsa.encode.spec import Identity, ModelSpec, Preprocessing, model_key, parse_output
from wsa.store import keys, names, records
from wsa.store.errors import ConflictError, DamagedError, MissingError, UsageError
from wsa.store.index import first_seen
from wsa.store.reader import Snapshot
from wsa.store.records import ModelMeta
from wsa.store.windows import MAX_STACK_FRAMES
from wsa.store.writer import commit_model

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Registered:
    """A registered model.

    Attributes:
        spec: Its spec.
        fitted: Strip frames that went through it now to fit its basis.
        request: What was asked for; a worker opens the model with it.
    """

    spec: ModelSpec
    fitted: int
    request: Request


def find(snapshot: Snapshot, request: Request) -> ModelSpec | None:
    """The registered model that `request` asks for, judged without building it, or None.

    Only a weights file is read, since another may lie at the same path now.
    """
    for key in snapshot.models:
        spec = read_spec(snapshot, key)
        asked = (request.alias, request.timm_name, request.source, request.output)
        if (spec.alias, spec.timm_name, spec.source, spec.identity.output) != asked:
            continue
        if spec.identity.precision != request.precision:
            continue
        file = request.source.startswith("file:")
        if file and weights_digest(models.build(request)) != spec.identity.weights:
            continue
        return spec
    return None


def read_spec(snapshot: Snapshot, key: str) -> ModelSpec:
    """A registered model's spec.

    Raises:
        MissingError: No such model.
        DamagedError: The spec cannot be read.
    """
    if key not in snapshot.models:
        raise MissingError(
            "not-encoded",
            f"The store {snapshot.backend.url} has no model {key}. 'wsa models' lists them.",
        )
    where = f"{names.model_path(key)}/spec.json"
    data = snapshot.read_model(key, "spec.json").get("spec.json", b"")
    spec = records.read_json(data, ModelSpec, where)
    if names.key_alias(key) != spec.alias or spec.key != key:
        raise DamagedError("bad-record", f"{where} is the spec of another model. {_remove(key)}")
    return spec


def describe(snapshot: Snapshot, key: str) -> dict[str, Any]:
    """A registered model, as a row of a table."""
    spec = read_spec(snapshot, key)
    embeddings = snapshot.embeddings(model=key)
    return {
        "key": key,
        "model": spec.title,
        "timm": spec.timm_name,
        "weights": spec.source,
        "licence": spec.licence,
        "output": spec.identity.output,
        "shape": list(spec.shape),
        "window": spec.identity.window,
        "precision": spec.identity.precision,
        "step_error": spec.step_error,
        "frames": sum(e.shape[0] for e in embeddings),
        "passes": sum(e.passes for e in embeddings),
    }


def register(
    snapshot: Snapshot, request: Request, max_step_error: float, device: str = "cpu"
) -> Registered:
    """Build a model and commit it unless it is in the store.

    Args:
        snapshot: The store.
        request: What the user asks for.
        max_step_error: Largest step-relative error of a reduced precision.
        device: Where to run the strip.

    Raises:
        MissingError: No weights.
        ConflictError: Wrong weights, a drifted model, NaN, or a precision that errs too much.
        UsageError: A precision that the device does not have, or an output the model cannot give.
    """
    check_precision(request.precision, device)
    module = models.build(request)
    identity = _identity(module, request)
    key = model_key(request.alias, identity)
    shown = strip.probe_frames(identity.window)
    if key in snapshot.models:
        basis = _stored_basis(snapshot, key, identity)
        check_probe(snapshot, key, _encoder(module, identity, basis, device)(shown))
        return Registered(read_spec(snapshot, key), 0, request)
    exact = msgspec.structs.replace(identity, precision="fp32")
    basis, fitted = _fit_basis(module, exact, device)
    found = _encoder(module, identity, basis, device)(shown)
    if not np.isfinite(found).all():
        raise ConflictError(
            "not-finite",
            f"{request.alias} with weights from {request.source} returns NaN or infinite numbers "
            "for frames of games. Nothing was written. Give other weights, or --precision fp32.",
        )
    error = 0.0
    if identity != exact:
        reference = _encoder(module, exact, basis, device)(shown)
        error = probe.step_error(found, reference)
    if not error <= max_step_error:
        raise ConflictError(
            "step-error",
            f"{request.alias} in {request.precision} errs by {error:.3g} of what changes from one "
            f"step of a game to the next; the limit is {max_step_error:g}. Nothing was written. "
            "Use --precision fp32, or allow it with --max-step-error.",
        )
    spec = ModelSpec(
        alias=request.alias,
        timm_name=request.timm_name,
        identity=identity,
        shape=found.shape[1:],
        source=request.source,
        licence=request.licence,
        step_error=error,
        libraries={
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "timm": str(timm.__version__),
        },
    )
    _check_orphans(snapshot, key, identity.window, _encoder(module, identity, basis, device))
    files = {"spec.json": keys.canonical(spec), "probe.safetensors": probe.save(found)}
    if basis is not None:
        files["basis.safetensors"] = bases.save(basis)
    commit_model(snapshot.backend, ModelMeta(key), files)
    return Registered(spec, fitted, request)


def open_model(
    snapshot: Snapshot,
    key: str,
    *,
    weights: Mapping[str, str] | None = None,
    source: str | None = None,
    device: str = "cpu",
) -> Encoder:
    """Build a registered model and make sure that it is the one that filled the store.

    Args:
        snapshot: A snapshot that has the model.
        key: The model key.
        weights: Weights files by alias, where this machine keeps them elsewhere.
        source: Where the weights are on this machine, if not where they were.
        device: Where to run.

    Raises:
        MissingError: No such model, or no weights for it here.
        ConflictError: Other weights, or other embeddings of the probe frames.
    """
    spec = read_spec(snapshot, key)
    request = request_of(spec, weights or {})
    if source and not (weights and spec.alias in weights):
        request = dataclasses.replace(request, source=source)
    module = models.build(request)
    digest = weights_digest(module)
    if digest != spec.identity.weights:
        raise ConflictError(
            "other-weights",
            f"The weights found here for {spec.alias} ({digest[:12]}) are not those of {key} "
            f"({spec.identity.weights[:12]}). Give the right file with --weights "
            f"{spec.alias}=PATH.safetensors, or encode with these under their own key.",
        )
    basis = _stored_basis(snapshot, key, spec.identity)
    encoder = _encoder(module, spec.identity, basis, device)
    check_probe(snapshot, key, encoder(strip.probe_frames(spec.identity.window)))
    encoder.passes = 0
    return encoder


def request_of(spec: ModelSpec, weights: Mapping[str, str]) -> Request:
    """What to ask for to get a registered model again.

    Args:
        spec: Its spec.
        weights: Weights files by alias, where this machine keeps them elsewhere.
    """
    source = spec.source
    if spec.alias in weights:
        source = models.weights_source(spec.alias, weights[spec.alias])
    return Request(
        spec.alias, spec.timm_name, source, spec.identity.output, spec.identity.precision
    )


def unreduced(request: Request, device: str) -> tuple[Encoder, int]:
    """A model before its basis, for measuring, and its window.

    Raises:
        MissingError: No weights.
    """
    module = models.build(request)
    identity = _identity(module, request)
    return _encoder(module, identity, None, device), identity.window


def check_probe(snapshot: Snapshot, key: str, found: NDArray[np.float32]) -> None:
    """Compare embeddings of the probe frames with those stored.

    Raises:
        ConflictError: They differ by more than a tenth of what changes from step to step.
    """
    error = probe.step_error(found, _load(snapshot, key, "probe.safetensors", probe.load))
    if not error <= probe.MAX_STEP_ERROR:
        spec = read_spec(snapshot, key)
        made = ", ".join(f"{name} {version}" for name, version in spec.libraries.items())
        raise ConflictError(
            "model-drift",
            f"{key} does not give the embeddings here that it gave when the store was filled: they "
            f"differ by {error:.3g} of what changes from step to step (limit "
            f"{probe.MAX_STEP_ERROR}). It was made with {made}. Install those versions, or encode "
            "anew into another store.",
        )


def _check_orphans(snapshot: Snapshot, key: str, window: int, encoder: Encoder) -> None:
    """Compare with embeddings of a model that was lost: its new basis and probe must fit them.

    Raises:
        ConflictError: They differ by more than a tenth of what changes from frame to frame.
    """
    segments = {(meta.game, meta.segment): meta for meta in snapshot.segments()}
    pictured = {(meta.game, meta.segment) for meta in snapshot.frames()}
    for meta in snapshot.embeddings(model=key):
        segment = segments.get((meta.game, meta.segment))
        if segment is None or (meta.game, meta.segment) not in pictured:
            continue
        distinct = np.unique(first_seen(input_digests(snapshot, segment, window)))
        some = distinct[: 2 * min(len(strip.PROBE_GAMES), len(distinct) // 2)]
        if not len(some):
            continue
        shown = read_shown(snapshot, segment, rows=window > 1)
        found = stored(encoder(next(shown.inputs(window, some))))
        there = snapshot.read_embedding(meta.game, key, meta.segment)[some]
        error = probe.step_error(found.astype(np.float32), there.astype(np.float32))
        if not error <= probe.MAX_STEP_ERROR:
            raise ConflictError(
                "model-drift",
                f"{key} has lost its record, and the embeddings that it has in the store differ by "
                f"{error:.3g} of what changes from frame to frame from those it gives here (limit "
                f"{probe.MAX_STEP_ERROR}). Nothing was written. Fetch the model from the store it "
                "came from with 'wsa pull', or install the library versions of that time.",
            )
        return


def weights_digest(module: nn.Module) -> str:
    """Hex blake3-256 of a model's tensors, without a classifier.

    Batch norm's count of training batches changes no number that the model returns, and not every
    file has it.
    """
    return keys.tensors_digest(
        {
            name: tensor.numpy()
            for name, tensor in module.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
    )


def _identity(module: nn.Module, request: Request) -> Identity:
    config = resolve_model_data_config(module)
    _, height, width = config["input_size"]
    return Identity(
        architecture=request.architecture,
        weights=weights_digest(module),
        random=request.source == "random",
        preprocessing=Preprocessing(
            geometry="squash",
            height=height,
            width=width,
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        ),
        output=request.output,
        basis=bases.recipe(strip.strip_digest()) if parse_output(request.output).pca else "",
        window=_window(module, request),
        precision=request.precision,
    )


def _window(module: nn.Module, request: Request) -> int:
    """Consecutive frames that a network looks at; 1 unless it says otherwise.

    Raises:
        UsageError: More than segments repeat of each other.
    """
    window = getattr(module, "window", 1)
    if isinstance(window, int) and 1 <= window <= MAX_STACK_FRAMES:
        return window
    raise UsageError(
        "bad-option",
        f"{request.alias} says that its window is {window!r}; choose from 1 to {MAX_STACK_FRAMES}.",
    )


def _stored_basis(snapshot: Snapshot, key: str, identity: Identity) -> Basis | None:
    if not identity.basis:
        return None
    return _load(snapshot, key, "basis.safetensors", bases.load)


def _load(snapshot: Snapshot, key: str, name: str, load: Callable[[bytes], T]) -> T:
    """What `load` makes of a model's file.

    Raises:
        DamagedError: There is no such file, or it does not hold what it must.
    """
    try:
        return load(snapshot.read_model(key, name)[name])
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedError(
            "bad-array",
            f"{names.model_path(key)}/{name} cannot be read ({error}). {_remove(key)}",
        ) from None


def _remove(key: str) -> str:
    record = names.commit_path(keys.object_id(names.model_path(key)))
    return f"It was committed so: remove {record}, and encode again."


def _fit_basis(module: nn.Module, identity: Identity, device: str) -> tuple[Basis | None, int]:
    """Fit the basis that an output asks for on the strip; also how many frames it took."""
    numbers = parse_output(identity.output).pca
    if not numbers:
        return None, 0
    encoder = _encoder(module, identity, None, device)
    shown = [strip.in_windows(game.frames, identity.window) for game in strip.load_strip()]
    features = torch.cat([encoder.features(frames) for frames in shown])
    return bases.fit(features, numbers), encoder.passes


def _encoder(module: nn.Module, identity: Identity, basis: Basis | None, device: str) -> Encoder:
    return Encoder(
        module,
        identity.preprocessing,
        parse_output(identity.output),
        basis,
        identity.precision,
        device,
    )
