"""The commands `wsa push`, `wsa pull` and `wsa merge`, which copy missing objects between stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import safetensors

from wsa.store.backends.open import open_backend
from wsa.store.common import terminal
from wsa.store.common.errors import ConflictError, DamagedError, MissingError, UsageError
from wsa.store.configs import MergeOptions, PullOptions, PushOptions, ShareOptions
from wsa.store.exchange import sync
from wsa.store.format.arrays import Files
from wsa.store.format.records import Commit
from wsa.store.objects import probe
from wsa.store.objects.root import is_free, open_store
from wsa.store.objects.snapshot import Snapshot

# Plurals of the kinds of objects in `sync.ORDER`.
KINDS = ("models", "frames", "segments", "embeddings")


def push(o: PushOptions) -> int:
    """`wsa push`."""
    return _share("push", o, o.store, o.url)


def pull(o: PullOptions) -> int:
    """`wsa pull`."""
    return _share("pull", o, o.url, o.store)


def merge(o: MergeOptions) -> int:
    """`wsa merge`: a pull of everything."""
    everything = ShareOptions(store=o.store, url=o.url, dry_run=o.dry_run, json=o.json)
    return _share("merge", everything, o.url, o.store)


def _share(verb: str, o: ShareOptions, source_url: str, target_url: str) -> int:
    ours, theirs = open_backend(o.store).url, open_backend(o.url).url
    if ours == theirs:
        raise UsageError(
            "bad-option", f"{theirs} is the store itself. Name another one, or another --store."
        )
    terminal.say(f"store {ours}")
    terminal.say(f"{'to' if verb == 'push' else 'from'} {theirs}")
    try:
        source, damaged = sync.survey(open_store(source_url))
    except MissingError as error:
        if verb == "push":
            raise
        raise MissingError(
            error.kind, f"There is no store to take from at {theirs}. Check the address."
        ) from None
    target, unreadable = _survey_or_empty(target_url)
    plan = sync.plan_sync(
        source,
        target,
        o.game,
        o.models,
        not o.no_frames,
        same_model=_same_model,
        unreadable={found.path for found in unreadable},
    )
    damaged = (*damaged, *unreadable, *plan.damaged)
    if o.dry_run:
        done = sync.Copied(plan.objects, 0, 0, ())
    else:
        done = _copy(verb, source, target_url, plan, shown=not o.json)
    outcome = Outcome(
        source=source.backend.url,
        target=target.backend.url,
        objects=done.objects,
        present=plan.present + done.present,
        left=plan.left + done.left,
        damaged=(*damaged, *done.damaged),
        conflicts=plan.conflicts,
    )
    if o.json:
        terminal.result(True, outcome.summary())
    else:
        outcome.show("To copy; nothing was changed:" if o.dry_run else "Copied:")
    if outcome.damaged:
        return DamagedError.exit_code
    return ConflictError.exit_code if outcome.conflicts else 0


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
    verb: str, source: Snapshot, target_url: str, plan: sync.SyncPlan, *, shown: bool
) -> sync.Copied:
    """Copy the planned objects and show progress."""
    target = open_store(target_url, create=True)
    done, total = 0, sum(commit.bytes for commit in plan.objects)
    with terminal.Progress(verb, "kB", total // 1000, shown) as progress:

        def on_object(commit: Commit) -> None:
            nonlocal done
            done += commit.bytes
            progress.update(done // 1000)

        return sync.copy(source, target, plan, on_object)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a copy or of a dry run.

    Attributes:
        source, target: URLs of the stores.
        objects: Records of the objects copied, or to copy.
        present: Number of objects that the target already had.
        left: Number of embeddings not copied because their segment or model was not.
        damaged: Objects not copied because their bytes are not what was committed.
        conflicts: Objects not copied because they differ between the two stores.
    """

    source: str
    target: str
    objects: Sequence[Commit]
    present: int
    left: int
    damaged: Sequence[sync.Finding]
    conflicts: Sequence[sync.Finding]

    def summary(self) -> dict[str, object]:
        """Return the outcome as JSON values."""
        passes, seconds = sync.saved(self.objects)
        counted = {name: len(self._of(kind)) for name, kind in zip(KINDS, sync.ORDER, strict=True)}
        return {
            "from": self.source,
            "to": self.target,
            "objects": len(self.objects),
            **counted,
            "bytes": sum(commit.bytes for commit in self.objects),
            "passes_saved": passes,
            "hours_saved": seconds / 3600,
            "present": self.present,
            "left": self.left,
            "damaged": [dataclasses.asdict(found) for found in self.damaged],
            "conflicts": [dataclasses.asdict(found) for found in self.conflicts],
        }

    def show(self, title: str) -> None:
        """Print the outcome as a table, followed by damage and conflicts."""
        rows = []
        for name, kind in zip(KINDS, sync.ORDER, strict=True):
            size = sum(commit.bytes for commit in self._of(kind))
            rows.append([name, len(self._of(kind)), terminal.size(size)])
        terminal.table(title, ["what", "objects", "size"], rows)
        passes, seconds = sync.saved(self.objects)
        print(f"passes saved: {passes:,}, which took {terminal.duration(seconds)}")
        print(f"there already: {self.present:,} objects")
        if self.left:
            print(f"left: {self.left:,} embeddings whose segment or model stays behind")
        for what, found in (("damaged", self.damaged), ("conflict", self.conflicts)):
            for one in found:
                print(f"{what}: {one.path}\n  {one.why}")

    def _of(self, kind: type) -> list[Commit]:
        return [commit for commit in self.objects if isinstance(commit.meta, kind)]
