"""The verbs export and import."""

from __future__ import annotations

from pathlib import Path

from wsa.learn.configs.data import ExportOptions, ImportOptions
from wsa.learn.envs import atari
from wsa.store.common import terminal
from wsa.store.common.errors import UsageError
from wsa.store.objects.root import open_snapshot


def export(o: ExportOptions) -> int:
    """`wsa export`."""
    from wsa.encode.registration.select import choose_models, stored_name
    from wsa.store.exchange.export import export as write
    from wsa.store.exchange.export import plan_export, require_new

    atari.check_game(o.game)
    _, snapshot = open_snapshot(o.store)
    models = snapshot.models_of(o.game)
    if o.models:
        models = choose_models(snapshot, o.game, [stored_name(snapshot, n) for n in o.models])
    elif partly := [m for m in snapshot.models_of(o.game, partly=True) if m not in models]:
        terminal.say(f"left out, because they have not encoded every segment: {', '.join(partly)}")
    path = Path(o.path).expanduser()
    require_new(path)
    plan = plan_export(snapshot, o.game, models, o.frames)
    values = {
        "path": o.path,
        "models": list(plan.models),
        "segments": len(plan.segments),
        "frames": plan.frames,
        "rows": plan.rows,
        "bytes": plan.bytes,
    }
    if o.dry_run:
        return terminal.result(o.json, values)
    with terminal.Progress("export", "segments", len(plan.segments), not o.json) as progress:
        values["rows"] = write(snapshot, plan, path, progress.update)
    return terminal.result(o.json, values)


def import_data(o: ImportOptions) -> int:
    """`wsa import`."""
    from wsa.learn.collect.import_data import open_source, plan_import, run_import, state_protocol
    from wsa.learn.collect.sources import PartialProtocol
    from wsa.store.objects.root import open_store

    if o.game:
        atari.check_game(o.game)
    source = open_source(o.kind, o.source)
    game = o.game or source.game
    if not game:
        raise UsageError(f"{o.source} does not say which game it is: give --game.")
    if source.game not in ("", game):
        raise UsageError(f"{o.source} contains {source.game}, not {game}. Leave out --game.")
    stated = PartialProtocol(
        frame_skip=o.rules.frame_skip,
        sticky=o.rules.sticky,
        full_action_space=o.rules.full_action_space or None,
        noop_max=o.rules.noop_max,
        fire_reset=o.rules.fire_reset or None,
        max_pool=o.rules.max_pool or None,
        max_steps=o.rules.max_episode_steps,
    )
    protocol = state_protocol(game, source.facts, stated, o.rules.protocol)
    policy = o.policy or source.policy or "imported"
    if not policy.isprintable() or len(policy) > 100:
        raise UsageError("--policy: give a name of at most 100 printable characters.")
    _, snapshot = open_snapshot(o.store, or_empty=True)
    terminal.say(f"{game}, {atari.describe(protocol)}, played by {policy}")
    if source.lossy:
        terminal.say(
            "The screens are JPEG images, which differ slightly from the emulator's screens. They need "
            "more space, and frames of live games will not be found among them."
        )
    with terminal.Progress("check", "steps", source.steps, not o.json) as progress:
        plan = plan_import(
            snapshot, source, game, protocol, policy, o.segment_steps, progress.update
        )
    values = {
        "run": plan.collection.run,
        "episodes": plan.episodes,
        "steps": plan.collection.steps,
        "missing": plan.collection.missing,
    }
    if o.dry_run:
        return terminal.result(
            o.json, {**values, "segments": sum(map(len, plan.collection.pieces))}
        )
    backend = open_store(o.store, create=True)  # Create it only after all checks.
    with terminal.Progress("import", "steps", plan.collection.missing, not o.json) as progress:
        written = run_import(plan, source, backend, progress.update)
    return terminal.result(
        o.json,
        {
            "run": plan.collection.run,
            "episodes": plan.episodes,
            "segments": len(written),
            "steps": sum(m.steps for m in written),
            "distinct_frames": sum(m.frames for m in written),
        },
    )
