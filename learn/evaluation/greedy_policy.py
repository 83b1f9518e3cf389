"""Play greedily with a trained network on live embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.encode.live.live_encoder import LiveEncoder
from wsa.learn.training.loop import diverged


class GreedyPolicy:
    """Chooses the action with the highest value, or a random one with probability `epsilon`.

    An environment's actions depend only on the seed, its number, and its frames, not on the number
    of environments. So each has its own random generator and its own LSTM state, and its state goes
    through the network alone, because sums in a batch of another size may differ in the last bit.

    Args:
        network: The trained network, whose first output is Q-values or logits.
        stacks: Live embeddings.
        actions: Number of actions.
        epsilon: Probability of a random action; 0.001 is usual in evaluation.
        seed: Seed of the random actions.
        eager: Whether to run a compiled network without torch.compile.
        mask: Whether each fused model is present; None if all are.

    Attributes:
        weights: Fusion weights at the last step, (n, models) float32; None if the fusion has none.
    """

    def __init__(
        self,
        network: Any,
        stacks: LiveStacks,
        actions: int,
        epsilon: float,
        seed: int,
        *,
        eager: bool = False,
        mask: Sequence[bool] | None = None,
    ) -> None:
        self._network = network.eval()
        self._stacks = stacks
        self._actions = actions
        self._epsilon = epsilon
        self._seed = seed
        self._eager = eager
        self._mask = mask
        self._generators: dict[int, np.random.Generator] = {}
        self._memories: dict[int, Any] = {}
        self.weights: NDArray[np.float32] | None = None

    def __call__(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Choose actions, (n,).

        Raises:
            ConflictError: If the network's output is not finite.
        """
        stacks = self._stacks.see(frames, first, envs)
        states = zip(stacks.to(self._network.device), first, envs, strict=True)
        outputs = [
            self._value(stack[None], bool(begins), int(env)) for stack, begins, env in states
        ]
        weights = [one for _, one in outputs if one is not None]
        self.weights = np.stack(weights) if weights else None
        chosen = [
            self._choose(values, int(env)) for (values, _), env in zip(outputs, envs, strict=True)
        ]
        return np.array(chosen, np.int64)

    def _value(
        self, stack: Any, begins: bool, env: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the Q-values or logits, and the fusion's weights, of one state."""
        stance = torch.compiler.set_stance("force_eager") if self._eager else nullcontext()
        with torch.inference_mode(), stance:
            if self._network.recurrent:
                device = stack.device
                if begins:
                    self._memories[env] = tuple(
                        m.to(device) for m in self._network.initial_state(1)
                    )
                not_first = torch.zeros(1, device=device)
                values, _, weights, self._memories[env] = self._network(
                    stack, not_first, self._memories[env], self._mask
                )
            else:
                values, *_, weights = self._network(stack, self._mask)
        return values[0].cpu().numpy(), None if weights is None else weights[0].cpu().numpy()

    def _choose(self, values: NDArray[np.float32], env: int) -> int:
        if env not in self._generators:
            self._generators[env] = np.random.default_rng([self._seed, 1, env])
        if not np.isfinite(values).all():
            raise diverged("The network's outputs are not finite numbers")
        generator = self._generators[env]
        explore, random = generator.random() < self._epsilon, generator.integers(self._actions)
        return int(random if explore else values.argmax())


class LiveStacks:
    """Keeps the last k embeddings of each environment; `depth` is k."""

    def __init__(self, encoder: LiveEncoder, num_envs: int, depth: int) -> None:
        self._encoder = encoder
        self._stacks = np.zeros((num_envs, depth, encoder.width), encoder.dtype)

    def see(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> Tensor:
        """Embed the newest frames of some environments.

        Args:
            frames: Newest frames, (n, H, W, 3) uint8 RGB.
            first: Whether each frame begins an episode, (n,).
            envs: Numbers of the environments, (n,).

        Returns:
            The states (n, k, width), oldest first, with an episode's first frame repeated.
        """
        newest = self._encoder(frames, first, envs)
        stacks = self._stacks[envs]
        stacks[:, :-1] = stacks[:, 1:]
        stacks[:, -1] = newest
        stacks[first] = newest[first, None]
        self._stacks[envs] = stacks
        return torch.from_numpy(stacks)
