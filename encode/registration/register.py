"""Register a requested model in a store, and open a registered model as an encoder.

Registering builds the model, chooses its engine, finds its basis in the store or fits it, embeds
the probe frames, and commits spec, basis and probe. Opening a registered model embeds the probe
frames again, which detects a wrong mean, another resize kernel, a swapped file or a changed library
before any row is written or any action taken.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from wsa.encode.inference import engines
from wsa.encode.inference import reduction as bases
from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.inference.reduction import Projection, Reduction
from wsa.encode.inference.segment_inputs import input_digests, read_segment_frames
from wsa.encode.models import networks
from wsa.encode.models.registry import Request
from wsa.encode.models.user_network import UserNetwork
from wsa.encode.registration import engine_choice, fit_reduction, probe_frames
from wsa.encode.registration.engine_choice import EngineChoice, Engines
from wsa.encode.registration.identity import (
    find_by_identity,
    identify,
    license_of,
    request_of,
    weights_digest,
)
from wsa.store.common import names
from wsa.store.common.errors import ConflictError, DamagedError
from wsa.store.format.records import ModelMeta
from wsa.store.objects import probe
from wsa.store.objects.digest_index import first_seen
from wsa.store.objects.model_spec import (
    Identity,
    ModelSpec,
    Precision,
    how_to_remove,
    model_key,
    parse_output,
    read_spec,
)
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.objects.writer import commit_model

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Registered:
    """A registered model.

    Attributes:
        spec: Spec of the model.
        fitted: Number of frames that just went through the model to fit its basis.
        request: Request of the user; a worker opens the model with it.
        choice: Engine that runs the model; None if nothing needs to run.
    """

    spec: ModelSpec
    fitted: int
    request: Request
    choice: EngineChoice | None = None


def register(
    snapshot: Snapshot,
    request: Request,
    max_step_error: float,
    device: str = "cpu",
    engine: str = "auto",
    games: Sequence[str] = (),
) -> Registered:
    """Build a model, choose its engine, and commit it unless it is already in the store.

    Args:
        max_step_error: Largest step-relative error of a reduced precision.
        engine: Inference engine; `auto` is the fastest accurate one.
        games: Games on which to check a reduced precision, besides the probe frames.

    Raises:
        MissingError: If the weights are not found.
        ConflictError: If the weights are wrong, the embeddings have drifted or contain NaN, or the
            error of the precision is too large.
        UsageError: If the device lacks the engine or precision, or the model lacks the output.
    """
    engine = request.engine(engine)
    candidates = measure_engines(snapshot, request, device, engine, games)
    module, identity = candidates.module, candidates.identity
    existing = find_by_identity(snapshot, request.alias, identity)
    if existing is not None:
        candidates.set_basis(_stored_reduction(snapshot, existing.key, existing.identity))
        if engine == "auto" and identity.precision != "fp32":
            # Below fp32, engines differ noticeably, so keep the one that filled the store.
            engine = _main_engine(snapshot, existing.key, device, identity.precision) or "auto"
        choice = candidates.choose(engine, identity.precision, max_step_error)
        check_probe(snapshot, existing.key, candidates.embed(choice.engine, identity.precision))
        return Registered(existing, 0, request, choice)
    if not np.isfinite(candidates.embed("torch", "fp32")).all():
        raise ConflictError(
            "not-finite",
            f"{request.alias} with weights from {request.source} returns NaN or infinite numbers "
            "for frames of games. Nothing was written. Give other weights.",
        )
    output = parse_output(request.output)
    files, fitted = {}, 0
    if output.reduction == "rp":
        candidates.set_basis(Projection(output.numbers))
    elif output.reduction:
        whole = candidates.encoder(
            candidates.choose(engine, "fp32", engine_choice.MAX_ENGINE_ERROR).engine, "fp32"
        )
        before = whole.passes
        basis = fit_reduction.fit(whole, snapshot, output, identity.window)
        fitted = whole.passes - before
        candidates.set_basis(basis)
        saved = fit_reduction.FITTED[output.reduction].save(basis)
        files["basis.safetensors"] = saved
        if output.game:
            # If another process just fitted its own basis, use that one. With two bases in the
            # store, users could name either only by its key.
            snapshot = take_snapshot(snapshot.backend, snapshot)
            if find_by_identity(snapshot, request.alias, identity) is not None:
                return register(snapshot, request, max_step_error, device, engine, games)
            identity = msgspec.structs.replace(identity, basis=bases.own_recipe(saved))
    key = model_key(request.alias, identity)
    choice = candidates.choose(engine, identity.precision, max_step_error)
    probed = candidates.embed(choice.engine, identity.precision)
    spec = ModelSpec(
        alias=request.alias,
        timm_name=request.timm_name,
        identity=identity,
        shape=probed.shape[1:],
        source=request.recorded,
        license=request.stated_license or license_of(module, request),
        step_error=0.0 if identity.precision == "fp32" else choice.errors[engine_choice.PROBE],
        libraries={
            "torch": str(torch.__version__),
            **{name: importlib.metadata.version(name) for name in ("torchvision", "timm")},
        },
    )
    encoder = candidates.encoder(choice.engine, identity.precision)
    _check_orphans(snapshot, key, identity.window, encoder)
    if isinstance(module, UserNetwork):
        again = measure_engines(snapshot, request, device)
        again.set_basis(encoder.basis)
        _check_repeatable(request, candidates, again)
    files |= {"spec.json": spec.json, "probe.safetensors": probe.save(probed)}
    commit_model(snapshot.backend, ModelMeta(key), files)
    return Registered(spec, fitted, request, choice)


def open_models(
    snapshot: Snapshot,
    keys: Sequence[str],
    *,
    weights: Mapping[str, str] | None = None,
    device: str = "cpu",
    engine: str = "auto",
    threads: int | None = None,
    preferred: Sequence[str] = (),
) -> list[Encoder]:
    """Open several models with `open_model`; `preferred` has an engine for each, or is empty."""
    how: dict[str, Any] = {
        "weights": weights, "device": device, "engine": engine, "threads": threads,
    }  # fmt: skip
    each = zip(keys, preferred or [""] * len(keys), strict=True)
    return [open_model(snapshot, key, preferred=own, **how) for key, own in each]


def open_model(
    snapshot: Snapshot,
    key: str,
    *,
    weights: Mapping[str, str] | None = None,
    source: str | None = None,
    device: str = "cpu",
    engine: str = "auto",
    threads: int | None = None,
    preferred: str = "",
) -> Encoder:
    """Build a registered model and check that it is the one that filled the store.

    Args:
        weights: By alias, weights files that have another path on this machine, and modules of
            users' own models.
        source: Source of the weights on this machine, if it differs from the recorded one.
        engine: Inference engine; `auto` is the engine that filled the store or, if it is not
            available here, the fastest accurate one.
        threads: Number of CPU threads that call the encoder at once; torch's number if None.
        preferred: Engine that `auto` uses if it is available here, whatever filled the store.

    Raises:
        MissingError: If the store lacks the model, or this machine lacks its weights.
        ConflictError: If the weights or the embeddings of the probe frames differ from the store's.
        UsageError: If the engine is not available here.
    """
    spec = read_spec(snapshot, key)
    request = request_of(spec, weights or {})
    if source and not (weights and spec.alias in weights):
        request = dataclasses.replace(request, source=source)
    module = networks.build(request)
    digest = weights_digest(module)
    if digest != spec.identity.weights:
        raise ConflictError(
            "other-weights",
            f"The weights found here for {spec.alias} ({digest[:12]}) are not those of {key} "
            f"({spec.identity.weights[:12]}). Give the right ones with --weights {spec.alias}="
            f"{'MODULE:CALLABLE' if spec.source == 'user' else 'PATH.safetensors'}, or encode with "
            "these under their own key.",
        )
    precision = spec.identity.precision
    candidates = Engines(module, spec.identity, spec.alias, device, threads=threads)
    candidates.set_basis(_stored_reduction(snapshot, key, spec.identity))
    if request.engine(engine) != engine:
        if engine != "auto":
            _log.info("%s: has no network, so --engine %s changes nothing", key, engine)
        engine = request.engine(engine)
    elif engine == "auto" and _is_here(preferred, device, precision):
        engine = preferred
        _log.info("%s: run by %s, as before", key, engine)
    elif engine == "auto":
        engine = _main_engine(snapshot, key, device, precision)
        if engine:
            _log.info("%s: run by %s, the engine that filled the store", key, engine)
        else:
            # The error of the precision was accepted when the model was registered.
            choice = candidates.choose("auto", precision, math.inf)
            engine = choice.engine
            filled = snapshot.embeddings(model=key)
            why = "the engine that filled the store is not available here; " if filled else ""
            _log.info("%s: %s%s", key, why, choice.run_by)
    encoder = candidates.encoder(engine, precision)
    inputs = probe_frames.probe_inputs(spec.identity.window, spec.game)
    check_probe(snapshot, key, encoder(inputs))
    encoder.passes = 0
    return encoder


def measure_engines(
    snapshot: Snapshot,
    request: Request,
    device: str,
    engine: str = "auto",
    games: Sequence[str] = (),
) -> Engines:
    """Build a model and prepare to measure its engines, still without a basis.

    Args:
        snapshot: Snapshot of the store, for frames of the games.
        games: Games on which to measure a reduced precision, besides the probe frames.

    Raises:
        MissingError: If the weights are not found.
        UsageError: If the device lacks the engine or precision.
    """
    where = torch.device(device)
    engines.require("torch" if engine == "auto" else engine, where, request.precision)
    module = networks.build(request)
    identity = identify(module, request)
    reduced = request.precision != "fp32"
    game_frames = engine_choice.game_inputs(snapshot, games, identity.window) if reduced else {}
    return Engines(module, identity, request.alias, device, game_frames)


def _is_here(engine: str, device: str, precision: Precision) -> bool:
    """Whether an engine is named, and can be used on this machine."""
    return bool(engine) and not engines.why_not(engine, torch.device(device), precision)


def _main_engine(snapshot: Snapshot, key: str, device: str, precision: Precision) -> str:
    """Return the engine that ran most of a model's frames; empty if none did or it is not here."""
    passes: Counter[str] = Counter()
    for meta in snapshot.embeddings(model=key):
        passes[meta.engine] += meta.passes
    most = max(passes, key=lambda name: passes[name], default="")
    return most if most in engines.offered(torch.device(device), precision) else ""


def check_probe(snapshot: Snapshot, key: str, found: NDArray[np.float32]) -> None:
    """Compare embeddings of the probe frames with the stored ones.

    Raises:
        ConflictError: If they differ by more than a tenth of the change from one step to the next.
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
            "into another store.",
        )


def _check_repeatable(request: Request, first: Engines, again: Engines) -> None:
    """Refuse a user's model that is another, or embeds otherwise, when it is built again."""
    error = math.inf
    if again.identity.weights == first.identity.weights:
        error = probe.step_error(again.embed("torch", "fp32"), first.embed("torch", "fp32"))
    if not error <= probe.MAX_STEP_ERROR:
        same = again.identity.weights == first.identity.weights
        how = "gives other embeddings" if same else "has other weights"
        name = request.source.removeprefix("user:")
        raise ConflictError(
            "model-drift",
            f"{name} {how} each time it is built, so its embeddings could not be compared. Nothing "
            "was written. Load or seed its weights, and switch off dropout and other random numbers. "
            f"'wsa models check {name}' shows more.",
        )


def _check_orphans(snapshot: Snapshot, key: str, window: int, encoder: Encoder) -> None:
    """Refuse an encoder that differs from stored embeddings of its model, whose record was lost."""
    segments = {(meta.game, meta.segment): meta for meta in snapshot.segments_with_frames()}
    for meta in snapshot.embeddings(model=key):
        segment = segments.get((meta.game, meta.segment))
        if segment is None:
            continue
        distinct = np.unique(first_seen(input_digests(snapshot, segment, window)))
        rows = distinct[: 2 * min(len(probe_frames.PROBE_GAMES), len(distinct) // 2)]
        if not len(rows):
            continue
        frames = read_segment_frames(snapshot, segment, rows=window > 1)
        embedded = stored(encoder(next(frames.inputs(window, rows))))
        stored_rows = snapshot.read_embedding(meta.game, key, meta.segment)[rows]
        error = probe.step_error(embedded.astype(np.float32), stored_rows.astype(np.float32))
        if not error <= probe.MAX_STEP_ERROR:
            raise ConflictError(
                "model-drift",
                f"{key} has lost its record, and its embeddings in the store differ by {error:.3g} "
                "of what changes from frame to frame from those that it gives here (limit "
                f"{probe.MAX_STEP_ERROR}). Nothing was written. Fetch the model from the store it "
                "came from with 'wsa pull', or install the library versions of that time.",
            )
        return


def _stored_reduction(snapshot: Snapshot, key: str, identity: Identity) -> Reduction | None:
    """Return the reduction of a registered model."""
    output = parse_output(identity.output)
    if not output.reduction:
        return None
    if output.reduction == "rp":
        return Projection(output.numbers)
    reduction = fit_reduction.FITTED[output.reduction]
    basis: Reduction = _load(snapshot, key, "basis.safetensors", reduction.load)
    if output.game and bases.own_recipe(reduction.save(basis)) != identity.basis:
        where = f"{names.model_path(key)}/basis.safetensors"
        raise DamagedError(
            "bad-array", f"{where} is the basis of another model. {how_to_remove(key)}"
        )
    return basis


def _load(snapshot: Snapshot, key: str, name: str, load: Callable[[bytes], T]) -> T:
    """Read a model's file and parse it with `load`."""
    try:
        return load(snapshot.read_model(key, name)[name])
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedError(
            "bad-array",
            f"{names.model_path(key)}/{name} cannot be read ({error}). {how_to_remove(key)}",
        ) from None
