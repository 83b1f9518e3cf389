"""Objects of a store without an emulator or a model, and processes to kill.

The fixture `kit` of `tests/conftest.py` is this module. As a program it does one of `VERBS`. A
`Nursery` forks such processes from a parent that has imported everything, so that a test can start
and kill dozens of them in a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.format import arrays as layout
from wsa.store.format.records import EmbeddingMeta, ModelMeta, Protocol, SegmentMeta
from wsa.store.maintenance.verify import Damage, Report
from wsa.store.objects import flat_map, writer
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, arrays_of, take_snapshot

GAME = "Pong"
RUN = "0123456789ab"
PROTOCOL = Protocol(
    name="v5",
    frame_skip=4,
    sticky=0.25,
    noop_max=0,
    fire_reset=False,
    full_action_space=False,
    max_pool=True,
    max_steps=27000,
    actions=("NOOP", "FIRE", "RIGHT"),
)


def key(alias: str = "lite0") -> str:
    """A model key that depends on the alias alone."""
    return names.make_model_key(alias, hashing.identity(alias))


def fake_segment(
    number: int = 0,
    *,
    game: str = GAME,
    run: str = RUN,
    env: int = 0,
    steps: int = 12,
    frames: int | None = None,
    height: int = 6,
    width: int = 5,
    indexed: bool = True,
    ends: tuple[int, ...] = (),
    cut: bool = False,
) -> tuple[SegmentMeta, layout.Arrays]:
    """A valid segment of noise, which is the same for the same arguments.

    Args:
        number: Its number in the run; it begins at step `number * steps`.
        steps: Number of steps.
        frames: Number of distinct frames; as many as rows if not given.
        indexed: Whether frames are palette indices, not RGB.
        ends: Steps of the segment, from 0, after which an episode ends.
        cut: Whether it begins inside of an episode, with three rows of context.
    """
    rng = np.random.default_rng([number, env, steps, *game.encode(), int(run, 16)])
    kinds: list[tuple[bool, bool, int, bool]] = []  # context, is_first, action, ended
    kinds += [(True, False, -1, False)] * 3 if cut else []
    first = not cut
    for step in range(steps):
        kinds.append((False, first, int(rng.integers(3)), step in ends))
        first = step in ends
        if first or step == steps - 1:
            kinds.append((False, False, -1, False))
    rows = len(kinds)
    count = min(frames or rows, rows)
    if indexed:
        pixels = rng.integers(0, 256, (count, height, width), np.uint8)
        palette = rng.permutation(256).astype(np.uint8)[:, None].repeat(3, axis=1)
        rgb = palette[pixels]
    else:
        palette = None
        rgb = pixels = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    frame = np.concatenate([np.arange(count), rng.integers(0, count, rows - count)])
    arrays: layout.Arrays = {
        "frames": pixels,
        "digest": np.frombuffer(
            b"".join(hashing.frame_digest(frame) for frame in rgb), np.uint8
        ).reshape(-1, hashing.DIGEST_BYTES),
        "frame": frame.astype(np.int32),
        "action": np.array([k[2] for k in kinds], np.int16),
        "reward": rng.integers(-1, 2, rows).astype(np.float32),
        "terminated": np.array([k[3] for k in kinds]),
        "truncated": np.zeros(rows, np.bool_),
        "is_first": np.array([k[1] for k in kinds]),
        "context": np.array([k[0] for k in kinds]),
        "lives": rng.integers(0, 4, rows).astype(np.uint8),
        "episode": np.cumsum([k[1] for k in kinds]).astype(np.int32),
    }
    if palette is not None:
        arrays["palette"] = palette
    start = number * steps
    meta = SegmentMeta(
        game=game,
        segment=names.make_segment(run, env, start, steps),
        run=run,
        env=env,
        start=start,
        rows=rows,
        steps=steps,
        frames=count,
        episodes=tuple((end + 1, 1.5) for end in ends),
        protocol=PROTOCOL,
        policy="random",
        seed=7,
        emulator=("0.12.0", "60e0ea3cbe0913d39803477945e9e5ec"),
    )
    return meta, arrays


def fake_embedding(
    meta: SegmentMeta,
    model: str,
    shape: tuple[int, ...] = (3,),
    dtype: str = "float16",
    scale: float = 1.0,
    window: int = 1,
) -> tuple[EmbeddingMeta, NDArray[Any]]:
    """Embeddings of a segment that depend only on the model and on the digests of the frame or window."""
    _, arrays = by_id(meta)
    seeds = arrays["digest"].view("<u4")
    if window > 1:
        seeds = seeds[arrays["frame"][window_of(arrays, window)]].reshape(meta.rows, -1)
    noise = [np.random.default_rng([*model.encode(), *row]).normal(size=shape) for row in seeds]
    array = np.asarray(noise).reshape(len(seeds), *shape) * scale
    array = array.astype(dtype)
    embedding_meta = EmbeddingMeta(
        meta.game, meta.segment, model, array.shape, dtype, len(seeds), 0, 0.5, window
    )
    return embedding_meta, array


def window_of(rows: layout.Arrays, window: int) -> list[list[int]]:
    """The rows of each row's window, oldest first, by a slow and simple method."""
    windows = []
    for row in range(len(rows["is_first"])):
        of = [row]
        while len(of) < window:
            of.insert(0, of[0] if rows["is_first"][of[0]] or of[0] == 0 else of[0] - 1)
        windows.append(of)
    return windows


_MADE: dict[str, tuple[SegmentMeta, layout.Arrays]] = {}


def by_id(meta: SegmentMeta) -> tuple[SegmentMeta, layout.Arrays]:
    """The segment that `add_segment` put into a store."""
    return _MADE[f"{meta.game}/{meta.segment}"]


def add_segment(
    backend: Backend, number: int = 0, **options: Any
) -> tuple[SegmentMeta, layout.Arrays]:
    """Commit a `fake_segment`."""
    meta, arrays = remember(number, **options)
    writer.commit_segment(backend, meta, arrays)
    return meta, arrays


def remember(number: int = 0, **options: Any) -> tuple[SegmentMeta, layout.Arrays]:
    """Make a `fake_segment` that `fake_embedding` and `by_id` know."""
    meta, arrays = fake_segment(number, **options)
    _MADE[f"{meta.game}/{meta.segment}"] = meta, arrays
    return meta, arrays


def add_embedding(backend: Backend, meta: SegmentMeta, model: str, **options: Any) -> NDArray[Any]:
    """Commit a `fake_embedding`."""
    embedding_meta, array = fake_embedding(meta, model, **options)
    writer.commit_embedding(backend, embedding_meta, array)
    return array


def add_model(backend: Backend, model: str) -> dict[str, bytes]:
    """Commit a model's files."""
    files = {"spec.json": f'{{"key":"{model}"}}'.encode(), "probe.safetensors": bytes(range(200))}
    writer.commit_model(backend, ModelMeta(model), files)
    return files


def damage_beside_models(report: Report) -> list[Damage]:
    """Damage, except the missing records of models, for tests that write none."""
    return [one for one in report.damage if one.segment or one.attempt]


def check_whole(snapshot: Snapshot, segments: list[SegmentMeta], models: list[str]) -> int:
    """Read and compare the objects of these segments that a snapshot has; returns their number."""
    count = 0
    for meta in segments:
        _, arrays = by_id(meta)
        for path in segment_paths(meta):
            if path in snapshot.commits:
                count += 1
                for name in arrays_of(snapshot.commits[path].meta):
                    np.testing.assert_array_equal(snapshot.read_array_at(path, name), arrays[name])
        for model in models:
            if names.embedding_path(meta.game, model, meta.segment) in snapshot.commits:
                count += 1
                np.testing.assert_array_equal(
                    snapshot.read_embedding(meta.game, model, meta.segment),
                    fake_embedding(meta, model)[1],
                )
    return count


def paths(backend: Backend, prefix: str = "") -> list[str]:
    """Paths of all files below a folder, sorted."""
    return sorted(entry.path for entry in backend.list(prefix))


def all_files(backend: Backend) -> dict[str, bytes]:
    """Every file of a store."""
    return {path: backend.get(path) for path in paths(backend)}


def segment_paths(meta: SegmentMeta) -> list[str]:
    """Paths of a segment's two objects."""
    return [
        names.frames_path(meta.game, meta.segment),
        names.segment_path(meta.game, meta.segment),
    ]


# The tasks of the nursery's children. Each acknowledges what it has done by a line in its log.


def write_all(
    say: Callable[[str], None],
    url: str,
    numbers: list[int],
    aliases: list[str],
    calls: int | None = None,
) -> None:
    """Commit segments and their embeddings in this order; die after `calls` system calls."""
    if calls is not None:
        left = iter(range(calls))

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args)

            return call

        os.fsync, os.link, os.open = counted(os.fsync), counted(os.link), counted(os.open)
    backend = open_store(url, create=True)
    for number in numbers:
        meta, arrays = remember(number)
        won = writer.commit_segment(backend, meta, arrays)
        for path in segment_paths(meta):
            say(f"{path} {won:d}")
        for alias in aliases:
            embedding_meta, array = fake_embedding(meta, key(alias))
            won = writer.commit_embedding(backend, embedding_meta, array)
            say(f"{names.embedding_path(meta.game, key(alias), meta.segment)} {won:d}")


def put(say: Callable[[str], None], url: str, path: str, content: str, at: float) -> None:
    """Publish one file at a given moment."""
    backend = open_store(url)
    time.sleep(max(0.0, at - time.time()))
    say(f"{backend.put_new(path, content.encode() * 5000):d}")


def start_store(say: Callable[[str], None], url: str, at: float) -> None:
    """Start a store at a given moment, and put a file into it."""
    time.sleep(max(0.0, at - time.time()))
    backend = open_store(url, create=True)
    backend.put_new(f"games/{os.getpid()}", b"x")
    say("1")


def count(say: Callable[[str], None], url: str, cache: str, at: float) -> None:
    """Take three snapshots from a given moment on; the first reads records that are in no cache."""
    os.environ["WSA_CACHE"] = cache
    time.sleep(max(0.0, at - time.time()))
    for _ in range(3):
        commits = take_snapshot(open_store(url)).commits
        say(f"{len(commits)} {hashing.identity(sorted(c.check for c in commits.values()))}")


def materialize(
    say: Callable[[str], None], url: str, aliases: list[str], cache: str, slow_s: float
) -> None:
    """Materialize embeddings, and sleep before each segment."""
    read_rows = Snapshot.read_rows

    def slowly(self: Snapshot, meta: SegmentMeta) -> dict[str, NDArray[Any]]:
        say(meta.segment)
        time.sleep(slow_s)
        return read_rows(self, meta)

    Snapshot.read_rows = slowly  # type: ignore[method-assign]
    snapshot = take_snapshot(open_store(url))
    flat = flat_map.materialize(snapshot, GAME, [key(a) for a in aliases], Path(cache))
    say(f"{len(flat.rows)} {hashing.checksum(flat.embeddings.tobytes() + flat.rows.tobytes())}")


def gather(
    say: Callable[[str], None],
    url: str,
    numbers: list[int],
    aliases: list[str],
    cache: str,
    seed: int,
) -> None:
    """Draw batches while others write, until all is there; check that each is consistent.

    Says from how many segments each batch was drawn.
    """
    rng = np.random.default_rng(seed)
    models = [key(alias) for alias in aliases]
    metas = {meta.segment: meta for meta, _ in map(remember, numbers)}
    truth: dict[str, tuple[layout.Arrays, NDArray[Any]]] = {}
    drawn = 0
    while drawn < len(numbers):
        snapshot = take_snapshot(open_store(url))
        encoded = [{meta.segment for meta in snapshot.embeddings(GAME, key)} for key in models]
        chosen = {m.segment for m in snapshot.segments(GAME)}.intersection(*encoded)
        if not chosen:
            continue
        for segment in chosen - truth.keys():
            fused = [fake_embedding(metas[segment], model)[1] for model in models]
            truth[segment] = by_id(metas[segment])[1], np.concatenate(fused, axis=1)
        here = {
            path: commit
            for path, commit in snapshot.commits.items()
            if getattr(commit.meta, "segment", "") in chosen
        }
        flat = flat_map.materialize(Snapshot(snapshot.backend, here), GAME, models, Path(cache))
        # The map's steps are those of the segments in order of their ids, and of no others.
        steps = [
            (s, row) for s in sorted(chosen) for row in np.flatnonzero(_actions(truth[s]) >= 0)
        ]
        assert len(flat.steps) == len(steps)
        for at in rng.integers(len(steps), size=64):
            segment, row = steps[at]
            arrays, embeddings = truth[segment]
            drawn_row = flat.rows[flat.steps[at]]
            for name in ("action", "reward", "lives", "is_first"):
                assert drawn_row[name] == arrays[name][row], (segment, row, name)
            stack = flat.stack(flat.steps[at : at + 1], 4)[0]
            first = np.flatnonzero(arrays["is_first"][: row + 1]).max(initial=0)
            rows = np.maximum(np.arange(row - 3, row + 1), first)
            batch = flat.gather(stack, np.zeros((4, flat.width), flat.embeddings.dtype))
            np.testing.assert_array_equal(batch, embeddings[arrays["frame"][rows]])
        drawn = len(chosen)
        say(str(drawn))


def _actions(of: tuple[layout.Arrays, NDArray[Any]]) -> NDArray[Any]:
    return of[0]["action"]


VERBS = {f.__name__: f for f in (write_all, put, start_store, count, materialize, gather)}
MODULES = ("wsa.store.objects.flat_map", "wsa.store.objects.root")  # What they import.


class Child:
    """A process of the nursery."""

    def __init__(self, process: Any, log: Path) -> None:
        self.process, self._log = process, log

    def said(self) -> list[str]:
        """The whole lines that it has written so far."""
        text = self._log.read_text() if self._log.exists() else ""
        return text.split("\n")[:-1]

    def wait_for(self, lines: int, timeout_s: float) -> bool:
        """Wait until it has written so many lines; returns whether it did in time."""
        end = time.monotonic() + timeout_s
        while len(self.said()) < lines:
            if time.monotonic() > end:
                return False
            time.sleep(0.0005)
        return True


class Nursery:
    """Starts processes that each do one of `VERBS`.

    Args:
        parent: A `warm_process.Nursery` that has imported `MODULES`.
        folder: Where their logs go.
    """

    def __init__(self, parent: Any, folder: Path) -> None:
        self._parent, self._folder = parent, folder
        self._count = 0

    def start(self, verb: str, *args: Any) -> Child:
        """Fork a child that does `verb`."""
        self._count += 1
        log = self._folder / f"{self._count}.log"
        return Child(self._parent.start([__file__, verb, str(log), json.dumps(args)]), log)

    def wait(self, *children: Child) -> list[int]:
        """Wait for each; returns exit codes, negative for a signal. With 1, a traceback is on stderr."""
        return [child.process.wait() for child in children]


def _do(verb: str, log: str, args: str) -> int:
    """Do `verb`. Write each line in one call, so that a kill leaves whole lines and perhaps a part of one."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(line: str) -> None:
        os.write(handle, line.encode() + b"\n")

    try:
        VERBS[verb](say, *json.loads(args))
    except Exception as error:  # noqa: BLE001  The test must see any error.
        traceback.print_exc()
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(_do(*sys.argv[1:]))
