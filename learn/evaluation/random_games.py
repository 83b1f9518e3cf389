"""Games of the random policy, which a machine plays once.

They depend on the game, its rules, and the seeds alone, but every run is compared with them. So they
are kept in `WSA_CACHE/random-games`, where a bench of many runs finds them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.envs import atari
from wsa.learn.envs.policies import RandomPolicy
from wsa.learn.envs.variants import Variant
from wsa.learn.evaluation.episodes import Episode, play
from wsa.store.common import atomic_files, hashing
from wsa.store.common.cache_folder import cache_folder
from wsa.store.common.errors import DamagedError, StorageError, UsageError
from wsa.store.common.version import __version__
from wsa.store.format import records

_log = logging.getLogger(__name__)


class RandomGames(msgspec.Struct, frozen=True):
    """Which games of the random policy; `variant` is None for the unchanged game."""

    game: str
    protocol: records.Protocol
    settings: EvaluationSettings
    variant: Variant | None = None

    @property
    def path(self) -> Path:
        """File of these games, and of no others."""
        # The policy ignores frames: a variant that changes nothing else has the same games.
        changed = self.variant.spec if self.variant and not self.variant.keeps_rules else ""
        s = self.settings
        identity = (
            *(self.game, self.protocol, s.episodes, s.seed, s.num_envs, changed),
            *(*atari.emulator_identity(self.game), np.__version__, __version__),
        )
        return cache_folder() / "random-games" / f"{hashing.identity(identity)[:24]}.json"

    def find(self) -> list[Episode] | None:
        """Return the games if they have been played on this machine."""
        try:
            return records.read_json(self.path.read_bytes(), list[Episode], str(self.path))
        except (OSError, DamagedError, UsageError):  # A user may have no folder for a cache.
            return None

    def play(
        self, on_step: Callable[[int, int], None] = lambda steps, episodes: None
    ) -> list[Episode]:
        """Return the games, which are played now if they have not been played.

        `on_step` is called with (steps played, games finished).
        """
        if (found := self.find()) is not None:
            return found
        episodes = play(
            self.game,
            self.protocol,
            RandomPolicy(len(self.protocol.actions), self.settings.seed),
            self.settings,
            variant=self.variant,
            on_step=on_step,
        )
        try:
            atomic_files.replace(self.path, msgspec.json.encode(episodes))
        except (StorageError, UsageError) as error:
            _log.warning("The games of the random policy were not kept. %s", error)
        return episodes
