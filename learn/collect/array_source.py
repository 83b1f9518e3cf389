"""Plain arrays as an import source: an `.npz` file, a Zarr folder, or an export of wsa.

Names and order are Gymnasium's. Row i has an observation, then the action taken there and its
reward and ends:

    observations   (N, H, W, 3) uint8, or (N, H, W) uint8 with `palette` (P, 3) uint8
    actions        (N,) integers
    rewards        (N,) raw
    terminations   (N,) whether the action ended the game
    truncations    (N,) whether the episode was cut off after the action
    lives          (N,) if known

Episodes follow one another. An episode's last observation is stored in one of two ways:

- *in place*: an episode of T steps has T + 1 rows. The last row has action -1, reward 0, and no
  end. If no row before it has an end, the episode counts as truncated there.
- *apart*: an episode of T steps has T rows, and `final_observations` (E, H, W, 3) has one image for
  each of the E episodes. It may be left out if every episode is terminated: nothing is learned from
  the frame on which a game ended, so the last observation is repeated, as ALE itself does.

`frames` (F, ...) with `frame_index` (N,) may replace `observations`, and columns may have the names
of a store's rows. Rows marked in `context` are skipped. So an export of wsa is such a folder.
"""

from __future__ import annotations

import contextlib
import functools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zarr
from numpy.typing import NDArray

from wsa.learn.collect.recorder import NO_ACTION
from wsa.learn.collect.sources import Episode, PartialProtocol, make_episode, refuse_screens
from wsa.learn.envs import atari as games
from wsa.store.common import hashing
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.format.records import Protocol

# Accepted names of each column; messages use the first.
_NAMES = {
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "terminations": ("terminations", "terminated"),
    "truncations": ("truncations", "truncated"),
    "frame_index": ("frame_index", "frame"),
    "context": ("context",),
    "lives": ("lives",),
}
_NEEDED = ("actions", "rewards", "terminations", "truncations")


class Arrays:
    """Named arrays as a `Source`.

    Args:
        path: An `.npz` file, which must fit into memory, or a folder of Zarr format 3.

    Raises:
        MissingError: If `path` does not exist.
        UsageError: If it is neither, or an array is missing or has a wrong shape or type.
    """

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        self._arrays, attributes = _open(path)
        self.lossy = False
        self.actions = 0
        self.game, self.policy, self.facts = _stated_facts(self._name, attributes)
        columns = {name: self._column(name) for name in _NAMES}
        missing = [name for name in _NEEDED if columns[name] is None]
        if missing:
            raise self._refuse(
                f"there is no array {' and no '.join(missing)}; there are "
                f"{', '.join(sorted(self._arrays)) or 'none'}"
            )
        self._columns = {name: array for name, array in columns.items() if array is not None}
        lengths = {name: array.shape for name, array in self._columns.items()}
        if len(set(lengths.values())) != 1 or self._columns["actions"].ndim != 1:
            raise self._refuse(f"these must be columns of one length, and are {lengths}")
        self._pictures = "frames" if "frames" in self._arrays else "observations"
        if self._pictures not in self._arrays:
            raise self._refuse("there is no array observations")
        if self._pictures == "observations":
            self._columns["frame_index"] = np.arange(len(self._columns["actions"]))
        elif "frame_index" not in self._columns:
            raise self._refuse("there are frames but no frame_index says which row shows which")
        index = self._columns["frame_index"]
        count = self._arrays[self._pictures].shape[0]
        if index.dtype.kind not in "iu" or not len(index):
            raise self._refuse(f"frame_index is {index.dtype} of length {len(index)}")
        if index.min() < 0 or index.max() >= count:
            raise self._refuse(f"rows show frames {index.min()} to {index.max()} of {count}")
        context = self._columns.pop("context", np.zeros(len(index), np.bool_)).astype(np.bool_)
        self._columns = {name: array[~context] for name, array in self._columns.items()}
        self._episodes = list(self._cut())
        self.steps = sum(rows.stop - rows.start for rows, _ in self._episodes)

    def check_screens(self, game: str) -> None:
        """See `Source.check_screens`."""
        screen = games.screen(game)
        for name in ("observations", "frames", "final_observations"):
            array = self._arrays.get(name)
            if array is None:
                continue
            indexed = "palette" in self._arrays and array.shape[1:] == screen
            if array.dtype != np.uint8 or not (indexed or array.shape[1:] == (*screen, 3)):
                raise refuse_screens(self._name, f"{array.shape} {array.dtype}", game)
        palette = self._arrays.get("palette")
        if palette is not None and (palette.dtype != np.uint8 or palette.shape[1:] != (3,)):
            raise self._refuse(f"palette is {palette.shape} {palette.dtype}, not (P, 3) uint8")

    def episodes(self) -> Iterator[Episode]:
        """See `Source.episodes`. Screens are read on demand."""
        for number, (rows, final) in enumerate(self._episodes):
            cut = {name: array[rows] for name, array in self._columns.items()}
            lives = cut.get("lives")
            if lives is not None:
                last = self._columns["lives"][rows.stop] if final is None else 0
                lives = np.append(lives, last)
            where = f"{self._name}, episode {number} (rows {rows.start} to {rows.stop - 1})"
            yield make_episode(
                where,
                self._screens(rows, final),
                cut["actions"],
                cut["rewards"],
                cut["terminations"],
                cut["truncations"],
                lives,
            )

    def _cut(self) -> Iterator[tuple[slice, int | None]]:
        """Yield each episode's rows, and the index of its final observation.

        The index is None if the final observation is in place, and -1 if the last observation is
        repeated instead.
        """
        actions = self._columns["actions"]
        ended, cut = self._columns["terminations"] != 0, self._columns["truncations"] != 0
        if (actions == NO_ACTION).any():
            last_rows = np.flatnonzero(actions == NO_ACTION)
            if last_rows[-1] != len(actions) - 1:
                raise self._refuse(
                    f"the last episode has no last observation: row {len(actions) - 1} has action "
                    f"{actions[-1]}, and must be one more, with action -1"
                )
            if (ended | cut)[last_rows].any() or (self._columns["rewards"][last_rows] != 0).any():
                raise self._refuse("a row with action -1 has a reward or an end; nothing was done")
            start = 0
            for stop in last_rows.tolist():
                if stop == start:
                    raise self._refuse(f"row {stop} has action -1 and belongs to no episode")
                yield slice(start, stop), None
                start = stop + 1
            return
        ends = np.flatnonzero(ended | cut)
        if not len(ends) or ends[-1] != len(actions) - 1:
            raise self._refuse(
                "the last episode has no end. Mark its last step in truncations, and give the "
                "observation that followed"
            )
        final = self._arrays.get("final_observations")
        if final is None and not ended[ends].all():
            at = int(ends[np.argmin(ended[ends])])
            raise self._refuse(
                f"the episode that was cut after row {at} has no last observation, whose value "
                "learning needs. Add a row for it with action -1 (and so for every episode), or "
                "give final_observations"
            )
        if final is not None and final.shape[0] != len(ends):
            raise self._refuse(
                f"there are {len(ends)} episodes and {final.shape[0]} final_observations"
            )
        start = 0
        for number, end in enumerate(ends.tolist()):
            yield slice(start, end + 1), -1 if final is None else number
            start = end + 1

    def _screens(self, rows: slice, final: int | None) -> Callable[[int, int], NDArray[np.uint8]]:
        index = self._columns["frame_index"]

        def screens(start: int, stop: int) -> NDArray[np.uint8]:
            wanted = np.arange(rows.start + start, rows.start + stop)
            inside = wanted if final is None else wanted[wanted < rows.stop]
            if len(inside) == len(wanted):
                return self._rgb(self._pictures, index[inside])
            if final == -1:
                return self._rgb(self._pictures, index[np.minimum(wanted, rows.stop - 1)])
            assert final is not None
            last = self._rgb("final_observations", np.array([final]))
            return np.concatenate([self._rgb(self._pictures, index[inside]), last])

        return screens

    def _rgb(self, name: str, at: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read frames `at` of an array as RGB."""
        array, (distinct, inverse) = self._arrays[name], np.unique(at, return_inverse=True)
        if not len(at):
            return np.zeros((0, *array.shape[1:3], 3), np.uint8)
        first, last = int(distinct[0]), int(distinct[-1])
        with self._reading(name):
            if last - first < 2 * len(distinct):  # Close together: read the whole range at once.
                frames = np.asarray(array[first : last + 1])[distinct - first]
            elif isinstance(array, zarr.Array):
                frames = np.asarray(array.oindex[distinct])
            else:
                frames = array[distinct]
        if frames.ndim == 3:
            palette = np.asarray(self._arrays["palette"])
            if frames.max() >= len(palette):
                raise self._refuse(f"{name} shows color {frames.max()} of {len(palette)}")
            frames = palette[frames]
        if name == "frames" and self._digests is not None:
            # Zarr returns zeros for a missing chunk.
            for place, frame in zip(distinct.tolist(), frames, strict=True):
                if hashing.frame_digest(frame) != self._digests[place].tobytes():
                    raise self._refuse(f"frame {place} is not the one whose digest it has")
        result: NDArray[np.uint8] = frames[inverse]
        return result

    @functools.cached_property
    def _digests(self) -> NDArray[np.uint8] | None:
        """Digests of `frames`, which an export has; otherwise None."""
        digests = self._arrays.get("digest")
        if digests is None or digests.shape != (
            self._arrays["frames"].shape[0],
            hashing.DIGEST_BYTES,
        ):
            return None
        with self._reading("digest"):
            return np.asarray(digests, np.uint8)

    def _column(self, name: str) -> NDArray[Any] | None:
        for spelled in _NAMES[name]:
            if spelled in self._arrays:
                with self._reading(spelled):
                    return np.asarray(self._arrays[spelled])
        return None

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Turn a codec's exception into a UsageError."""
        try:
            yield
        except (ValueError, RuntimeError, OSError) as error:
            raise self._refuse(f"{name} cannot be read: {error}") from None

    def _refuse(self, why: str) -> UsageError:
        return UsageError(
            f"{self._name}: {why}. docs/howto/exchange.md shows the arrays that 'wsa import "
            "arrays' takes."
        )


def _open(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Open a file or folder, and return its arrays by name and its attributes."""
    if not path.exists():
        raise MissingError("no-frames", f"There is no {path}. Give an .npz file or a Zarr folder.")
    try:
        if path.is_dir():
            # Only format 3: older formats may name codecs that execute code.
            group = zarr.open_group(path, mode="r", zarr_format=3)
            arrays: dict[str, Any] = dict(group.arrays())
            attributes = group.attrs.asdict()
        elif not zipfile.is_zipfile(path):  # numpy's own message is to load it unsafely.
            raise ValueError("it is not a zip archive")
        else:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                arrays, attributes = {name: found[name] for name in found.files}, {}
    except (
        *(ValueError, TypeError, KeyError, OSError, EOFError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise UsageError(
            f"{path} is neither an .npz file of plain arrays nor a Zarr group of format 3: {error}"
        ) from None
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or not array.ndim:
            arrays = {key: value for key, value in arrays.items() if key != name}
    return arrays, attributes


def _stated_facts(name: str, attributes: Mapping[str, Any]) -> tuple[str, str, PartialProtocol]:
    """Return the game, policy, and facts from an export's attributes; empty for other arrays."""
    if "wsa_export" not in attributes:
        return "", "", PartialProtocol()
    try:
        runs = list(attributes["runs"].values())
        protocols = {msgspec.convert(run["protocol"], Protocol) for run in runs}
        policies = sorted({str(run["policy"]) for run in runs})
        game = str(attributes["game"])
    except (KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
        raise UsageError(f"{name} is an export whose attributes are damaged: {error}.") from None
    if len(protocols) != 1:
        raise UsageError(
            f"{name} holds play under {len(protocols)} protocols, which must not be mixed. Export "
            "stores, not mixtures: 'wsa merge' brings everything of one store into another."
        )
    played = msgspec.structs.asdict(protocols.pop())
    facts = {field: played[field] for field in PartialProtocol.__dataclass_fields__}
    return game, "+".join(policies), PartialProtocol(**facts)
