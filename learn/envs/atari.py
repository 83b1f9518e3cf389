"""Atari environments: protocol, screen, seeds, and autoreset in one place.

Collection, training, and evaluation all use `make_env`: ale-py's native vector environment, the
whole RGB screen, and raw rewards. Autoreset is SAME_STEP: the step that ends an episode returns the
next episode's first frame and, in `info["final_obs"]`, the last frame of the old one.

If the step limit ended the episode, this is its true last frame, and a value may be bootstrapped
from it. If the *game* ended, it is not: ale-py 0.12, like `gymnasium.wrappers.AtariPreprocessing`,
stops before it reads the screen on which the game ended. If that happened in the first, second, or
third of a step's four emulator frames, the last frame is a copy of the previous frame; in the
fourth, the pixel-wise maximum of the previous frame and the third screen. No learner uses this
frame, because no value is bootstrapped after a game's end.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from wsa.store.common.errors import UsageError
from wsa.store.common.games import unknown_game
from wsa.store.format.records import Protocol

FRAME_SKIP = 4
MAX_STEPS = 27_000  # 30 minutes of play at 60 Hz, the usual limit (108,000 emulator frames).
_NEVER = 1 << 30  # Emulator frames; ale-py counts them in an int.

# `classic` is NoopFrameskip-v4 with the usual wrappers; `v5` is the protocol of Machado et al.
# (2018), as in ALE/*-v5. Do not compare scores between the two.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "classic": {"sticky": 0.0, "noop_max": 30, "fire_reset": True, "full_action_space": False},
    "v5": {"sticky": 0.25, "noop_max": 0, "fire_reset": False, "full_action_space": True},
}


@functools.cache
def games() -> dict[str, str]:
    """Return the ROM name of each ALE game id, `{"MsPacman": "ms_pacman", ...}`, sorted."""
    gymnasium.register_envs(ale_py)
    specs = (s for s in gymnasium.registry.values() if s.id.startswith("ALE/"))
    rom_names = {
        s.id.removeprefix("ALE/").removesuffix("-v5"): str(s.kwargs["game"])
        for s in specs
        if s.id.endswith("-v5")
    }
    return dict(sorted(rom_names.items()))


def check_game(game: str) -> str:
    """Return `game` if it is an ALE game.

    Raises:
        UsageError: If it is not; the message suggests similar names.
    """
    if game in games():
        return game
    raise unknown_game(game)


@functools.cache
def screen(game: str) -> tuple[int, int]:
    """Return the height and width of a game's screen in pixels, 210 x 160 for most games."""
    height, width = _emulator(game).getScreenDims()
    return height, width


@functools.cache
def action_names(game: str, full_action_space: bool) -> tuple[str, ...]:
    """Return the names of a game's actions: its minimal set, or all 18 of the console."""
    emulator = _emulator(game)
    actions = emulator.getLegalActionSet() if full_action_space else emulator.getMinimalActionSet()
    return tuple(action.name for action in actions)


@functools.cache
def switches(game: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a game's available modes and difficulties."""
    emulator = _emulator(game)
    return tuple(emulator.getAvailableModes()), tuple(emulator.getAvailableDifficulties())


def _emulator(game: str) -> ale_py.ALEInterface:
    quiet_emulator()
    emulator = ale_py.ALEInterface()
    emulator.loadROM(rom(game))
    return emulator


def emulator_identity(game: str) -> tuple[str, str]:
    """Return ale-py's version and the MD5 of the game's ROM, which every segment records."""
    return ale_py.__version__, hashlib.md5(rom(game).read_bytes()).hexdigest()


def rom(game: str) -> Path:
    """Return the path of a game's ROM."""
    path = roms.get_rom_path(games()[check_game(game)])
    assert path is not None, f"ale-py registers {game} without its ROM"
    return Path(path)


def quiet_emulator() -> None:
    """Keep the emulator's banner off the terminal."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def protocol(
    game: str, name: str, sticky: float | None = None, max_steps: int = MAX_STEPS
) -> Protocol:
    """Return a protocol with all its details for a game.

    Args:
        name: `classic` or `v5`.
        sticky: Overrides the protocol's sticky-action probability; the name becomes `custom`.
        max_steps: Steps after which an episode is truncated.

    Raises:
        UsageError: If the game or protocol does not exist, or a value is out of range.
    """
    check_game(game)
    if name not in PROTOCOLS:
        raise UsageError(f"{name!r} is not a protocol; choose from {', '.join(PROTOCOLS)}.")
    details = dict(PROTOCOLS[name])
    if sticky is not None and sticky != details["sticky"]:
        if not 0 <= sticky < 1:
            raise UsageError(f"--sticky must be at least 0 and below 1, not {sticky}.")
        details["sticky"], name = sticky, "custom"
    if not 1 <= max_steps <= _NEVER // FRAME_SKIP:
        raise UsageError(
            f"--max-episode-steps must be from 1 to {_NEVER // FRAME_SKIP}, not {max_steps}."
        )
    return Protocol(
        name=name,
        frame_skip=FRAME_SKIP,
        max_pool=True,
        max_steps=max_steps,
        actions=action_names(game, details["full_action_space"]),
        **details,
    )


class _Env(AtariVectorEnv):
    """The native environment, with episodes truncated after `max_steps` steps.

    ale-py's own limit stops inside the last step, so its last frame is not the true one. This
    class truncates between steps, as Gymnasium's wrappers do.
    """

    def __init__(self, rom: str, num_envs: int, max_steps: int, **details: Any) -> None:
        super().__init__(rom, num_envs, max_num_frames_per_episode=_NEVER, **details)
        self._max_steps = max_steps
        self._played = np.zeros(num_envs, np.int64)

    def reset(  # type: ignore[override]  # ale-py types its result by an unbound variable.
        self, *, seed: int | NDArray[Any] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
        """Begin episodes in all environments, or in those that `options["reset_mask"]` selects."""
        self._played[(options or {}).get("reset_mask", ...)] = 0
        result: tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]
        result = super().reset(seed=seed, options=options)
        return result

    def step(
        self, actions: NDArray[np.integer[Any]]
    ) -> tuple[
        NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, NDArray[Any]]
    ]:
        """Take one step in each environment; episodes that reach the limit are truncated."""
        observations, rewards, terminated, truncated, info = super().step(actions)
        self._played += 1
        self._played[terminated] = 0
        at_limit = self._played >= self._max_steps
        if not at_limit.any():
            return observations, rewards, terminated, truncated, info
        final = info.get("final_obs", observations).copy()
        final[at_limit] = observations[at_limit]
        observations, info = self.reset(options={"reset_mask": at_limit})
        return observations, rewards, terminated, truncated | at_limit, {**info, "final_obs": final}


def make_env(game: str, stated: Protocol, num_envs: int) -> AtariVectorEnv:
    """Make a vector environment that plays `game` by the protocol `stated`.

    Observations are (num_envs, 1, H, W, 3) uint8; rewards are raw; actions index
    `stated.actions`. `reset(seed=s)` seeds environment i with s + i. How it then behaves does not
    depend on the number of environments.
    """
    quiet_emulator()
    height, width = screen(game)
    env = _Env(
        games()[game],
        num_envs,
        stated.max_steps,
        grayscale=False,
        img_height=height,
        img_width=width,
        stack_num=1,
        frameskip=stated.frame_skip,
        maxpool=stated.max_pool,
        noop_max=stated.noop_max,
        use_fire_reset=stated.fire_reset,
        reward_clipping=False,
        episodic_life=False,
        life_loss_info=False,
        repeat_action_probability=stated.sticky,
        full_action_space=stated.full_action_space,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    return env


def group_sizes(num_envs: int, groups: int) -> list[int]:
    """Split environments into groups of nearly equal size; return the sizes, largest first."""
    return [len(range(i, num_envs, groups)) for i in range(groups)]


def rgb_frames(observations: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Drop the stack axis: (n, 1, H, W, 3) to (n, H, W, 3)."""
    assert observations.shape[1] == 1
    return observations[:, 0]


def describe(stated: Protocol) -> str:
    """Describe a protocol in one line."""
    start = "FIRE at a reset, " if stated.fire_reset else ""
    return (
        f"protocol {stated.name} (sticky actions {stated.sticky:g}, up to {stated.noop_max} "
        f"no-ops, {start}{len(stated.actions)} actions, skip {stated.frame_skip}, "
        f"at most {stated.max_steps:,} steps an episode)"
    )
