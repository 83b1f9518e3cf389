"""Which models a run fuses, which of them gives the context, and which the network decodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wsa.encode.configs import weights_files
from wsa.encode.models.paper import catalog
from wsa.encode.models.registry import (
    DEFAULT,
    Request,
    for_games,
    parse_request,
    typed_modules,
)
from wsa.encode.registration.decoders import require_code
from wsa.encode.registration.select import choose_models, default_models, stored_name
from wsa.learn.configs.learn import OnlineLiveOptions, RunRequest
from wsa.learn.fusion.build import fusion_class
from wsa.learn.runs.config import MEAN_CONTEXT
from wsa.learn.runs.presence import named_model
from wsa.store.common import names
from wsa.store.common.errors import MissingError, UsageError, WsaError
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.probe import MAX_STEP_ERROR
from wsa.store.objects.snapshot import Snapshot, take_snapshot

KeysOf = Callable[[Sequence[str]], list[str]]
"""Maps names of models to their keys."""


class StoredModels:
    """Resolves models of an offline run, which must have encoded its game, or any of it if `partly`."""

    def __init__(self, snapshot: Snapshot, game: str, *, partly: bool = False) -> None:
        self._snapshot, self._game, self._partly = snapshot, game, partly

    def keys_of(self, requested: Sequence[str]) -> list[str]:
        """Return the keys of models, given aliases, keys, or names as in `wsa encode --models`.

        Raises:
            UsageError: If there is no such model, or an alias fits several.
            MissingError: If one of them has not encoded the game.
        """
        stored = [stored_name(self._snapshot, name) for name in requested]
        return self._choose(choose_models, stored)

    def default_keys(self) -> list[str]:
        """Keys of wsa's default models if they have encoded the game, or else of all that have."""
        return self._choose(default_models)

    def _choose(self, choose: Callable[..., list[str]], *asked: Sequence[str]) -> list[str]:
        """Choose models; if --encoded-only would help, the error says so."""
        try:
            return choose(self._snapshot, self._game, *asked, partly=self._partly)
        except MissingError as error:
            try:
                choose(self._snapshot, self._game, *asked, partly=True)
            except WsaError:
                raise error from None
            raise MissingError(
                error.kind, f"{error}. Or learn from what is encoded so far: add --encoded-only."
            ) from None


class NotInStoreError(UsageError):
    """A dry run cannot register a model that the store lacks."""


class OnlineModels:
    """Resolves models of an online run; adds those that the store lacks."""

    def __init__(self, request: RunRequest, snapshot: Snapshot, device: str, dry_run: bool) -> None:
        assert isinstance(request.live, OnlineLiveOptions)
        self._backend, self._device, self._dry_run = snapshot.backend, device, dry_run
        self._game, self._engine = request.game, request.live.engine
        self._weights, self._output = weights_files(request.live.weights), request.live.output

    def keys_of(self, requested: Sequence[str]) -> list[str]:
        """Return the keys of models, given aliases or keys.

        Raises:
            UsageError: If an alias fits several models.
        """
        # Take a snapshot for each name: a model that was just added may be named twice.
        keys = [self._key(take_snapshot(self._backend), name) for name in requested]
        return list(dict.fromkeys(keys))

    def default_keys(self) -> list[str]:
        """Keys of wsa's default models, even if the store has other models with their aliases."""
        from wsa.encode.registration.identity import find_model  # Imported here: it imports timm.

        keys = []
        for name in DEFAULT:
            snapshot = take_snapshot(self._backend)
            model = find_model(snapshot, self._request(name))
            keys.append(model.key if model else self._add(snapshot, name))
        return keys

    def _key(self, snapshot: Snapshot, name: str) -> str:
        alias = stored_name(snapshot, name)
        fitting = [
            key
            for key in names.keys_named(snapshot.models, alias)
            if read_spec(snapshot, key).game in ("", self._game)
        ]
        if len(fitting) > 1:
            raise UsageError(
                f"{name} may be any of {', '.join(fitting)}; give the whole key. 'wsa models' shows "
                "how they differ."
            )
        return fitting[0] if fitting else self._add(snapshot, name)

    def _add(self, snapshot: Snapshot, name: str) -> str:
        if self._dry_run:
            raise NotInStoreError(
                f"--dry-run: the store has no model {name} yet. Leave out --dry-run, or run "
                f"'wsa encode --models {name}' first."
            )
        from wsa.encode.registration.register import register

        added = register(snapshot, self._request(name), MAX_STEP_ERROR, self._device, self._engine)
        return added.spec.key

    def _request(self, name: str) -> Request:
        """Parse a model as typed; fit it to the game if its output depends on the game."""
        requests = for_games([parse_request(name, self._weights, self._output)], [self._game])
        if not requests:
            raise UsageError(
                f"--output {self._output} is for another game, not {self._game}. Leave out --output."
            )
        return requests[0]


def context_key(context: str, models: Sequence[str], keys_of: KeysOf) -> str:
    """Key of the model that gives the context: a fused one, or another."""
    if context in ("", MEAN_CONTEXT):
        return context
    fitting = names.keys_named(models, context)
    if len(fitting) > 1:
        raise UsageError(
            f"--context {context} may be any of {', '.join(fitting)}; give the whole key. "
            "'wsa models' shows how they differ."
        )
    return fitting[0] if fitting else keys_of([context])[0]


def by_default(keys: Sequence[str], fusion: str, context: str) -> tuple[list[str], str]:
    """Choose the fused models and the context if the user names no models, as in the paper.

    Args:
        keys: Keys of the available models.
        fusion: A key of `wsa.learn.configs.fusions.FUSIONS`.
        context: A key, `mean`, or empty. Empty selects the model `ae`, or `mean` if there is not
            exactly one.

    Returns:
        Keys of all models but the one that gives the context, and the context; `mean` if it was
        not given and the fusion uses none.
    """
    if context == MEAN_CONTEXT:
        return list(keys), context
    context_keys = [key for key in keys if names.key_alias(key) == catalog.CONTEXT]
    chosen = context or (context_keys[0] if len(context_keys) == 1 else MEAN_CONTEXT)
    fused = [key for key in keys if key != chosen]
    if not fused:
        return list(keys), context or MEAN_CONTEXT
    return fused, chosen if context or fusion_class(fusion).conditioned else MEAN_CONTEXT


def decoders_of(snapshot: Snapshot, models: Sequence[str], decode: Sequence[str]) -> dict[str, str]:
    """Digest of the weights of each model whose code the network decodes, by key.

    Raises:
        UsageError: If one is not among them, has no decoder, or stores something other than a code.
        ConflictError: If wsa has no decoder of its weights.
    """
    specs = [read_spec(snapshot, named_model(models, snapshot, n, "--decode")) for n in decode]
    for spec in specs:
        require_code(spec)
    return {spec.key: spec.identity.weights for spec in specs}


def weights_of(request: RunRequest) -> dict[str, str]:
    """Weights files and modules of users' own models, by alias.

    Those of `--weights`, and those typed as models: typing a module's name permits its import.
    """
    typed = typed_modules([*request.models, request.method.context, *request.start.add])
    return typed | weights_files(request.live.weights)
