"""Effect of a change of looks on embeddings, and the fusion's response.

The run plays the unchanged game. Then the same actions are played with the change. A change of
looks changes no rule, so frames are paired. The network sees both sequences, with its own memory in
each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.envs.atari import rgb_frames
from wsa.learn.envs.variants import Variant
from wsa.learn.evaluation.greedy_policy import GreedyPolicy, LiveStacks
from wsa.learn.runs.player import Player
from wsa.learn.study.trained_runs import TrainedRun
from wsa.store.common import atomic_files, hashing
from wsa.store.format import records

Floats = NDArray[np.float32]


class Shift(msgspec.Struct, frozen=True):
    """How a network sees a changed game, compared with the unchanged game; tuples are by model.

    Attributes:
        states: Number of pairs of states.
        cosine: Mean cosine between embeddings of the newest frame, normalized as in the network.
        before: Mean weights without the change, scaled to sum to 1; None if the fusion has none.
        after: Mean weights with the change.
        moved: Mean absolute change of a state's weights.
        agreement: Share of states with the same greedy action.
    """

    states: int
    cosine: tuple[float, ...]
    before: tuple[float, ...] | None
    after: tuple[float, ...] | None
    moved: tuple[float, ...] | None
    agreement: float


class Shifts:
    """Measures shifts that have not been measured, and saves them: STUDY/shifts/{identity}.json.

    Args:
        folder: The study's folder.
        evaluation: Settings of the games.
        states: Number of states to compare, over all environments.
    """

    def __init__(self, folder: Path, evaluation: EvaluationSettings, states: int) -> None:
        self._folder, self._evaluation, self._states = folder / "shifts", evaluation, states

    def left(self, run: TrainedRun, variants: Iterable[Variant]) -> list[Variant]:
        """Variants for which a run's states have not been compared."""
        return [v for v in self._comparable(run, variants) if not self._path(run, v).exists()]

    def of(self, run: TrainedRun, variants: Iterable[Variant]) -> dict[str, Shift]:
        """Saved measurements, by variant."""
        paths = {v.spec: self._path(run, v) for v in self._comparable(run, variants)}
        return {
            spec: records.read_json(path.read_bytes(), Shift, str(path))
            for spec, path in paths.items()
        }

    def measure(self, run: TrainedRun, player: Player, variants: Iterable[Variant]) -> None:
        """Play the unchanged game and each variant, compare them, and save the results."""
        plain = _record_states(player, Variant(""), self._evaluation, self._states)
        for variant in variants:
            changed = _record_states(player, variant, self._evaluation, self._states, plain.actions)
            result = msgspec.json.encode(shift(plain, changed))
            atomic_files.replace(self._path(run, variant), result)

    def _comparable(self, run: TrainedRun, variants: Iterable[Variant]) -> list[Variant]:
        """Variants that change only looks; none if there are no embeddings to compare."""
        compared = self._states and run.config.models
        return [variant for variant in variants if variant.keeps_rules] if compared else []

    def _path(self, run: TrainedRun, variant: Variant) -> Path:
        config, e = run.config, self._evaluation
        parts = [
            config.game, config.protocol, run.network, variant.spec, self._states, e.epsilon, e.seed,
            e.num_envs,
        ]  # fmt: skip
        return self._folder / f"{hashing.identity(parts)[:24]}.json"


@dataclasses.dataclass(frozen=True)
class StateOutputs:
    """n states of some environments, with the network's outputs.

    Attributes:
        actions: Actions taken, shape (steps, envs).
        embeddings: Normalized embeddings of each model, shape (n, width).
        weights: Weights scaled to sum to 1, shape (n, models); None if the fusion has none.
        greedy: Greedy actions of the network, shape (n,).
    """

    actions: NDArray[np.int64]
    embeddings: list[Floats]
    weights: Floats | None
    greedy: NDArray[np.int64]


def shift(plain: StateOutputs, changed: StateOutputs) -> Shift:
    """Compare the same states with and without a change."""
    weights: dict[str, Any] = {"before": None, "after": None, "moved": None}
    if plain.weights is not None and changed.weights is not None:
        weights = {
            "before": _means(plain.weights),
            "after": _means(changed.weights),
            "moved": _means(np.abs(changed.weights - plain.weights)),
        }
    pairs = zip(plain.embeddings, changed.embeddings, strict=True)
    return Shift(
        states=len(plain.greedy),
        cosine=tuple(float(cosine(one, other).mean()) for one, other in pairs),
        agreement=float((plain.greedy == changed.greedy).mean()),
        **weights,
    )


def cosine(one: Floats, other: Floats) -> Floats:
    """Cosine of each pair of rows, shape (n,): 1 if both are zero, 0 if one is."""
    lengths = [np.linalg.norm(rows, axis=1) for rows in (one, other)]
    product = lengths[0] * lengths[1]
    cosines: Floats = (one * other).sum(axis=1) / np.where(product > 0, product, 1)
    cosines[(lengths[0] == 0) & (lengths[1] == 0)] = 1
    return cosines


def _means(values: Floats) -> tuple[float, ...]:
    return tuple(values.mean(axis=0).tolist())


class _RecordingStacks(LiveStacks):
    """Live stacks that keep their newest embeddings."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.newest: list[Tensor] = []

    def see(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> Tensor:
        """See `LiveStacks.see`."""
        stacks = super().see(frames, first, envs)
        self.newest.append(stacks[:, -1].clone())
        return stacks


def _record_states(
    player: Player,
    variant: Variant,
    evaluation: EvaluationSettings,
    states: int,
    actions: NDArray[np.int64] | None = None,
) -> StateOutputs:
    """Show a network the first states of games.

    Args:
        player: The network.
        variant: Variant to play.
        evaluation: Environments, their seeds, and the probability of a random action.
        states: Number of states, over all environments.
        actions: Actions to take, shape (steps, envs); by default the network's.
    """
    config, count = player.config, evaluation.num_envs
    # Frames seen in another variant must not be remembered.
    fresh = player.with_models(player.mask)
    stacks = _RecordingStacks(fresh.embedder, count, config.network.frame_stack)
    choices = len(config.protocol.actions)
    policy = GreedyPolicy(player.network, stacks, choices, 0.0, evaluation.seed)
    generator = np.random.default_rng(evaluation.seed)
    envs, first = np.arange(count), np.ones(count, np.bool_)
    actions_taken, greedy, weights = [], [], []
    console = variant.make_env(config.game, config.protocol, count)
    observations, _ = console.reset(seed=evaluation.seed)
    for step in range(-(-states // count)):
        greedy.append(policy(rgb_frames(observations), first, envs))
        if policy.weights is not None:
            weights.append(policy.weights)
        if actions is None:
            explored = generator.integers(choices, size=count)
            actions_taken.append(
                np.where(generator.random(count) < evaluation.epsilon, explored, greedy[-1])
            )
        else:
            actions_taken.append(actions[step])
        observations, _, terminated, truncated, _ = console.step(actions_taken[-1])
        first = terminated | truncated
    console.close()
    shares = np.concatenate(weights) if weights else None
    if shares is not None:
        shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    rows = torch.cat(stacks.newest)
    return StateOutputs(
        np.stack(actions_taken), _normalized(player, rows), shares, np.concatenate(greedy)
    )


@torch.inference_mode()
def _normalized(player: Player, rows: Tensor) -> list[Floats]:
    """Embeddings (n, width) of each fused model, as the network normalizes or decodes them."""
    torso, models = player.network.torso, len(player.config.models)
    parts = rows.to(player.network.device).float()[:, None].split(list(torso.inputs.widths), dim=2)
    pairs = zip(torso.normalizers[:models], parts, strict=False)
    return [normalize(part)[:, 0].cpu().numpy() for normalize, part in pairs]
