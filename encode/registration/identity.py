"""Match requests with a store's models: compute identities, find specs, restore requests.

A spec comes from a store and is therefore untrusted. It is data: neither this module nor a model
built from a spec imports a module that the spec names.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from torch import nn

from wsa.encode.models import networks, registry
from wsa.encode.models.paper import catalog
from wsa.encode.models.registry import Request
from wsa.encode.models.user_network import UserNetwork
from wsa.encode.registration import fit_reduction
from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.format.stacks import MAX_STACK_FRAMES
from wsa.store.objects.model_spec import (
    Geometry,
    Identity,
    ModelSpec,
    Preprocessing,
    model_key,
    parse_output,
    read_spec,
)
from wsa.store.objects.snapshot import Snapshot


def find_model(snapshot: Snapshot, request: Request) -> ModelSpec | None:
    """Return the registered model that `request` asks for, or None, usually without building it.

    The model is built only if its weights come from a file, a user's module or wsa itself, since
    these may have changed.

    Raises:
        ConflictError: If there are several, each with its own basis.
    """
    specs = [read_spec(snapshot, key) for key in snapshot.models]
    found = [spec for spec in specs if matches(spec, request)]
    from_wsa = request.source in ("package", "random") and catalog.is_paper_model(request.timm_name)
    if found and (from_wsa or request.recorded.startswith("file:") or request.recorded == "user"):
        identity = identify(networks.build(request), request)
        found = [spec for spec in found if _without_game_basis(spec.identity) == identity]
    return _only_one(found)


def unregistered_key(request: Request) -> str:
    """Return a placeholder key for a model that is not in the store; no embedding has this key."""
    return names.make_model_key(request.alias, hashing.identity([request.output, "not registered"]))


def matches(spec: ModelSpec, request: Request) -> bool:
    """Return whether a spec matches a request, as far as this is known without building it."""
    asked = (request.alias, request.timm_name, request.recorded, request.output, request.precision)
    identity = spec.identity
    recorded = (spec.alias, spec.timm_name, spec.source, identity.output, identity.precision)
    # A user's model declares its own geometry, and the paper's encoders are always squashed.
    declared = request.recorded == "user" or catalog.is_paper_model(request.timm_name)
    return asked == recorded and (declared or request.geometry == identity.preprocessing.geometry)


def _only_one(found: list[ModelSpec]) -> ModelSpec | None:
    """Return the only model found, or None; raise ConflictError if there are several."""
    if len(found) > 1:
        raise ConflictError(
            "other-weights",
            f"The store has several of {found[0].alias} with output {found[0].identity.output}, each "
            f"with its own basis: {', '.join(spec.key for spec in found)}. Name one by its key.",
        )
    return found[0] if found else None


def _without_game_basis(identity: Identity) -> Identity:
    """Return the identity without a basis of one game, as known before the basis is fitted."""
    game = parse_output(identity.output).game
    return msgspec.structs.replace(identity, basis="") if game else identity


def find_by_identity(snapshot: Snapshot, alias: str, identity: Identity) -> ModelSpec | None:
    """Return the registered model with this identity, ignoring the bytes of a game's basis."""
    if not parse_output(identity.output).game:
        key = model_key(alias, identity)
        return read_spec(snapshot, key) if key in snapshot.models else None
    specs = [read_spec(snapshot, k) for k in snapshot.models if names.key_alias(k) == alias]
    return _only_one([spec for spec in specs if _without_game_basis(spec.identity) == identity])


def request_of(spec: ModelSpec, weights: Mapping[str, str]) -> Request:
    """Return a request that builds a registered model again.

    Args:
        spec: Spec of the model, which is untrusted: a module that it names is never imported.
        weights: By alias, weights files that have another path on this machine, and modules of
            users' own models.
    """
    source = "user" if spec.source.startswith("user") else spec.source
    if source.startswith("archive:"):  # Only a user may name an archive, never a store.
        source = f"file:{source.removeprefix('archive:')}"
    if spec.alias in weights:
        given = weights[spec.alias]
        named = registry.user_source if source == "user" else registry.weights_source
        source = named(spec.alias, given)
    return Request(
        spec.alias,
        spec.timm_name,
        source,
        spec.identity.output,
        spec.identity.precision,
        spec.identity.preprocessing.geometry,
    )


def weights_digest(module: nn.Module) -> str:
    """Return the hex blake3-256 of a model's tensors, without a classifier.

    Batch norm's counter of training batches is left out: it does not affect the output, and not
    every file has it.
    """
    return hashing.tensors_digest(
        {
            name: tensor.numpy()
            for name, tensor in module.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
    )


def identify(module: nn.Module, request: Request) -> Identity:
    """Return the identity of a built model, without its basis if that is fitted on a game."""
    if isinstance(module, UserNetwork):
        preprocessing = module.preprocessing
    else:
        preprocessing = _preprocessing(module, request.geometry)
    return Identity(
        architecture=request.architecture,
        weights=weights_digest(module),
        random=request.source == "random",
        preprocessing=preprocessing,
        output=request.output,
        basis=fit_reduction.recipe(parse_output(request.output)),
        window=_window(module, request),
        precision=request.precision,
    )


def license_of(module: nn.Module, request: Request) -> str:
    """Return the license of a built model's weights."""
    return module.license if isinstance(module, UserNetwork) else request.license


def _window(module: nn.Module, request: Request) -> int:
    """Return the number of consecutive frames that a network sees; 1 unless it declares more."""
    window = getattr(module, "window", 1)
    if isinstance(window, int) and 1 <= window <= MAX_STACK_FRAMES:
        return window
    raise UsageError(
        f"{request.alias} says that its window is {window!r}; choose from 1 to {MAX_STACK_FRAMES}."
    )


def _preprocessing(module: nn.Module, geometry: Geometry) -> Preprocessing:
    """Return the preprocessing that timm states for a model."""
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(module)
    _, height, width = config["input_size"]
    return Preprocessing(
        geometry=geometry,
        height=height,
        width=width,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop=config["crop_pct"] if geometry == "crop" else 1.0,
    )
