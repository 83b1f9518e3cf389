"""Remove leftovers of dead writers: files that no record names and that exceed the grace time.

Each attempt to write an object has its own folder. So an attempt that no record names is useless,
unless its writer is still active. Its age decides this, and the only assumption is that no commit
takes longer than the grace time. Ages come from the clock of the file server, so a wrong clock on
this machine does not matter. A service writes a heartbeat every few seconds, so a heartbeat or a
claim of that age belongs to a dead service.

A sweep never removes a file that a record names, a file of an object whose record cannot be read,
or a file whose path wsa would not write. If an object has no record, but records of others name it,
its record may be lost. Then its files stay as well, unless a repair has kept a copy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import uuid
from collections.abc import Set as AbstractSet

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.atomic_files import TEMPORARY
from wsa.store.common.errors import DamagedError, StorageError, UsageError
from wsa.store.format import records
from wsa.store.format.records import Commit, Meta, ModelMeta, record_path
from wsa.store.objects.snapshot import read_each, read_record

# Folder where `wsa verify --repair` keeps damaged objects.
KEPT = "damaged"

# Path below an object: the attempt's folder, and a file in it.
_FILE = re.compile(r"([0-9a-f]{16})/[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


@dataclasses.dataclass(frozen=True)
class Leftover:
    """One attempt that no record names, one temporary file, or one sign of a dead service.

    Attributes:
        path: Folder of the attempt, file in `tmp/`, or heartbeat or claim of a dead service.
        files: Number of files.
        bytes: Total size in bytes.
        age_s: Seconds since the newest file was published.
    """

    path: str
    files: int
    bytes: int
    age_s: float


@dataclasses.dataclass(frozen=True)
class SweepReport:
    """Result of a sweep.

    Attributes:
        leftovers: Leftovers older than the grace time, sorted by path.
        removed: Number of files removed; 0 in a dry run.
        kept_young: Number of files younger than the grace time that no record names.
        protected: Number of files kept because the record of their object cannot be read or may be
            lost.
        strange: Paths of files that wsa would not write; they are kept.
    """

    leftovers: tuple[Leftover, ...]
    removed: int
    kept_young: int
    protected: int
    strange: tuple[str, ...]

    @property
    def files(self) -> int:
        """Number of files in the leftovers."""
        return sum(leftover.files for leftover in self.leftovers)

    @property
    def bytes(self) -> int:
        """Size of the leftovers in bytes."""
        return sum(leftover.bytes for leftover in self.leftovers)


@dataclasses.dataclass(slots=True)
class Attempt:
    """Files of one attempt in a listing: number, total bytes, and time of the newest."""

    files: int = 0
    bytes: int = 0
    newest: float = 0.0


@dataclasses.dataclass(frozen=True)
class Listing:
    """All files of a store except its records.

    Attributes:
        attempts: Attempts by folder, whether or not a record names them, and files in `tmp/`.
        strange: Paths of files that wsa would not write.
        kept: Objects and records that a repair moved, by their path in `damaged/`.
        signs: Heartbeats and claims of services, by path.
    """

    attempts: dict[str, Attempt] = dataclasses.field(default_factory=dict)
    strange: list[str] = dataclasses.field(default_factory=list)
    kept: dict[str, Attempt] = dataclasses.field(default_factory=dict)
    signs: dict[str, Attempt] = dataclasses.field(default_factory=dict)

    def may_be_lost(self, folder: str, named: AbstractSet[str]) -> bool:
        """Whether the lost record of an object may have named this attempt.

        Args:
            folder: Folder of an attempt at an object without a record.
            named: Paths of the objects that the store's records name.
        """
        path, _, attempt = folder.rpartition("/")
        return path in named and f"{KEPT}/{hashing.object_id(path)}/{attempt}" not in self.kept


def sweep(backend: Backend, grace_s: float, dry_run: bool, now: float | None = None) -> SweepReport:
    """Remove files that no record names.

    Args:
        grace_s: Minimum age of a leftover in seconds; no commit may take longer.
        dry_run: Whether to remove nothing and only report.
        now: Seconds since 1970 by the backend's clock; read from the backend if None.

    Raises:
        StorageError: If the store cannot be listed, or a file cannot be removed.
    """
    oldest = (_clock(backend) if now is None else now) - grace_s
    # List files before records, so that files committed in between have a record.
    listing = list_attempts(backend)
    named: set[str] = set()
    for _, commit in read_each(backend):
        if isinstance(commit, Commit):
            listing.attempts.pop(commit.folder, None)
            named.update(objects_named(commit.meta))
    old = {path: sign for path, sign in listing.signs.items() if sign.newest <= oldest}
    leftovers: list[Leftover] = []
    removed = young = protected = 0
    for path, attempt in sorted({**listing.attempts, **old}.items()):
        if attempt.newest > oldest:
            young += attempt.files
            continue
        if not _is_file(path):
            # Look again, by name: a listing may be outdated, and time has passed since.
            try:
                commit = read_record(backend, record_path(path.rpartition("/")[0]))
            except (DamagedError, StorageError):
                protected += attempt.files
                continue
            if commit is not None and commit.folder == path:
                continue
            if commit is None and listing.may_be_lost(path, named):
                protected += attempt.files
                continue
        leftovers.append(
            Leftover(path, attempt.files, attempt.bytes, oldest + grace_s - attempt.newest)
        )
        if not dry_run:
            removed += _remove(backend, path, oldest)
    return SweepReport(tuple(leftovers), removed, young, protected, tuple(sorted(listing.strange)))


def objects_named(meta: Meta) -> set[str]:
    """Return the paths of the objects that a record names: its own, and those it belongs to."""
    if isinstance(meta, ModelMeta):
        return {names.model_path(meta.model)}
    halves = {
        names.frames_path(meta.game, meta.segment),
        names.segment_path(meta.game, meta.segment),
    }
    return halves.union(records.dependencies(meta))


def owner(path: str) -> str | None:
    """Return the folder of the attempt that a file belongs to; None if wsa would not write it."""
    parts = path.split("/")
    try:
        if parts[0] == "models":
            object_path = names.model_path(parts[1])
        elif parts[2] == "embeddings":
            object_path = names.embedding_path(parts[1], parts[3], parts[4])
        elif parts[2] == "segments":
            object_path = names.segment_path(parts[1], parts[3])
        elif parts[2] == "frames":
            object_path = names.frames_path(parts[1], parts[3])
        else:
            return None
    except (IndexError, UsageError):
        return None
    below = _FILE.fullmatch(path.removeprefix(f"{object_path}/"))
    return f"{object_path}/{below[1]}" if below else None


def list_attempts(backend: Backend, prefix: str = "") -> Listing:
    """List the files of a store, or of one of its folders, except records."""
    listing = Listing()
    for entry in backend.list(prefix):
        if entry.path == names.STORE_FILE or names.is_record(entry.path):
            continue
        if entry.path.startswith(f"{KEPT}/"):
            aside = "/".join(entry.path.split("/")[:3]).removesuffix(".json")
            attempt = listing.kept.setdefault(aside, Attempt())
        elif names.is_service_file(entry.path):
            attempt = listing.signs.setdefault(entry.path, Attempt())
        elif place := entry.path if entry.path.startswith(f"{TEMPORARY}/") else owner(entry.path):
            attempt = listing.attempts.setdefault(place, Attempt())
        else:
            listing.strange.append(entry.path)
            continue
        attempt.files += 1
        attempt.bytes += entry.bytes
        attempt.newest = max(attempt.newest, entry.modified)
    return listing


def _is_file(path: str) -> bool:
    """Whether a leftover is one file, not the folder of an attempt."""
    return path.startswith(f"{TEMPORARY}/") or names.is_service_file(path)


def _remove(backend: Backend, path: str, oldest: float) -> int:
    """Remove a file, or an attempt if it has no new file, and return the number of files removed."""
    files = [path]
    if not _is_file(path):
        entries = [entry for entry in backend.list(path) if owner(entry.path) == path]
        if any(entry.modified > oldest for entry in entries):
            return 0
        files = [entry.path for entry in entries]
    removed = 0
    for file in files:
        with contextlib.suppress(DamagedError):  # A link that leads out of the store.
            backend.delete(file)
            removed += 1
    return removed


def _clock(backend: Backend) -> float:
    """Return the backend's time in seconds since 1970, from a file published for this."""
    path = f"{TEMPORARY}/{uuid.uuid4().hex}"
    backend.put_new(path, b"clock")
    try:
        for entry in backend.list(TEMPORARY):
            if entry.path == path:
                return entry.modified
    finally:
        backend.delete(path)
    raise StorageError(
        "unavailable",
        f"{backend.url} does not list a file that wsa has just written there. Try again later.",
    )
