"""Models as a store records them; read without torch, so that looking at a store is quick."""

from __future__ import annotations

from typing import Any

from wsa.encode.spec import ModelSpec
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, MissingError
from wsa.store.format import records
from wsa.store.reader import Snapshot


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
        raise DamagedError(
            "bad-record", f"{where} is the spec of another model. {how_to_remove(key)}"
        )
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
        "embeddings": sum(e.shape[0] for e in embeddings),
        "passes": sum(e.passes for e in embeddings),
    }


def how_to_remove(key: str) -> str:
    """What to do about a model that cannot be read, as the end of a message."""
    record = names.commit_path(hashing.object_id(names.model_path(key)))
    return f"It was committed so: remove {record}, and encode again."
