"""Remove what dead writers left: files that no record names, once they are older than a grace time.

Each attempt to write an object has its own folder, which no other attempt uses. So an attempt that
no record names is useless, unless its writer is still at work. Its age decides: the one assumption
is that no single commit takes longer than the grace time. Ages come from the clock of the file
server, so a wrong clock on this machine changes nothing. A service renews its heartbeat every few
seconds, so one of that age belongs to a dead service, as does a claim.

Nothing is removed that a record names, or of an object whose record cannot be read, or that is not
spelled as the store spells its own files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import uuid

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.atomic_files import TEMPORARY
from wsa.store.common.errors import DamagedError, StorageError, UsageError
from wsa.store.format.records import Commit
from wsa.store.objects.snapshot import read_each, read_record

# Where `wsa verify --repair` keeps what it took out.
KEPT = "damaged"

# Below an object: the attempt's folder, and a file in it.
_FILE = re.compile(r"([0-9a-f]{16})/[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


@dataclasses.dataclass(frozen=True)
class Leftover:
    """Files that no record names: one attempt to write an object, or one file in the making.

    Attributes:
        path: Its folder, or its file in `tmp/`, or the sign or claim of a dead service.
        files: How many they are.
        bytes: Their lengths together.
        age_s: Seconds since the newest of them was published.
    """

    path: str
    files: int
    bytes: int
    age_s: float


@dataclasses.dataclass(frozen=True)
class SweepReport:
    """What a sweep found.

    Attributes:
        leftovers: What is old enough to go, sorted by path.
        removed: Files that were removed: none in a dry run.
        kept_young: Files that no record names yet, younger than the grace time.
        protected: Files kept because the record of their object cannot be read.
        strange: Paths of files that are not the store's own; they are left alone.
    """

    leftovers: tuple[Leftover, ...]
    removed: int
    kept_young: int
    protected: int
    strange: tuple[str, ...]

    @property
    def files(self) -> int:
        """Files old enough to go."""
        return sum(leftover.files for leftover in self.leftovers)

    @property
    def bytes(self) -> int:
        """Their lengths together."""
        return sum(leftover.bytes for leftover in self.leftovers)


@dataclasses.dataclass(slots=True)
class Attempt:
    """What a listing says of the files of one attempt: how many, their bytes, the newest's time."""

    files: int = 0
    bytes: int = 0
    newest: float = 0.0


@dataclasses.dataclass(frozen=True)
class Listing:
    """What lies in a store beside its records.

    Attributes:
        attempts: Folders of attempts, and files in `tmp/`, named by a record or not.
        strange: Paths of files that are not the store's own.
        kept: Objects and records that a repair has set aside, by their place in `damaged/`.
        signs: Signs and claims of services.
    """

    attempts: dict[str, Attempt]
    strange: list[str]
    kept: dict[str, Attempt]
    signs: dict[str, Attempt]


def sweep(backend: Backend, grace_s: float, dry_run: bool, now: float | None = None) -> SweepReport:
    """Remove files that no record names.

    Args:
        backend: The store.
        grace_s: Seconds that a file must be older than; no commit may take longer.
        dry_run: Remove nothing, and report what would be.
        now: Seconds since 1970 by the place's clock; asked of the place if not given.

    Raises:
        StorageError: The store cannot be listed, or a file cannot be removed.
    """
    oldest = (_clock(backend) if now is None else now) - grace_s
    # Files before records: what is committed meanwhile has its record by the time they are read.
    listing = list_attempts(backend)
    paths = [entry.path for entry in backend.list("commits") if names.is_record(entry.path)]
    for _, commit in read_each(backend, paths):
        if isinstance(commit, Commit):
            listing.attempts.pop(commit.folder, None)
    old = {path: sign for path, sign in listing.signs.items() if sign.newest <= oldest}
    leftovers: list[Leftover] = []
    removed = young = protected = 0
    for path, found in sorted({**listing.attempts, **old}.items()):
        if found.newest > oldest:
            young += found.files
            continue
        if not _is_file(path):
            # Once more, and by name: a listing may be late, and time has passed since.
            try:
                commit = read_record(
                    backend, names.commit_path(hashing.object_id(path.rpartition("/")[0]))
                )
            except (DamagedError, StorageError):
                protected += found.files
                continue
            if commit is not None and commit.folder == path:
                continue
        leftovers.append(Leftover(path, found.files, found.bytes, oldest + grace_s - found.newest))
        if not dry_run:
            removed += _remove(backend, path, oldest)
    return SweepReport(tuple(leftovers), removed, young, protected, tuple(sorted(listing.strange)))


def owner(path: str) -> str | None:
    """The attempt's folder that a file lies in, or None if a store would not spell it so."""
    parts = path.split("/")
    try:
        if parts[0] == "models":
            at = names.model_path(parts[1])
        elif parts[2] == "embeddings":
            at = names.embedding_path(parts[1], parts[3], parts[4])
        elif parts[2] == "segments":
            at = names.segment_path(parts[1], parts[3])
        elif parts[2] == "frames":
            at = names.frames_path(parts[1], parts[3])
        else:
            return None
    except (IndexError, UsageError):
        return None
    below = _FILE.fullmatch(path.removeprefix(f"{at}/"))
    return f"{at}/{below[1]}" if below else None


def list_attempts(backend: Backend, prefix: str = "") -> Listing:
    """What lies in a store, or in one of its folders, beside its records."""
    attempts: dict[str, Attempt] = {}
    strange = []
    kept: dict[str, Attempt] = {}
    signs: dict[str, Attempt] = {}
    for entry in backend.list(prefix):
        if entry.path == names.STORE_FILE or names.is_record(entry.path):
            continue
        if entry.path.startswith(f"{KEPT}/"):
            aside = "/".join(entry.path.split("/")[:3]).removesuffix(".json")
            attempt = kept.setdefault(aside, Attempt())
        elif names.is_sign(entry.path):
            attempt = signs.setdefault(entry.path, Attempt())
        elif place := entry.path if entry.path.startswith(f"{TEMPORARY}/") else owner(entry.path):
            attempt = attempts.setdefault(place, Attempt())
        else:
            strange.append(entry.path)
            continue
        attempt.files += 1
        attempt.bytes += entry.bytes
        attempt.newest = max(attempt.newest, entry.modified)
    return Listing(attempts, strange, kept, signs)


def _is_file(path: str) -> bool:
    """Whether a leftover is one file, not the folder of an attempt."""
    return path.startswith(f"{TEMPORARY}/") or names.is_sign(path)


def _remove(backend: Backend, path: str, oldest: float) -> int:
    """Remove a file, or the files of an attempt if none came since; how many."""
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
    """The time at the place, by the file it publishes for this."""
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
        f"{backend.url} does not list a file that was published there just now. Try again later.",
    )
