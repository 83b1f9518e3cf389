"""What is written as JSON in a store: frozen, typed, versioned, and read back strictly.

A `Commit` makes one object visible. It says in which folder below the object's path the files lie
that its writer wrote (`attempt`: each attempt has a folder of its own, so writers never meet), and
lists them with their lengths and blake3, so a file that is missing, cut or changed is found. It
carries what plans and tables need (`meta`), so that neither has to open an array. A record is canonical JSON with its own checksum:
not one byte of it can differ unnoticed. Unknown fields are refused: a newer wsa that needs another
field writes another version.
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
# wsa writes 22 at most.
MAX_FILES = 64
# Of a model: a basis and its probe vectors.
MAX_MODEL_BYTES = 128 << 20

# Below an object: no empty, hidden or dotted step, nothing that a file system reads in its own way.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One file of an object: path inside its folder, length in bytes, hex blake3-256."""

    name: Annotated[str, msgspec.Meta(max_length=200)]
    bytes: Count
    blake3: str


class Protocol(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """How a game was played: everything that changes what an agent sees or earns.

    Attributes:
        name: `classic`, `v5`, or `custom` where a detail was overridden.
        frame_skip: Emulator frames per step.
        sticky: Probability that the emulator repeats the last action (Machado et al., 2018).
        noop_max: Up to this many no-ops at a reset.
        fire_reset: Whether FIRE is pressed at a reset in games that wait for it.
        full_action_space: All 18 actions, or the game's minimal set.
        max_pool: Pixel-wise maximum over the last two emulator frames of a step.
        max_steps: Steps after which an episode is truncated.
        actions: The meaning of each action index.
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
    """The pictures of a segment's distinct frames: an object of its own, since training needs none.

    Attributes:
        game: ALE game id.
        segment: The segment's id.
        frames: Distinct frames.
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
        run: 12 hex over everything that determines the steps (game, protocol, policy, seed, ...).
        env: Index of the environment within the run.
        start: Steps this environment had played before the segment.
        rows: Rows, observation-only ones included.
        steps: Agent steps, that is rows with an action.
        frames: Distinct frames.
        episodes: Lengths and raw returns of the episodes that ended here, as (steps, return).
        protocol: How the game was played.
        policy: Who played, as given to `wsa collect --policy` or found by `wsa import`.
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
        """How many embeddings it has by a model that looks at `window` frames."""
        return self.frames if window == 1 else self.rows


class EmbeddingMeta(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    gc=False,
    tag="embedding",
):
    """The embeddings of one segment by one model: of its frames, or of its rows' windows.

    Attributes:
        game: ALE game id.
        segment: The segment's id.
        model: The model key.
        shape: Shape of the array, (frames, *embedding shape); (rows, *embedding shape) where the
            model looks at several frames.
        dtype: `float16`, or `float32` where a value exceeds float16's range.
        passes: Frames, or windows, that went through the model for this object.
        copied: Those whose embedding was copied because the same had been encoded before.
        seconds: How long the passes took: what somebody who copies the object is spared.
        window: Consecutive frames the model looks at; 1 is not written.
        engine: What ran it, as `wsa encode --engine` has it; `torch` is not written.
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
        """What its embeddings count of the segment: distinct `frames`, or `rows`."""
        return "frames" if self.window == 1 else "rows"

    def fits(self, segment: SegmentMeta) -> bool:
        """Whether it has as many embeddings as the segment has frames or rows."""
        return self.shape[:1] == (segment.inputs(self.window),)


class ModelMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag="model"):
    """A model's spec, probe vectors and, where its output is reduced, its basis."""

    model: str


Meta = FramesMeta | SegmentMeta | EmbeddingMeta | ModelMeta


class Commit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The record whose publication makes an object visible.

    Attributes:
        version: Version of the record, 1.
        meta: What the object is.
        attempt: 16 hex digits drawn by the writer: the folder of the object's files.
        files: Its files.
        author: Who wrote it, `user@host`.
        time: When, ISO 8601 in UTC.
        command: The command line that wrote it.
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
        """Path of the folder that its files lie in."""
        return f"{self.path}/{self.attempt}"

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.bytes for file in self.files)

    @property
    def id(self) -> str:
        """Hex blake3-128 of the object's path."""
        return hashing.object_id(self.path)


def meta_path(meta: Meta) -> str:
    """Path inside the store of the object that `meta` describes."""
    if isinstance(meta, FramesMeta):
        return names.frames_path(meta.game, meta.segment)
    if isinstance(meta, SegmentMeta):
        return names.segment_path(meta.game, meta.segment)
    if isinstance(meta, EmbeddingMeta):
        return names.embedding_path(meta.game, meta.model, meta.segment)
    return names.model_path(meta.model)


def seal(commit: Commit) -> Commit:
    """Fill in `check`."""
    bare = msgspec.structs.replace(commit, check="")
    return msgspec.structs.replace(commit, check=hashing.checksum(hashing.canonical(bare)))


def write_commit(commit: Commit) -> bytes:
    """Canonical JSON of a sealed record."""
    return hashing.canonical(seal(commit))


def read_commit(data: bytes, where: str) -> Commit:
    """Parse a commit record.

    Args:
        data: The file's bytes.
        where: The record's path inside the store, for messages.

    Raises:
        DamagedError: The bytes are not a whole and consistent record.
        ConflictError: It is of another version: no damage, and nothing to repair.
    """
    head = read_json(data, _Head, where)  # First: later ones have other fields.
    if head.check != _check(data, head.check):
        raise DamagedError("bad-record", _damaged(where, "its checksum does not fit its content"))
    if head.version != VERSION:
        raise ConflictError(
            "other-format",
            f"{where} is a record of version {head.version}; this wsa reads version {VERSION}. "
            "Update wsa.",
        )
    commit = read_json(data, Commit, where)
    if hashing.canonical(commit) != data:
        raise DamagedError("bad-record", _damaged(where, "it is not canonical JSON"))
    try:
        expected = names.commit_path(commit.id)
    except ValueError as error:
        raise DamagedError("bad-record", _damaged(where, str(error))) from None
    if where != expected:
        raise DamagedError("bad-record", _damaged(where, f"it belongs at {expected}"))
    for file in commit.files:
        if not _FILE.fullmatch(file.name):
            raise DamagedError("bad-record", _damaged(where, f"it names a file {file.name!r}"))
    most = _most_bytes(commit.meta)
    if commit.bytes > most:
        why = f"its files would have {commit.bytes} bytes, and {most} at most can be right"
        raise DamagedError("bad-record", _damaged(where, why))
    return commit


def _most_bytes(meta: Meta) -> int:
    """Bytes of all files of an object: arrays that nothing compresses, padded to whole chunks.

    What says that an array is larger than arrays may be has no files that can be right.
    """
    if isinstance(meta, ModelMeta):
        return MAX_MODEL_BYTES
    if isinstance(meta, FramesMeta):
        largest = meta.frames * meta.height * meta.width * (1 if meta.indexed else 3)
    elif isinstance(meta, SegmentMeta):
        largest = 32 * meta.rows + hashing.DIGEST_BYTES * meta.frames
    else:
        largest = math.prod(meta.shape) * (2 if meta.dtype == "float16" else 4)
    return 2 * largest + (2 << 20) if largest <= MAX_ARRAY_BYTES else 0


def _check(data: bytes, check: str) -> str:
    """What `check` must be in the record `data` that says `check`."""
    # A quote inside a string is escaped, so this is the field itself.
    return hashing.checksum(data.replace(b'"check":"%s"' % check.encode(), b'"check":""', 1))


class _Head(msgspec.Struct):
    """What records of every version have, to distinguish a later one from a damaged one."""

    version: int
    check: str


T = TypeVar("T")


def read_json(data: bytes, kind: type[T], where: str, limit_bytes: int = MAX_RECORD_BYTES) -> T:
    """Decode JSON strictly into `kind`, with a size limit and no surprises.

    Raises:
        DamagedError: Too large, not JSON, or not of that type.
    """
    if len(data) > limit_bytes:
        raise DamagedError("bad-record", _damaged(where, f"it has {len(data)} bytes"))
    _prepare(kind)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedError("bad-record", _damaged(where, str(error))) from None


_prepared: set[Any] = set()
_preparing = threading.Lock()


def _prepare(kind: Any) -> None:
    """Let msgspec look at a type in one thread: the process can crash where several are the first."""
    if kind not in _prepared:
        with _preparing:
            msgspec.json.Decoder(kind)
            _prepared.add(kind)


def _damaged(where: str, why: str) -> str:
    return (
        f"{where} is damaged: {why}. 'wsa verify' shows what it concerns; 'wsa verify --repair' "
        "moves what is left to damaged/, and says what to run to make the object again."
    )


def to_builtins(value: Any) -> Any:
    """Plain dicts and lists, for printing as JSON."""
    return msgspec.to_builtins(value)
