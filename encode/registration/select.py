"""Select models of a store by alias, by key, by default, or all that encoded a game."""

from __future__ import annotations

from collections.abc import Sequence

from wsa.encode.models import screen
from wsa.encode.models.registry import (
    DEFAULT,
    for_games,
    known_aliases,
    parse_request,
    timm_alias,
)
from wsa.encode.registration.identity import matches
from wsa.store.common import names
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.objects.model_spec import parse_output, read_spec
from wsa.store.objects.snapshot import Snapshot


def stored_name(snapshot: Snapshot, name: str) -> str:
    """Translate a model as typed for `wsa encode` (`vit:random`) to its alias or key in a store.

    The result is a key if the alias does not distinguish trained from untrained weights.

    Raises:
        UsageError: If there is no such model.
    """
    if name in snapshot.models:
        return name
    plain, at, output = name.partition("@")
    own_name, named, _ = plain.partition("=")
    if at:
        alias = own_name if named else parse_request(plain, {}).alias
        kept = str(parse_output(output))
        specs = [
            read_spec(snapshot, key) for key in snapshot.models if names.key_alias(key) == alias
        ]
        alike_output = [spec.key for spec in specs if spec.identity.output == kept]
        return alike_output[0] if len(alike_output) == 1 else name
    if named:
        return own_name if own_name in map(names.key_alias, snapshot.models) else name
    alias = name
    if name not in {names.key_alias(key) for key in snapshot.models}:
        alias = parse_request(name, {}).alias
    fitting = [key for key in snapshot.models if names.key_alias(key) == alias]
    random = name.endswith(":random")
    alike = [key for key in fitting if read_spec(snapshot, key).identity.random == random]
    if random and not alike:
        return name
    return alike[0] if len(alike) == 1 < len(fitting) else alias


def choose_models(
    snapshot: Snapshot, game: str, asked: Sequence[str], *, partly: bool = False
) -> list[str]:
    """Return the keys of models asked for by alias or key; without any, all that encoded the game.

    Args:
        partly: Take a model that has encoded any of the game's segments; else, it must have encoded
            all.

    Raises:
        MissingError: If the store has no frames of the game, or a model has not encoded all of
            them; the message has the command to run.
        UsageError: If an alias fits several models.
    """
    segments = snapshot.segments_of(game)
    ready = snapshot.models_of(game, partly=partly)
    if not asked:
        if not ready:
            begun = {key: len(snapshot.embeddings(game, key)) for key in snapshot.models}
            counts = ", ".join(
                f"{names.key_alias(key)} {count:,} of {len(segments):,} segments"
                for key, count in begun.items()
                if count
            )
            raise MissingError(
                "not-encoded",
                f"No model has encoded all of {game} in {snapshot.backend.url}"
                f"{f' ({counts})' if counts else ''}. Run: wsa encode --game {game}",
            )
        return ready
    return list(dict.fromkeys(_choose(snapshot, game, ready, name) for name in asked))


def default_models(snapshot: Snapshot, game: str, *, partly: bool = False) -> list[str]:
    """Choose models if a user names none: wsa's default set, whatever else has encoded the game.

    Without the default set, choose all models that have encoded the game.

    Args:
        partly: See `choose_models`.

    Returns:
        Their keys.

    Raises:
        MissingError: If there are no frames, or no model, or one of the default set, has not
            encoded them all.
        UsageError: If one of the default set is there several times.
    """
    ready = choose_models(snapshot, game, (), partly=partly)
    specs = [read_spec(snapshot, key) for key in snapshot.models]
    specs = [spec for spec in specs if spec.game in ("", game)]
    chosen: set[str] = set()
    for request in for_games([parse_request(name, {}) for name in DEFAULT], [game]):
        fitting = [spec.key for spec in specs if matches(spec, request)]
        if not fitting:
            return ready
        if len(fitting) > 1:
            raise _ambiguous(request.alias, fitting)
        chosen.add(_choose(snapshot, game, ready, fitting[0]))
    return [key for key in ready if key in chosen]


def _choose(snapshot: Snapshot, game: str, ready: list[str], name: str) -> str:
    fitting = names.keys_named(ready, name)
    if len(fitting) > 1:
        raise _ambiguous(name, fitting)
    if fitting:
        return fitting[0]
    known = names.keys_named(snapshot.models, name)
    options = name
    if len(known) == 1:
        # Spell out all options, so that the command makes exactly this model.
        spec = read_spec(snapshot, known[0])
        options = spec.alias if spec.alias in known_aliases() else f"timm:{spec.timm_name}"
        options = spec.timm_name if spec.source == "user" else options
        if spec.alias not in (*known_aliases(), timm_alias(spec.timm_name)):
            options = f"{spec.alias}={options}"
        options += ":random" if spec.identity.random else ""
        options += f" --output {spec.identity.output}" if spec.source != screen.SOURCE else ""
        if spec.source != "user" and spec.identity.preprocessing.geometry != "squash":
            options += f" --geometry {spec.identity.preprocessing.geometry}"
        if spec.identity.precision != "fp32":
            options += f" --precision {spec.identity.precision}"
        if spec.source.startswith("file:"):
            options += f" --weights {spec.alias}={spec.source.removeprefix('file:')}"
    raise MissingError(
        "not-encoded",
        f"{name} has not encoded every segment of {game} in {snapshot.backend.url}. Run: "
        f"wsa encode --game {game} --models {options}",
    )


def _ambiguous(name: str, fitting: list[str]) -> UsageError:
    return UsageError(
        f"{name} may be any of {', '.join(fitting)}; give the whole key with --models. 'wsa models' shows how "
        "they differ."
    )
