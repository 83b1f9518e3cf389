"""Import recorded data into a store, as segments like those of `wsa collect`.

A source is read twice. The first pass checks and hashes everything; nothing is written unless all
data is valid. The run's name comes from that hash, so equal data is the same run whatever its
format: importing it again does nothing, and an interrupted import continues where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from wsa.learn.collect.array_source import Arrays
from wsa.learn.collect.collect import CollectPlan, Writer, lacking
from wsa.learn.collect.minari_source import open_minari
from wsa.learn.collect.palette import UNSEEN, RGBScreens, Screen
from wsa.learn.collect.recorder import Recorder
from wsa.learn.collect.sources import Episode, PartialProtocol, Source
from wsa.learn.envs import atari as games
from wsa.store.backends.base import Backend
from wsa.store.common import hashing
from wsa.store.common.errors import UsageError
from wsa.store.format.records import Protocol, SegmentMeta
from wsa.store.objects.snapshot import Snapshot

# The data does not name its emulator.
EMULATOR = ("unknown", "unknown")
SCREENS_AT_ONCE = 64

# For each fact, the option that sets it and its default; None if the user must set it.
_FACTS: dict[str, tuple[str, Any]] = {
    "frame_skip": ("--frame-skip", None),
    "sticky": ("--sticky", None),
    "full_action_space": ("--full-action-space", False),
    "noop_max": ("--noop-max", 0),
    "fire_reset": ("--fire-reset", False),
    "max_pool": ("--max-pool", False),
    "max_steps": ("--max-episode-steps", games.MAX_STEPS),
}


def open_source(kind: str, source: str) -> Source:
    """Open a `minari` dataset by id or folder, or `arrays` in a file or folder.

    Raises:
        MissingError: If the source does not exist, or minari is not installed.
        UsageError: If it cannot be imported.
    """
    path = Path(source).expanduser()
    return open_minari(source) if kind == "minari" else Arrays(path)


def state_protocol(
    game: str, stated: PartialProtocol, asked: PartialProtocol, named: str = ""
) -> Protocol:
    """Return the full protocol by which imported data was played.

    The data states some facts, and the user others; `named`, `classic` or `v5`, fills in what the
    user does not state.

    Raises:
        UsageError: If data and user contradict each other, or a required fact is missing.
    """
    preset = games.protocol(game, named) if named else None
    facts: dict[str, Any] = {}
    for name, (option, default) in _FACTS.items():
        stated_value, asked_value = getattr(stated, name), getattr(asked, name)
        if asked_value is None and preset is not None:
            asked_value, option = getattr(preset, name), f"--protocol {named}"
        if stated_value is not None and asked_value is not None and stated_value != asked_value:
            raise UsageError(
                f"The data was played with {name} {stated_value}; {option} says {asked_value}. "
                "Leave it out."
            )
        facts[name] = next((v for v in (stated_value, asked_value, default) if v is not None), None)
    missing = [_FACTS[name][0] for name, value in facts.items() if value is None]
    if missing:
        raise UsageError(
            f"The data does not say how {game} was played. State it with {' and '.join(missing)}, "
            "or with --protocol classic or v5 if it was played that way."
        )
    if (
        facts["frame_skip"] < 1
        or facts["max_steps"] < 1
        or facts["noop_max"] < 0
        or not 0 <= facts["sticky"] < 1
    ):
        raise UsageError(
            "--frame-skip and --max-episode-steps must be at least 1, --noop-max at least 0, and "
            f"--sticky at least 0 and below 1; they are {facts['frame_skip']}, "
            f"{facts['max_steps']}, {facts['noop_max']} and {facts['sticky']:g}."
        )
    base = games.protocol(game, "v5" if facts["full_action_space"] else "classic")
    played = msgspec.structs.replace(base, name="custom", **facts)
    for known in games.PROTOCOLS:
        if msgspec.structs.replace(played, name=known) == games.protocol(
            game, known, max_steps=facts["max_steps"]
        ):
            return msgspec.structs.replace(played, name=known)
    return played


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """An import: the run and its missing intervals, as for a collection with one environment."""

    collection: CollectPlan
    episodes: int


def plan_import(
    snapshot: Snapshot,
    source: Source,
    game: str,
    protocol: Protocol,
    policy: str,
    segment_steps: int,
    on_steps: Callable[[int, int], None] = lambda done, total: None,
) -> ImportPlan:
    """Check all data, and find the intervals that are not committed yet.

    `on_steps` is called from time to time with (steps checked, total steps).

    Raises:
        UsageError: If the data is invalid.
    """
    if not 1 <= segment_steps <= 65536:
        raise UsageError(f"--segment-steps must be from 1 to 65536, not {segment_steps}.")
    actions = len(protocol.actions)
    if source.actions not in (0, actions):
        raise UsageError(
            f"The data has {source.actions} actions; {game} has {actions} "
            f"{'in all' if protocol.full_action_space else 'without --full-action-space'}."
        )
    source.check_screens(game)
    content = []
    done = 0
    for number, episode in enumerate(source.episodes()):
        wrong = (episode.actions < 0) | (episode.actions >= actions)
        if wrong.any():
            raise UsageError(
                f"Step {wrong.argmax()} of episode {number} has an action out of range: {game} has "
                f"actions 0 to {actions - 1}. See --full-action-space in 'wsa import --help'."
            )
        content.append(_content(episode))
        done += len(episode)
        on_steps(done, source.steps)
    run = hashing.identity([game, protocol, policy, content])[:12]
    pieces = lacking(snapshot, game, run, 0, done, segment_steps)
    plan = CollectPlan(game, protocol, policy, 0, run, 1, done, (pieces,))
    return ImportPlan(plan, len(content))


def _content(episode: Episode) -> str:
    """Hash everything of an episode that is stored."""
    digests = [
        hashing.frame_digest(screen)
        for start, stop in _blocks(episode)
        for screen in episode.screens(start, stop)
    ]
    columns = {f.name: getattr(episode, f.name) for f in dataclasses.fields(episode)}
    del columns["screens"]
    return hashing.tensors_digest({**columns, "digest": np.frombuffer(b"".join(digests), np.uint8)})


def _blocks(episode: Episode) -> list[tuple[int, int]]:
    end = len(episode) + 1
    return [(at, min(at + SCREENS_AT_ONCE, end)) for at in range(0, end, SCREENS_AT_ONCE)]


def run_import(
    plan: ImportPlan,
    source: Source,
    backend: Backend,
    on_steps: Callable[[int, int], None] = lambda done, total: None,
) -> list[SegmentMeta]:
    """Commit every missing segment of a plan, from the same source.

    `on_steps` is called from time to time with (steps written, steps to write).

    Returns:
        The segments that this call committed.
    """
    collection = plan.collection
    if not collection.missing:
        return []
    converter = RGBScreens()
    recorder = Recorder(collection.pieces[0])
    writer = Writer(collection, backend, converter, EMULATOR)
    played = 0
    try:
        for episode in source.episodes():
            screens = _screens(episode, recorder, converter, played)
            recorder.begin(next(screens), episode.lives[0])
            steps = zip(
                *(episode.actions, episode.rewards, episode.terminated, episode.truncated),
                *(screens, episode.lives[1:]),
                strict=True,
            )
            for action, reward, terminated, truncated, screen, lives in steps:
                recorder.step(action, reward, terminated, truncated, screen, lives)
                if recorder.full:
                    writer.write(0, recorder.take())
            played += len(episode)
            on_steps(writer.written + recorder.steps, collection.missing)
        writer.finish(0)
        on_steps(writer.written, collection.missing)
        return writer.visible
    finally:
        writer.close()


def _screens(
    episode: Episode, recorder: Recorder, converter: RGBScreens, played: int
) -> Iterator[Screen]:
    """Yield an episode's screens, reading only those that a missing segment needs."""
    for start, stop in _blocks(episode):
        wanted = [recorder.wants(played + at) for at in range(start, stop)]
        if any(wanted):
            yield from converter.screens(episode.screens(start, stop)[:, None], wanted)
        else:
            yield from [UNSEEN] * (stop - start)
