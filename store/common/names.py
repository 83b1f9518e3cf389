"""The one grammar for every name that becomes part of a path in a store.

No other name reaches a file system, so no path can leave the store's root. Each parser returns its
argument or raises `UsageError`. Only the functions here build paths inside a store.

    game       Seaquest                        an ALE game: a capital, then letters and digits
    alias      lite0                           a user's name for a model
    model key  lite0-1f0c9b2a7d3e              alias, dash, 12 hex of the model's identity
    segment    9c41d0a2b7f3-e003-000002048-01024
                                               collection run, environment, first step, steps

No game or alias is a name such as `CON` or `nul`, which Windows treats as devices in every folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from wsa.store.common.errors import UsageError

_NO_DEVICE = r"(?!(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(?![A-Za-z0-9_]))"
_GAME = re.compile(_NO_DEVICE + r"[A-Z][A-Za-z0-9]{0,63}", re.ASCII)
_ALIAS = re.compile(_NO_DEVICE + r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_MODEL_KEY = re.compile(_ALIAS.pattern + r"-[0-9a-f]{12}", re.ASCII)
# Includes the length: the same steps, divided differently, are other segments with other frames.
_SEGMENT = re.compile(r"([0-9a-f]{12})-e([0-9]{3})-([0-9]{9})-([0-9]{5})", re.ASCII)
_RECORD = re.compile(r"commits/([0-9a-f]{2})/\1[0-9a-f]{30}\.json", re.ASCII)

_SERVICE_FILE = re.compile(
    rf"services/[0-9a-f]{{16}}-[0-9]{{12}}\.json|claims/{_GAME.pattern}/{_MODEL_KEY.pattern}\.json",
    re.ASCII,
)

STORE_FILE = "wsa.json"
SERVICES = "services"
CLAIMS = "claims"


def _checked(name: str, pattern: re.Pattern[str], why: str) -> str:
    if not pattern.fullmatch(name):
        raise UsageError(f"{name!r} {why}", kind="bad-name")
    return name


def game(name: str) -> str:
    """Return `name` if it has the form of an ALE game."""
    return _checked(name, _GAME, "is not a game's name; write it like 'Seaquest'.")


def alias(name: str) -> str:
    """Return `name` if it is a valid alias for a model."""
    why = "is not a model alias; use small letters, digits and '_', at most 64."
    return _checked(name, _ALIAS, why)


def model_key(name: str) -> str:
    """Return `name` if it is a model key, `<alias>-<12 hex>`."""
    return _checked(name, _MODEL_KEY, "is not a model key; 'wsa models' lists them.")


def is_model_key(name: str) -> bool:
    """Whether `name` has the form of a model key; no alias has."""
    return _MODEL_KEY.fullmatch(name) is not None


def make_model_key(model_alias: str, identity: str) -> str:
    """Join an alias and the first 12 hex digits of a model's identity hash."""
    return model_key(f"{alias(model_alias)}-{identity[:12]}")


def key_alias(key: str) -> str:
    """Return the alias at the start of a model key."""
    return model_key(key).rsplit("-", 1)[0]


def keys_named(keys: Iterable[str], name: str) -> list[str]:
    """Return the keys that a name may stand for: it is the key itself, or its alias."""
    return [key for key in keys if name in (key, key_alias(key))]


def labels(keys: Sequence[str]) -> list[str]:
    """Return the display names of models: the alias, or the key if several share an alias."""
    count = Counter(map(key_alias, keys))
    return [key if count[key_alias(key)] > 1 else key_alias(key) for key in keys]


def segment(name: str) -> str:
    """Return `name` if it is a segment's id."""
    return _checked(name, _SEGMENT, "is not a segment's id; 'wsa list' shows them.")


def make_segment(run: str, env: int, start: int, steps: int) -> str:
    """Return the id of the segment of `steps` steps that begins at step `start` of `env`."""
    return segment(f"{run}-e{env:03d}-{start:09d}-{steps:05d}")


def segment_path(game_name: str, segment_id: str) -> str:
    """Path of a segment's rows, relative to the store."""
    return f"games/{game(game_name)}/segments/{segment(segment_id)}"


def frames_path(game_name: str, segment_id: str) -> str:
    """Path of the images of a segment's distinct frames, relative to the store."""
    return f"games/{game(game_name)}/frames/{segment(segment_id)}"


def embedding_path(game_name: str, key: str, segment_id: str) -> str:
    """Path of one model's embeddings of one segment, relative to the store."""
    return f"games/{game(game_name)}/embeddings/{model_key(key)}/{segment(segment_id)}"


def model_path(key: str) -> str:
    """Path of a model's spec, relative to the store."""
    return f"models/{model_key(key)}"


def is_record(path: str) -> bool:
    """Whether a path has the form of a commit record's."""
    return _RECORD.fullmatch(path) is not None


def heartbeat_path(service: str, beat: int) -> str:
    """Path of one heartbeat of a service, relative to the store; each heartbeat has its own file."""
    return f"{SERVICES}/{service}-{beat:012d}.json"


def claim_path(game_name: str, key: str) -> str:
    """Path of the claim of the service that is encoding a game with a model."""
    return f"{CLAIMS}/{game(game_name)}/{model_key(key)}.json"


def is_service_file(path: str) -> bool:
    """Whether a path has the form of a service's heartbeat or claim, which are not data."""
    return _SERVICE_FILE.fullmatch(path) is not None


def commit_path(object_id: str) -> str:
    """Path of the record that makes an object visible, relative to the store."""
    return f"commits/{object_id[:2]}/{object_id}.json"
