"""JSON records of a store: frozen, typed, versioned, and parsed strictly.

A `Commit` makes one object visible. It names the folder of the object's files (`attempt`: each
attempt has its own folder, so that writers cannot conflict). It lists the files with their lengths
and blake3 hashes, so that a missing, truncated or changed file is noticed. It has the metadata that
plans and tables need (`meta`), so that they do not open arrays. A record is canonical JSON with its
own checksum, so that a change of any byte is noticed. Unknown fields are refused: a newer wsa that
needs another field writes another version.
"""

from __future__ import annotations

import math
import re
import threading
from typing import Annotated, Any, TypeVar

import msgspec

from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, DamagedError
from wsa.store.format.limits import MAX_ARRAY_BYTES
from wsa.store.format.stacks import MAX_STACK_FRAMES

VERSION = 1
MAX_RECORD_BYTES = 4 << 20
# wsa writes at most 22.
MAX_FILES = 64
# A model's basis and probe vectors.
MAX_MODEL_BYTES = 128 << 20

# A path below an object: no empty part, none that starts with a dot, and no special characters.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One file of an object: path in the object's folder, length in bytes, hex blake3-256."""

    name: Annotated[str, msgspec.Meta(max_length=200)]
    bytes: Count
    blake3: str


class Protocol(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Settings of the environment that change observations or rewards.

    Attributes:
        name: `classic`, `v5`, or `custom` if a setting was overridden.
        frame_skip: Emulator frames per step.
        sticky: Probability that the emulator repeats the last action (Machado et al., 2018).
        noop_max: Maximum number of no-ops at a reset.
        fire_reset: Whether FIRE is pressed at a reset in games that wait for it.
        full_action_space: Whether there are all 18 actions (True) or the game's minimal set.
        max_pool: Whether a frame is the pixel-wise maximum of a step's last two emulator frames.
        max_steps: Steps after which an episode is truncated.
        actions: ALE's name of each action index.
    """

    name: str
    frame_skip: int
    sticky: float
    noop_max: int
    fire_reset: bool
    full_action_space: bool
    max_pool: bool
    max_steps: int
    actions: tuple[str, ...]


class FramesMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag="frames"):
    """Images of a segment's distinct frames: a separate object, since training does not need them.

    Attributes:
        game: ALE game id.
        segment: The segment's id.
        frames: Number of distinct frames.
        height, width: Screen size in pixels.
        indexed: Whether frames are palette indices (True) or RGB.
    """

    game: str
    segment: str
    frames: Count
    height: Count
    width: Count
    indexed: bool


class SegmentMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag="segment"):
    """A run of steps, written once by one process: its rows, and the digests of its frames.

    Attributes:
        game: ALE game id.
        segment: The segment's id.
        run: 12 hex digits of a hash of everything that determines the steps (game, protocol,
            policy, seed, ...).
        env: Index of the environment within the run.
        start: Steps that this environment played before the segment.
        rows: Number of rows, including those that are only an observation.
        steps: Number of agent steps, that is, rows with an action.
        frames: Number of distinct frames.
        episodes: Length and raw return of each episode that ended here, as (steps, return).
        protocol: Settings of the environment.
        policy: The policy, as given to `wsa collect --policy` or found by `wsa import`.
        seed: The run's seed; environment i uses seed + i.
        emulator: Version of ale-py, and the MD5 digest of the game's ROM; `unknown` if imported.
    """

    game: str
    segment: str
    run: str
    env: Count
    start: Count
    rows: Count
    steps: Count
    frames: Count
    episodes: tuple[tuple[int, float], ...]
    protocol: Protocol
    policy: str
    seed: int
    emulator: tuple[str, str]

    def inputs(self, window: int) -> int:
        """Number of embeddings of the segment by a model with this window."""
        return self.frames if window == 1 else self.rows


class EmbeddingMeta(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    gc=False,
    tag="embedding",
):
    """One model's embeddings of one segment: of its frames, or of its rows' windows.

    Attributes:
        game: ALE game id.
        segment: The segment's id.
        model: The model key.
        shape: Shape of the array, (frames, *embedding shape), or (rows, *embedding shape) if the
            window is above 1.
        dtype: `float16`, or `float32` if a value exceeds float16's range.
        passes: Forward passes that this object took.
        copied: Embeddings copied from earlier encodings of the same frames or windows.
        seconds: Duration of the passes, which copying the object saves.
        window: The model's window; 1 is not written.
        engine: The engine, named as in `wsa encode --engine`; `torch` is not written.
    """

    game: str
    segment: str
    model: str
    shape: tuple[Count, ...]
    dtype: Annotated[str, msgspec.Meta(pattern="^float(16|32)\\Z")]
    passes: Count
    copied: Count
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    window: Annotated[int, msgspec.Meta(ge=1, le=MAX_STACK_FRAMES)] = 1
    engine: Annotated[str, msgspec.Meta(pattern="^[a-z]{1,20}\\Z")] = "torch"

    @property
    def unit(self) -> str:
        """What there is one embedding for: `frames` (distinct) or `rows`."""
        return "frames" if self.window == 1 else "rows"

    def fits(self, segment: SegmentMeta) -> bool:
        """Whether there is one embedding for each frame or row of the segment."""
        return self.shape[:1] == (segment.inputs(self.window),)


class ModelMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag="model"):
    """A model's spec, probe vectors and, if its output is reduced, the basis."""

    model: str


Meta = FramesMeta | SegmentMeta | EmbeddingMeta | ModelMeta


class Commit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The record whose publication makes an object visible.

    Attributes:
        version: Version of the record, 1.
        meta: The object's metadata.
        attempt: 16 random hex digits that name the folder of the object's files.
        files: The object's files.
        author: The writer, `user@host`.
        time: Time of the commit, ISO 8601 in UTC.
        command: The command line of the writer.
        check: Hex blake3-256 of the record's canonical JSON without this field.
    """

    version: int
    meta: Meta
    attempt: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}\\Z")]
    files: Annotated[tuple[File, ...], msgspec.Meta(max_length=MAX_FILES)]
    author: str
    time: str
    command: str
    check: str = ""

    @property
    def path(self) -> str:
        """Path of the object that this record makes visible."""
        return meta_path(self.meta)

    @property
    def folder(self) -> str:
        """Path of the folder that contains the object's files."""
        return f"{self.path}/{self.attempt}"

    @property
    def bytes(self) -> int:
        """Total size of the object's files in bytes."""
        return sum(file.bytes for file in self.files)

    @property
    def id(self) -> str:
        """Hex blake3-128 of the object's path."""
        return hashing.object_id(self.path)


def meta_path(meta: Meta) -> str:
    """Return the path, inside the store, of the object that `meta` describes."""
    if isinstance(meta, FramesMeta):
        return names.frames_path(meta.game, meta.segment)
    if isinstance(meta, SegmentMeta):
        return names.segment_path(meta.game, meta.segment)
    if isinstance(meta, EmbeddingMeta):
        return names.embedding_path(meta.game, meta.model, meta.segment)
    return names.model_path(meta.model)


def dependencies(meta: Meta) -> tuple[str, ...]:
    """Return the paths of the objects that an embedding depends on, which are committed before it."""
    if isinstance(meta, EmbeddingMeta):
        return names.model_path(meta.model), names.segment_path(meta.game, meta.segment)
    return ()


def record_path(path: str) -> str:
    """Return the path of the record that makes the object at `path` visible."""
    return names.commit_path(hashing.object_id(path))


def seal(commit: Commit) -> Commit:
    """Return the record with `check` filled in."""
    bare = msgspec.structs.replace(commit, check="")
    return msgspec.structs.replace(commit, check=hashing.checksum(hashing.canonical(bare)))


def write_commit(commit: Commit) -> bytes:
    """Seal a record and return it as canonical JSON."""
    return hashing.canonical(seal(commit))


def read_commit(data: bytes, where: str) -> Commit:
    """Parse a commit record.

    Args:
        where: The record's path inside the store, for messages.

    Raises:
        DamagedError: If the bytes are not a complete, consistent record.
        ConflictError: If the record has another version, which is not damage.
    """
    head = read_json(data, _Head, where)  # Records of later versions have other fields.
    if head.check != _checksum(data, head.check):
        raise _damaged(where, "its checksum does not fit its content")
    if head.version != VERSION:
        raise ConflictError(
            "other-format",
            f"{where} is a record of version {head.version}; this wsa reads version {VERSION}. "
            "Update wsa.",
        )
    commit = read_json(data, Commit, where)
    if hashing.canonical(commit) != data:
        raise _damaged(where, "it is not canonical JSON")
    try:
        expected = names.commit_path(commit.id)
    except ValueError as error:
        raise _damaged(where, str(error)) from None
    if where != expected:
        raise _damaged(where, f"it belongs at {expected}")
    for file in commit.files:
        if not _FILE.fullmatch(file.name):
            raise _damaged(where, f"it names a file {file.name!r}")
    limit = _max_bytes(commit.meta)
    if commit.bytes > limit:
        why = f"its files would have {commit.bytes} bytes, and {limit} at most can be right"
        raise _damaged(where, why)
    return commit


def _max_bytes(meta: Meta) -> int:
    """Return an upper limit on the size of an object's files: incompressible arrays and padding.

    The limit is 0 if the metadata claims an array above `MAX_ARRAY_BYTES`, which is never valid.
    """
    if isinstance(meta, ModelMeta):
        return MAX_MODEL_BYTES
    if isinstance(meta, FramesMeta):
        array_bytes = meta.frames * meta.height * meta.width * (1 if meta.indexed else 3)
    elif isinstance(meta, SegmentMeta):
        array_bytes = 32 * meta.rows + hashing.DIGEST_BYTES * meta.frames
    else:
        array_bytes = math.prod(meta.shape) * (2 if meta.dtype == "float16" else 4)
    return 2 * array_bytes + (2 << 20) if array_bytes <= MAX_ARRAY_BYTES else 0


def _checksum(data: bytes, check: str) -> str:
    """Compute the checksum of the record `data`, whose `check` field is `check`."""
    # Quotes inside strings are escaped, so this matches only the field itself.
    return hashing.checksum(data.replace(b'"check":"%s"' % check.encode(), b'"check":""', 1))


class _Head(msgspec.Struct):
    """Fields that records of every version have, to tell a newer record from a damaged one."""

    version: int
    check: str


T = TypeVar("T")


def read_json(data: bytes, kind: type[T], where: str, limit_bytes: int = MAX_RECORD_BYTES) -> T:
    """Decode JSON strictly into `kind`, with a size limit.

    Raises:
        DamagedError: If the data is too large, not JSON, or not of that type.
    """
    if len(data) > limit_bytes:
        raise _damaged(where, f"it has {len(data)} bytes")
    _prepare(kind)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _damaged(where, str(error)) from None


_prepared: set[Any] = set()
_prepare_lock = threading.Lock()


def _prepare(kind: Any) -> None:
    """Make msgspec inspect a type in one thread: several at once can crash the process."""
    if kind not in _prepared:
        with _prepare_lock:
            msgspec.json.Decoder(kind)
            _prepared.add(kind)


def _damaged(where: str, why: str) -> DamagedError:
    return DamagedError(
        "bad-record",
        f"{where} is damaged: {why}. 'wsa verify' shows what it concerns; 'wsa verify --repair' "
        "moves what is left to damaged/, and says what to run to make the object again.",
    )
