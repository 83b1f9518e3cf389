"""Training frames for encoders: read once, in sequence, and kept in memory.

Segments of any policy are mixed frame by frame: every step of a game is drawn equally often, and so
is every game. (The paper drew half of its mixed data from each policy by *episode*, so that long
games dominated.) Whole episodes are held out, the same ones for every encoder and seed, so that no
validation frame neighbors a training frame.

Frames are stored as whole gray levels, as `wsa.encode.inference.preprocess` makes them from
screens, so a network is trained on exactly what it sees in use.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.encode.inference.preprocess import preprocess
from wsa.learn.pretrain.trainee import TrainingInput
from wsa.store.common import hashing, names
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.format.records import SegmentMeta
from wsa.store.format.windows import episode_starts
from wsa.store.objects.snapshot import Snapshot

_FRAMES_PER_BLOCK = 64

Rows = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The segments to read, in order, with their number of distinct frames.

    `left_out` counts frames of the requested games and policies that do not fit into memory.
    """

    segments: tuple[SegmentMeta, ...]
    frames: int
    left_out: int


def choose(
    snapshot: Snapshot,
    games: Sequence[str],
    policies: Sequence[str],
    training_inputs: Sequence[TrainingInput],
    memory: int,
) -> Choice:
    """Choose segments of some games and policies, as many as fit into memory.

    If not all fit, each game gets the same share of memory. It is filled with segments in an order
    that depends only on their names.

    Args:
        policies: Names of policies; empty for all.
        training_inputs: Inputs of the networks that are trained one after another.
        memory: Memory for frames, in bytes.

    Raises:
        MissingError: If a game has no frames of these policies.
        UsageError: If not even one segment of each game fits.
    """
    size = max(sees.height * sees.width for sees in training_inputs)
    share = memory // size // len(games)
    chosen: list[SegmentMeta] = []
    total = 0
    for game in games:
        available = snapshot.segments_with_frames(game)
        stored_policies = sorted({m.policy for m in available})
        matching = [m for m in available if not policies or m.policy in policies]
        if not matching:
            who = (
                f" played by {', '.join(policies)} (available: {', '.join(stored_policies)})"
                if stored_policies
                else ""
            )
            raise MissingError(
                "no-frames",
                f"The store {snapshot.backend.url} has no frames of {game}{who}. Collect some: wsa "
                f"collect --game {game}",
            )
        total += sum(m.frames for m in matching)
        matching.sort(key=lambda m: hashing.object_id(m.segment))
        ends = itertools.accumulate(m.frames for m in matching)
        fitting = [m for m, end in zip(matching, ends, strict=True) if end <= share]
        if not fitting:
            raise UsageError(
                f"No segment of {game} fits into its share of the memory, "
                f"{share * size / 1e9:.3f} GB. Raise --memory-gb, or name fewer games."
            )
        chosen += sorted(fitting, key=lambda m: m.segment)
    taken = sum(m.frames for m in chosen)
    return Choice(tuple(chosen), taken, total - taken)


def data_digest(snapshot: Snapshot, segments: Sequence[SegmentMeta]) -> str:
    """Hex blake3-256 of every byte of some segments and their frames."""
    paths = [(names.segment_path(m.game, m.segment), names.frames_path(m.game, m.segment))
             for m in segments]  # fmt: skip
    return hashing.identity([[snapshot.commit(path).check for path in pair] for pair in paths])


@dataclasses.dataclass(frozen=True)
class Part:
    """A segment in memory; each array has shape (rows,).

    Rows and frames are numbered over all segments.

    Attributes:
        frame: Frame of each row.
        first, last: First and last row of each row's episode within the segment.
        episode: Number of the episode in its environment's run.
        usable: Whether an example may end at the row.
    """

    frame: Rows
    first: Rows
    last: Rows
    episode: NDArray[np.int32]
    usable: NDArray[np.bool_]


class Examples:
    """Training and held-out examples: frames in memory, and the rows at which examples end.

    An example is one frame or several, as the network's input requires.

    Attributes:
        training, held_out: By game, rows of the newest (or only) frame of each example.
        episodes: By game, numbers of training and of held-out episodes.
    """

    def __init__(
        self, training_input: TrainingInput, pixels: NDArray[np.uint8], parts: Sequence[Part]
    ) -> None:
        self.training_input = training_input
        self._pixels = pixels
        self._frame, self._first, self._last = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("frame", "first", "last")
        )
        self.training: dict[str, Rows] = {}
        self.held_out: dict[str, Rows] = {}
        self.episodes: dict[str, tuple[int, int]] = {}

    def split(self, game: str, training: Rows, held_out: Rows, episodes: tuple[int, int]) -> None:
        """Add a game's rows."""
        self.training[game], self.held_out[game] = training, held_out
        self.episodes[game] = episodes

    @property
    def steps(self) -> int:
        """Number of training examples."""
        return sum(map(len, self.training.values()))

    def draw(self, seed: int, step: int, batch_size: int) -> Tensor:
        """Draw the batch of a gradient step; it depends only on the arguments and the data.

        Returns:
            Frames (batch_size, frames, height, width), uint8, oldest first.
        """
        generator = np.random.default_rng([seed, step])
        games = list(self.training)
        if self.training_input.one_game:
            games = [games[step % len(games)]]
        # Each game equally often, over the steps.
        counts = collections.Counter(
            games[i % len(games)] for i in range(step * batch_size, (step + 1) * batch_size)
        )
        rows = []
        for game, count in counts.items():
            candidates = self.training[game]
            # No repeats within a batch: a contrastive network would have to tell an example from
            # itself.
            chosen = generator.choice(
                len(candidates), count, replace=count > len(candidates), shuffle=False
            )
            rows.append(candidates[chosen])
        return self.take(np.concatenate(rows), generator)

    def validation(self, batch_size: int) -> Iterator[tuple[str, Tensor]]:
        """Yield every held-out example once, in the same batches each time, each of one game.

        Yields:
            The game, and frames (at most batch_size, frames, height, width), uint8.
        """
        for game, rows in self.held_out.items():
            generator = np.random.default_rng(0)
            for part in np.array_split(generator.permutation(rows), -(-len(rows) // batch_size)):
                yield game, self.take(part, generator)

    def take(self, rows: Rows, generator: np.random.Generator) -> Tensor:
        """Read the examples at some rows.

        Args:
            rows: Rows, shape (B,).
            generator: Draws the second frame if an example is two frames apart.

        Returns:
            Frames (B, frames, height, width), uint8.
        """
        return torch.from_numpy(self._pixels[self._frame[self.frame_rows(rows, generator)]])

    def frame_rows(self, rows: Rows, generator: np.random.Generator) -> Rows:
        """Rows of the frames of the examples at some rows, shape (B, frames)."""
        first, last = self._first[rows], self._last[rows]
        if self.training_input.apart:
            low = np.maximum(first, rows - self.training_input.apart)
            high = np.minimum(last, rows + self.training_input.apart)
            other = low + generator.integers(0, high - low)
            return np.stack([rows, other + (other >= rows)], axis=1)
        back = np.arange(self.training_input.depth - 1, -1, -1)
        stack: Rows = np.maximum(rows[:, None] - back, first[:, None])
        return stack


def read(
    snapshot: Snapshot,
    segments: Sequence[SegmentMeta],
    training_input: TrainingInput,
    share: float,
    on_frames: Callable[[int], None] = lambda done: None,
) -> Examples:
    """Read segments into memory.

    Args:
        segments: From `choose`.
        training_input: Input of the network.
        share: Share of each game's episodes to hold out; at least one episode.
        on_frames: Called with the number of frames read so far.

    Raises:
        MissingError: If a game has too few episodes to hold one out.
        DamagedError: If stored bytes are not what was committed.
    """
    total = sum(meta.frames for meta in segments)
    pixels = np.empty((total, training_input.height, training_input.width), np.uint8)
    parts: list[Part] = []
    row = frame = 0
    for meta in segments:
        parts.append(_part(snapshot.read_rows(meta), training_input, row, frame))
        screens = snapshot.read_frames(meta)
        for start in range(0, len(screens), _FRAMES_PER_BLOCK):
            block = screens[start : start + _FRAMES_PER_BLOCK]
            pixels[frame + start : frame + start + len(block)] = levels(block, training_input)
            on_frames(frame + start + len(block))
        row += meta.rows
        frame += meta.frames
    examples = Examples(training_input, pixels, parts)
    for game in dict.fromkeys(meta.game for meta in segments):
        members = [(m, p) for m, p in zip(segments, parts, strict=True) if m.game == game]
        _split(examples, game, members, share)
    return examples


def levels(frames: NDArray[np.uint8], training_input: TrainingInput) -> NDArray[np.uint8]:
    """Convert screens (n, H, W, 3) to the gray levels that the network sees: (n, h, w) uint8."""
    scaled = preprocess(torch.from_numpy(np.array(frames)), training_input.sees.preprocessing())
    gray: NDArray[np.uint8] = scaled.squeeze(1).mul_(255).round_().to(torch.uint8).numpy()
    return gray


def scale(examples: Tensor, device: str) -> Tensor:
    """Scale uint8 gray levels to [0, 1] float32, exactly as `preprocess` does in use."""
    return examples.to(device).to(torch.float32).mul_(torch.tensor(1 / 255))


def _part(
    rows: dict[str, NDArray[np.generic]], training_input: TrainingInput, row: int, frame: int
) -> Part:
    index = np.arange(len(rows["frame"]))
    is_first = rows["is_first"].astype(np.bool_)
    first = episode_starts(is_first)
    begins = np.append(np.flatnonzero(is_first[1:]) + 1, len(index))
    last = begins[np.searchsorted(begins, index, side="right")] - 1
    # If the segment was cut inside an episode, an example must not reach before its first row. At
    # the true start of an episode the first frame is repeated, but the example must contain one
    # change.
    needed = np.where(is_first[first], min(1, training_input.depth - 1), training_input.depth - 1)
    usable = (rows["action"].astype(np.int16) >= 0) & (index - first >= needed)
    if training_input.apart:
        usable &= last > first
    return Part(
        rows["frame"].astype(np.int64) + frame,
        first + row,
        last + row,
        rows["episode"].astype(np.int32),
        usable,
    )


def _split(
    examples: Examples, game: str, members: list[tuple[SegmentMeta, Part]], share: float
) -> None:
    """Hold out a share of a game's episodes, chosen by a hash of their names."""
    # Rows of each episode; an episode that is cut into several segments counts once.
    episodes: dict[tuple[str, int, int], list[Rows]] = {}
    for meta, part in members:
        start = part.first.min()
        for number in np.unique(part.episode[part.usable]):
            rows = start + np.flatnonzero(part.usable & (part.episode == number))
            episodes.setdefault((meta.run, meta.env, int(number)), []).append(rows)
    if len(episodes) < 2:
        raise MissingError(
            "no-frames",
            f"{game} has {len(episodes)} episodes, but training needs at least two, because one is "
            f"held out. Collect more, or with more environments: wsa collect --game {game} --num-envs 8",
        )
    order = sorted(episodes, key=hashing.identity)
    count = min(len(order) - 1, math.ceil(share * len(order)))
    held, trained = (
        np.concatenate([rows for name in some for rows in episodes[name]])
        for some in (order[:count], order[count:])
    )
    examples.split(game, np.sort(trained), np.sort(held), (len(order) - count, count))
