"""Minari datasets of Atari games as an import source.

The published datasets hold whole screens of `ALE/<Game>-v5` without sticky actions, with frame skip
4. By default, Minari stores images as JPEG, so their colors are close to the emulator's but not
equal: the same frames played in the emulator have other digests and other embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsa.learn.collect.sources import Episode, PartialProtocol, Source, make_episode, refuse_screens
from wsa.learn.envs import atari as games
from wsa.store.common.errors import MissingError, UsageError

# Wrappers that change neither observations nor rewards.
_HARMLESS = (
    "OrderEnforcing",
    "PassiveEnvChecker",
    "RecordEpisodeStatistics",
    "RecordVideo",
    "TimeLimit",
)


def open_minari(source: str) -> Source:
    """Open a Minari dataset by its id or its folder.

    Raises:
        MissingError: If the package minari is not installed, or the dataset is not on this machine.
        UsageError: If the dataset cannot be read, or was played in a way that wsa cannot record.
    """
    try:
        import minari
    except ImportError:
        raise MissingError(
            "no-library",
            "'wsa import minari' needs the package minari, which is not installed. Run: "
            "pip install 'minari[hdf5]'",
        ) from None
    folder = Path(source).expanduser()
    folder = folder / "data" if (folder / "data").is_dir() else folder
    try:
        dataset = minari.MinariDataset(folder) if folder.is_dir() else minari.load_dataset(source)
    except FileNotFoundError:
        raise MissingError(
            "no-frames",
            f"There is no Minari dataset {source} on this machine. Fetch it: "
            f"minari download {source}",
        ) from None
    except Exception as error:  # noqa: BLE001  Minari's readers raise anything.
        raise UsageError(f"{source} cannot be read as a Minari dataset: {error}") from None
    return Minari(source, dataset)


class Minari:
    """A `minari.MinariDataset` as a `Source`."""

    def __init__(self, name: str, dataset: Any) -> None:
        metadata = dataset.storage.metadata
        self._name = name
        self._dataset = dataset
        self.game, self.facts = "", PartialProtocol()
        if dataset.env_spec is not None:
            self.game, self.facts = _environment(name, dataset.env_spec)
        self.policy = str(metadata.get("algorithm_name") or f"minari:{dataset.id}")
        space = dataset.action_space
        self.actions = int(getattr(space, "n", 0))
        if not self.actions or getattr(space, "start", 0) != 0:
            raise UsageError(f"{name}: its actions are {space}, not Discrete(n).")
        self.steps = dataset.total_steps
        # JPEG is Minari's default; before 0.5.4 it was the only format.
        self.lossy = bool(metadata.get("jpeg_encoding", True))

    def check_screens(self, game: str) -> None:
        """See `Source.check_screens`."""
        space = self._dataset.observation_space
        stored = (getattr(space, "shape", None), getattr(space, "dtype", None))
        if stored != ((*games.screen(game), 3), np.uint8):
            raise refuse_screens(self._name, str(space), game)

    def episodes(self) -> Iterator[Episode]:
        """See `Source.episodes`. Only one episode at a time is in memory."""
        shape = self._dataset.observation_space.shape
        for number, episode in enumerate(self._dataset.iterate_episodes()):
            where = f"{self._name}, episode {number}"
            screens = np.asarray(episode.observations)
            if screens.shape != (len(episode.actions) + 1, *shape) or screens.dtype != np.uint8:
                raise UsageError(
                    f"{where} has {len(episode.actions)} actions and observations "
                    f"{screens.shape} {screens.dtype}; it needs one observation more than actions."
                )
            lives = (episode.infos or {}).get("lives")
            yield make_episode(
                where,
                lambda start, stop, screens=screens: screens[start:stop],  # type: ignore[misc]
                np.asarray(episode.actions),
                np.asarray(episode.rewards),
                np.asarray(episode.terminations),
                np.asarray(episode.truncations),
                None if lives is None else np.asarray(lives),
            )


def _environment(name: str, spec: Any) -> tuple[str, PartialProtocol]:
    """Return the game, and how it was played, from a Gymnasium environment's spec."""
    options = spec.kwargs
    by_rom = {rom: game for game, rom in games.games().items()}
    game = by_rom.get(str(options.get("game")), "")
    if not game:
        raise UsageError(f"{name} was played in {spec.id}, which is not an Atari game of ALE.")
    if options.get("mode") or options.get("difficulty"):
        raise UsageError(
            f"{name} was played in mode {options.get('mode')}, difficulty "
            f"{options.get('difficulty')}. wsa imports only the default mode and difficulty of a "
            "game."
        )
    skip: Any = options.get("frameskip", 4)
    noop_max, max_pool = 0, False
    for wrapper in spec.additional_wrappers:
        wrapper_options = wrapper.kwargs or {}
        if wrapper.name == "AtariPreprocessing":
            if wrapper_options.get("terminal_on_life_loss"):
                raise UsageError(
                    f"{name} ends an episode at every lost life, so its episodes are not full "
                    "games. Record it again without terminal_on_life_loss."
                )
            inner_skip = wrapper_options.get("frame_skip", 4)
            skip = inner_skip if skip == 1 else None
            noop_max, max_pool = wrapper_options.get("noop_max", 30), inner_skip > 1
        elif wrapper.name not in _HARMLESS:
            raise UsageError(
                f"{name} was played through the wrapper {wrapper.name}, and wsa cannot tell what it "
                "changes. If it changes neither screens nor rewards nor ends, copy the data into "
                "arrays and use 'wsa import arrays'."
            )
    if type(skip) is not int or skip < 1:
        raise UsageError(
            f"{name} was played in {spec.id} with frame skip {options.get('frameskip')}; wsa "
            "records one fixed skip."
        )
    # The emulator's own limit counts frames, Gymnasium's counts steps.
    frames = options.get("max_num_frames_per_episode") or games.FRAME_SKIP * games.MAX_STEPS
    limits = (spec.max_episode_steps or games.MAX_STEPS, -(-frames // skip))
    return game, PartialProtocol(
        frame_skip=skip,
        sticky=float(options.get("repeat_action_probability", 0.25)),
        full_action_space=bool(options.get("full_action_space", False)),
        max_steps=min(limits),
        noop_max=noop_max,
        fire_reset=False,
        max_pool=max_pool,
    )
