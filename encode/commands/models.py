"""The command `wsa models`: list known models and those of a store, or check one model."""

from __future__ import annotations

import dataclasses

from wsa.encode.configs import (
    OF_KEY,
    CheckOptions,
    ModelsOptions,
    refuse,
    require_used,
    weights_files,
)
from wsa.encode.models import screen
from wsa.encode.models.registry import known_aliases, local_weights, parse_request
from wsa.store.common import names, terminal
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.objects.model_spec import describe, read_spec
from wsa.store.objects.root import open_snapshot


def _check_model(o: ModelsOptions) -> int:
    """Run `wsa models check`, printing each result as it comes; return 4 if any check failed."""
    from wsa.encode.inference.encoder import choose_device
    from wsa.encode.registration.check import check
    from wsa.encode.registration.identity import request_of

    if not o.name:
        raise UsageError("Say which model: wsa models check NAME.")
    weights = weights_files(o.check.weights)
    if names.is_model_key(o.name):
        refuse(o.check, OF_KEY, f"the key {o.name} has its own")
        request = request_of(read_spec(open_snapshot(o.store)[1], o.name), weights)
    else:
        output = o.check.output or ("" if o.name in screen.OUTPUTS else "pooled")
        request = parse_request(o.name, weights, output, o.check.precision, o.check.geometry)
    from_files = names.is_model_key(o.name) or request.recorded.startswith("file:")
    require_used(weights, [o.name, request.alias] if from_files else [])
    results = []
    for result in check(request, choose_device(o.check.device)):
        results.append(result)
        if not o.json:
            print(
                f"{'ok' if result.ok else 'FAILED':<6}  {result.what}: {terminal.plain(result.found)}"
            )
    ok = all(result.ok for result in results)
    if o.json:
        terminal.result(
            True, {"ok": ok, "points": [dataclasses.asdict(result) for result in results]}
        )
    return 0 if ok else ConflictError.exit_code


def models(o: ModelsOptions) -> int:
    """Run `wsa models` or `wsa models check NAME`."""
    if o.action == "check":
        return _check_model(o)
    if o.name:
        raise UsageError(f"list takes no name. To check one: wsa models check {o.name}")
    refuse(o.check, CheckOptions.__dataclass_fields__, "it is for 'wsa models check'")
    _, snapshot = open_snapshot(o.store, or_empty=True)
    stored = [describe(snapshot, key) for key in snapshot.models]
    known = [parse_request(alias, {}) for alias in known_aliases()]
    if o.json:
        aliases = {
            r.alias: dataclasses.asdict(r)
            | {"license": r.license, "weights_here": local_weights(r)}
            for r in known
        }
        return terminal.result(True, {"aliases": aliases, "stored": stored})
    terminal.table(
        "Aliases; any other model of timm is timm:NAME",
        ["alias", "timm", "license", "weights here"],
        [[r.alias, r.timm_name, r.license, local_weights(r)] for r in known],
    )
    columns = ["key", "model", "output", "precision", "license", "embeddings", "passes"]
    if stored:
        rows = [[row[column] for column in columns] for row in stored]
        terminal.table("\nIn the store", columns, rows)
    else:
        print("\nThe store has no models yet; 'wsa encode' would bring the first.")
    return 0
