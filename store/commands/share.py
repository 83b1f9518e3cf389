"""The commands `wsa push`, `wsa pull` and `wsa merge`, which copy missing objects between stores."""

from __future__ import annotations

import dataclasses
import os

import safetensors

from wsa.store.backends.open import open_backend
from wsa.store.common import terminal
from wsa.store.common.errors import ConflictError, DamagedError, MissingError, UsageError
from wsa.store.configs import MergeOptions, ShareOptions
from wsa.store.exchange import sync
from wsa.store.format.arrays import Files
from wsa.store.format.records import Commit
from wsa.store.objects import probe
from wsa.store.objects.root import is_free, open_store
from wsa.store.objects.snapshot import Snapshot


def push(o: ShareOptions) -> int:
    """`wsa push`."""
    return _share("push", o, o.store, o.url)


def pull(o: ShareOptions) -> int:
    """`wsa pull`."""
    return _share("pull", o, o.url, o.store)


def merge(o: MergeOptions) -> int:
    """`wsa merge`: a pull of everything."""
    everything = ShareOptions(store=o.store, url=o.url, dry_run=o.dry_run, json=o.json)
    return _share("merge", everything, o.url, o.store)


def _share(verb: str, o: ShareOptions, source_url: str, target_url: str) -> int:
    ours, theirs = open_backend(o.store).url, open_backend(o.url).url
    # A folder may have several names, such as one through a link.
    if os.path.realpath(ours) == os.path.realpath(theirs):
        raise UsageError(f"{theirs} is the store itself. Name another one, or another --store.")
    terminal.say(f"store {ours}")
    terminal.say(f"{'to' if verb == 'push' else 'from'} {theirs}")
    try:
        source, damaged = sync.survey(open_store(source_url))
    except MissingError as error:
        if verb == "push":
            raise
        raise MissingError(
            error.kind, f"There is no store to copy from at {theirs}. Check the address."
        ) from None
    target, unreadable = _survey_or_empty(target_url)
    done = sync.plan_sync(
        source,
        target,
        o.game,
        o.models,
        not o.no_frames,
        same_model=_same_model,
        unreadable={found.path for found in unreadable},
    )
    if not o.dry_run:
        done = _copy(verb, source, target_url, done, shown=not o.json)
    done = dataclasses.replace(done, damaged=(*damaged, *unreadable, *done.damaged))
    if o.json:
        stores = {"from": source.backend.url, "to": target.backend.url}
        terminal.result(True, stores | _values(done))
    else:
        _show("To copy; nothing was changed:" if o.dry_run else "Copied:", done)
    if done.damaged:
        return DamagedError.exit_code
    return ConflictError.exit_code if done.conflicts else 0


def _survey_or_empty(url: str) -> tuple[Snapshot, tuple[sync.Finding, ...]]:
    """Survey the target, which is empty if there is no store yet."""
    try:
        return sync.survey(open_store(url))
    except MissingError:
        backend = open_backend(url)
        if not is_free(backend):
            raise  # The folder holds something else.
        return Snapshot(backend, {}), ()


def _same_model(ours: Files, theirs: Files) -> bool:
    """Whether the probes of two models with the same key agree.

    They are compared with a tolerance: the last bits of a fitted basis differ between machines, and
    so do those of probe vectors.
    """
    try:
        found, reference = (probe.load(files["probe.safetensors"]) for files in (ours, theirs))
    except (KeyError, safetensors.SafetensorError):
        return False
    return probe.step_error(found, reference) <= probe.MAX_STEP_ERROR


def _copy(
    verb: str, source: Snapshot, target_url: str, plan: sync.Transfer, *, shown: bool
) -> sync.Transfer:
    """Copy the planned objects and show progress."""
    target = open_store(target_url, create=True)
    done, total = 0, sum(commit.bytes for commit in plan.objects)
    with terminal.Progress(verb, "kB", total // 1000, shown) as progress:

        def on_object(commit: Commit) -> None:
            nonlocal done
            done += commit.bytes
            progress.update(done // 1000)

        return sync.copy(source, target, plan, on_object)


def _values(done: sync.Transfer) -> dict[str, object]:
    """Return a transfer as JSON values."""
    passes, seconds = sync.saved(done.objects)
    return {
        "objects": len(done.objects),
        **{name: len(objects) for name, objects in _by_kind(done).items()},
        "bytes": sum(commit.bytes for commit in done.objects),
        "passes_saved": passes,
        "hours_saved": seconds / 3600,
        "present": done.present,
        "left": done.left,
        "damaged": [dataclasses.asdict(found) for found in done.damaged],
        "conflicts": [dataclasses.asdict(found) for found in done.conflicts],
    }


def _show(title: str, done: sync.Transfer) -> None:
    """Print a transfer as a table, followed by damage and conflicts."""
    rows = [
        [name, len(objects), terminal.size(sum(commit.bytes for commit in objects))]
        for name, objects in _by_kind(done).items()
    ]
    terminal.table(title, ["what", "objects", "size"], rows)
    passes, seconds = sync.saved(done.objects)
    print(f"passes saved: {passes:,}, which took {terminal.duration(seconds)}")
    print(f"there already: {terminal.plural(done.present, 'object')}")
    if done.left:
        left = terminal.plural(done.left, "embedding")
        print(f"left: {left} whose segment or model stays behind")
    for what, found in (("damaged", done.damaged), ("conflict", done.conflicts)):
        for one in found:
            print(f"{what}: {one.path}\n  {one.why}")


def _by_kind(done: sync.Transfer) -> dict[str, list[Commit]]:
    """Return the objects by the plural of their kind."""
    kinds = zip(("models", "frames", "segments", "embeddings"), sync.ORDER, strict=True)
    return {name: [c for c in done.objects if isinstance(c.meta, kind)] for name, kind in kinds}
