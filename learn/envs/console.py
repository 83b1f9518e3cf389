"""An emulator that plays like the native vector environment, with access to memory and switches.

ale-py's native vector environment does not expose the memory, and cannot set a mode, a difficulty,
or a byte. `ale_py.ALEInterface` can. `Console` plays one game with it exactly like an environment
of `atari.make_env`: FIRE and no-ops at a reset, frame skip, maximum of the last two screens, and
sticky actions drawn by the emulator itself. `Consoles` is a vector of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ale_py
import numpy as np
from numpy.typing import NDArray

from wsa.learn.envs import atari as games
from wsa.store.format.records import Protocol

# A function that changes the emulator's memory, called before each emulator frame.
Write = Callable[[ale_py.ALEInterface], None]


class Console:
    """One emulator with access to its memory.

    Args:
        mode, difficulty: The game's switches; None for the cartridge's defaults.
        writes: Factories, each called at the start of an episode to make a `Write`.

    Attributes:
        screen: The newest frame, (H, W, 3) uint8 RGB. The step that ends a game does not change it.
    """

    def __init__(
        self,
        game: str,
        stated: Protocol,
        *,
        mode: int | None = None,
        difficulty: int | None = None,
        writes: Sequence[Callable[[], Write]] = (),
    ) -> None:
        games.quiet_emulator()
        self._rom = str(games.rom(game))
        self._skip, self._pool = stated.frame_skip, stated.max_pool
        self._actions = [getattr(ale_py.Action, name) for name in stated.actions]
        self._fire = stated.fire_reset and ale_py.Action.FIRE in self._actions
        self._mode, self._difficulty = mode, difficulty
        self._make_writes = writes
        self._writes: list[Write] = []
        self._noop_max = stated.noop_max
        self._noops = np.random.RandomState()
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", stated.sticky)
        self.screen = np.zeros((0, 0, 3), np.uint8)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode. With a seed, first seed the emulator and reload the game."""
        if seed is not None:
            self._noops = np.random.RandomState(seed)
            self._ale.setInt("random_seed", seed)
            self._ale.loadROM(self._rom)
            if self._mode is not None:
                self._ale.setMode(self._mode)
            if self._difficulty is not None:
                self._ale.setDifficulty(self._difficulty)
        self._ale.reset_game()
        self._writes = [make() for make in self._make_writes]
        if self._fire:
            self._act(ale_py.Action.FIRE)
        for _ in range(self._draw(self._noop_max) - self._fire):
            self._act(ale_py.Action.NOOP)
            if self._ale.game_over():
                self._ale.reset_game()
        self.screen = self._ale.getScreenRGB()

    def memory(self) -> NDArray[np.uint8]:
        """Return the emulator's memory, (128,) uint8."""
        return self._ale.getRAM()

    def step(self, action: int) -> tuple[float, bool]:
        """Take one step. Return the reward, and whether the game ended."""
        reward, screens = 0.0, []
        for left in reversed(range(self._skip)):
            reward += self._act(self._actions[action])
            if self._ale.game_over():
                return reward, True
            if left < 2:
                screens.append(self._ale.getScreenRGB())
        self.screen = np.maximum(*screens) if self._pool and len(screens) == 2 else screens[-1]
        return reward, False

    def _act(self, action: ale_py.Action) -> int:
        for write in self._writes:
            write(self._ale)
        return self._ale.act(action)

    def _draw(self, count: int) -> int:
        """Draw a number below `count` like the native environment; 0 if `count` is 0.

        That is libstdc++'s `std::uniform_int_distribution` on `std::mt19937`: Lemire's method
        (2019, arXiv 1805.10941), on a generator that numpy seeds in the same way.
        """
        while count:
            product = int(self._noops.randint(1 << 32, dtype=np.uint32)) * count
            if product % (1 << 32) >= (1 << 32) % count:
                return product >> 32
        return 0


class Consoles:
    """A vector of consoles, which plays and ends episodes like an environment of `atari.make_env`.

    Args:
        max_steps: Steps after which an episode is truncated.
        show: Returns the frame to show, given the frame, the console's seed, and the number of
            frames that the console has shown since it was seeded.
    """

    def __init__(
        self,
        consoles: Sequence[Console],
        max_steps: int,
        show: Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]] = lambda frame, *_: frame,
    ) -> None:
        self._consoles: Sequence[Console] = consoles
        self._max_steps = max_steps
        self._show = show
        self._seed = self._shown = 0
        self._played = np.zeros(len(consoles), np.int64)

    def reset(self, *, seed: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Seed console i with seed + i, and begin episodes in all consoles.

        Returns:
            Observations (num_envs, 1, H, W, 3) uint8, and an empty info.
        """
        self._seed, self._shown = seed, 0
        self._played[:] = 0
        for i, console in enumerate(self._consoles):
            console.reset(seed + i)
        return self._look(), {}

    def step(
        self, actions: NDArray[np.integer[Any]]
    ) -> tuple[
        NDArray[np.uint8], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Take one step in each console; where an episode ends, begin the next one.

        Returns:
            Observations (num_envs, 1, H, W, 3) uint8; raw rewards, whether the game ended, and
            whether the step limit ended the episode, each (num_envs,); and an empty info.
        """
        results = [console.step(int(a)) for console, a in zip(self._consoles, actions, strict=True)]
        rewards = np.array([reward for reward, _ in results])
        terminated = np.array([ended for _, ended in results])
        self._played += 1
        truncated = ~terminated & (self._played >= self._max_steps)
        for i in np.flatnonzero(terminated | truncated).tolist():
            self._consoles[i].reset()
            self._played[i] = 0
        return self._look(), rewards, terminated, truncated, {}

    def _look(self) -> NDArray[np.uint8]:
        frames = [
            self._show(console.screen, self._seed + i, self._shown)
            for i, console in enumerate(self._consoles)
        ]
        self._shown += 1
        return np.stack(frames)[:, None]

    def close(self) -> None:
        """Release the emulators."""
        self._consoles = ()
