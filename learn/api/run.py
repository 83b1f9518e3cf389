"""`wsa.load_run(path)`: a trained run that acts, embeds frames, and shows its metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from wsa.encode.configs import require_used
from wsa.encode.inference.cores import threads_for
from wsa.encode.inference.encoder import choose_device
from wsa.learn.api.libraries import require
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.envs import atari
from wsa.learn.evaluation.greedy_policy import GreedyPolicy
from wsa.learn.runs.config import OfflineRun, OnlineRun, read_config
from wsa.learn.runs.player import Player, open_player
from wsa.learn.training import metrics
from wsa.store.common import user_code
from wsa.store.common.errors import UsageError
from wsa.store.objects.flat_map import side_by_side

_ASIDE = -1  # Not the number of any environment: `embed` has its own history of frames.


def load_run(
    path: str | os.PathLike[str],
    *,
    checkpoint: Literal["final", "best"] = "final",
    device: str = "auto",
    engine: str = "auto",
    threads: int | None = None,
    weights: Mapping[str, str] | None = None,
    trust: Sequence[str] = (),
    epsilon: float = 0.0,
    seed: int = 0,
) -> Run:
    """Load a run that `wsa learn` trained: its network, and the models that feed it.

    Args:
        path: The run's folder.
        checkpoint: `final`, the latest network; or `best`, the one with the best validation.
        device: `auto`, `cpu`, or `cuda`.
        engine: The inference engine; `auto` uses the one that filled the store.
        threads: Number of threads that run models in parallel. By default, the number of cores
            that this process may use.
        weights: Paths of weights files and modules, by alias, as in `wsa eval --weights`.
        trust: Your own fusion or algorithm, as `module:name`, if the run names one. wsa imports
            nothing else that a run names.
        epsilon: Probability of a random action.
        seed: Seed for random actions.

    Raises:
        UsageError: If epsilon is not from 0 to 1, or the run has no model that `weights` names.
        MissingError: If the run, its checkpoint, the weights, or the data are missing.
        ConflictError: If a model's embeddings differ from those in the store.
        DamagedError: If the checkpoint or the data is damaged.
    """
    if not 0 <= epsilon <= 1:
        raise UsageError(f"epsilon must be from 0 to 1, not {epsilon}.")
    user_code.type_in(trust)
    request = EvaluationRequest(which=checkpoint, device=choose_device(device), engine=engine)
    files = dict(weights or {})
    require_used(files, read_config(Path(path)).inputs)
    player = open_player(Path(path), request, weights=files, threads=threads_for(threads))
    return Run(Path(path), player, epsilon, seed)


class Run:
    """A trained run. Get one with `wsa.load_run`.

    Attributes:
        path: The run's folder.
    """

    def __init__(self, path: Path, player: Player, epsilon: float, seed: int) -> None:
        self.path = path
        self._player, self._epsilon, self._seed = player, epsilon, seed
        self._policy: GreedyPolicy | None = None
        self._playing = 0

    def __repr__(self) -> str:
        algorithm = self.config.hyperparameters.NAME
        return f"<wsa.Run {self.path}: {self.game}, {algorithm}, {self.trained} {self.unit}>"

    @property
    def config(self) -> OfflineRun | OnlineRun:
        """The run's configuration, as in its `config.json`."""
        return self._player.config

    @property
    def game(self) -> str:
        """ALE game."""
        return self.config.game

    @property
    def models(self) -> tuple[str, ...]:
        """Keys of the models that feed the network; empty if it sees pixels."""
        return self.config.inputs

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the actions that `act` returns."""
        return self.config.protocol.actions

    @property
    def trained(self) -> int:
        """Number of updates that trained the network; for an online run, number of steps."""
        return self._player.trained

    @property
    def unit(self) -> str:
        """The unit of `trained`: `updates` or `steps`."""
        return self.config.unit

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """Weights that the fusion gave each model in the last `act`, shape (n, models).

        None before the first `act`, and for a fusion without weights.
        """
        return self._policy.weights if self._policy else None

    def env(self, num_envs: int = 1) -> Any:
        """Make the run's game: ale-py's vector environment, under the run's protocol.

        It resets itself at the end of an episode. Observations are (num_envs, 1, H, W, 3) uint8
        RGB, which `act` accepts.
        """
        return atari.make_env(self.game, self.config.protocol, num_envs)

    @overload
    def act(self, frames: NDArray[np.uint8], *, first: bool) -> int: ...

    @overload
    def act(self, frames: NDArray[np.uint8], *, first: NDArray[np.bool_]) -> NDArray[np.int64]: ...

    def act(
        self, frames: NDArray[np.uint8], *, first: bool | NDArray[np.bool_]
    ) -> int | NDArray[np.int64]:
        """Choose actions for the newest frames of one game, or of several games played in parallel.

        The run remembers earlier frames, because its network sees the last few of each game, and a
        recurrent network has a memory. Where `first` is True, the run forgets the earlier frames of
        that game.

        Args:
            frames: Whole screens, uint8 RGB: (H, W, 3) for one game; (n, H, W, 3) for n games,
                always in the same order. (n, 1, H, W, 3), as from `env`, also works.
            first: Whether the frame is the first of an episode; for n games, (n,) bools.

        Returns:
            An index into `actions`; for n games, (n,) int64.

        Raises:
            UsageError: If the frames are not screens, or the number of games changes although
                `first` is not True for all of them.
        """
        single = np.ndim(first) == 0
        screens = _screens(frames, single)
        begins = np.broadcast_to(np.asarray(first, np.bool_), len(screens)).copy()
        if len(screens) != self._playing or self._policy is None:
            if not begins.all():
                raise UsageError(
                    f"act() was given {len(screens)} games but {self._playing} before. To change "
                    "the number, begin all games together, with first=True for each."
                )
            self._playing = len(screens)
            self._policy = self._player.policy(self._playing, self._epsilon, self._seed)
        chosen = self._policy(screens, begins, np.arange(len(screens)))
        return int(chosen[0]) if single else chosen

    def embed(self, frames: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Embed frames with each model; frames in the store are looked up instead.

        Args:
            frames: (n, H, W, 3) uint8 RGB, or one (H, W, 3). For models that see several frames,
                give consecutive frames of one episode, from its first.

        Returns:
            Embeddings (n, *shape) by model key; (*shape) for one frame.

        Raises:
            UsageError: If the run sees pixels, or the frames are not screens.
        """
        if not self.models:
            raise UsageError(f"{self.path} sees pixels: it has no models to embed with.")
        single = np.ndim(frames) == 3
        env = np.array([_ASIDE])
        rows = np.concatenate(
            [
                self._player.embedder(screen[None], np.array([i == 0]), env)
                for i, screen in enumerate(_screens(frames, single))
            ]
        )
        shapes = self._player.shapes
        embeddings = {
            key: rows[:, place].reshape(len(rows), *shape)
            for key, place, shape in zip(self.models, side_by_side(shapes), shapes, strict=True)
        }
        return {key: array[0] for key, array in embeddings.items()} if single else embeddings

    @property
    def metrics(self) -> Any:
        """The training metrics as a pandas `DataFrame`: one row for each line of the log.

        The first column is `step`.

        Raises:
            MissingError: If pandas is not installed.
        """
        pandas = require("pandas", "pandas", "Run.metrics")
        return pandas.DataFrame(list(metrics.read(self.path)))


def _screens(frames: NDArray[np.uint8], single: bool) -> NDArray[np.uint8]:
    """Convert frames to (n, H, W, 3).

    Raises:
        UsageError: If the frames have another shape or dtype.
    """
    screens = np.asarray(frames)
    if screens.ndim == 5 and screens.shape[1] == 1:  # From ale-py: a stack of one frame.
        screens = screens[:, 0]
    if single and screens.ndim == 3:
        screens = screens[None]
    if screens.ndim != 4 or screens.shape[-1] != 3 or screens.dtype != np.uint8:
        expected = "(H, W, 3)" if single else "(n, H, W, 3)"
        raise UsageError(
            f"frames must be {expected} uint8 RGB, the whole screen, not {np.shape(frames)} "
            f"{screens.dtype}."
        )
    if single and len(screens) != 1:
        raise UsageError(f"first must be {len(screens)} bools, one for each game.")
    return screens
