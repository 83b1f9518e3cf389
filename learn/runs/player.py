"""A run's trained network as a policy, for evaluation or collection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from wsa.encode.registration.register import open_models
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.configs.fusions import PIXELS
from wsa.learn.evaluation.greedy_policy import GreedyPolicy, LiveStacks
from wsa.learn.fusion.build import fusion_class
from wsa.learn.runs.config import OfflineRun, OnlineRun, RunConfig, read_config
from wsa.learn.runs.data import find_store, make_embedder, open_data
from wsa.learn.runs.network import make_network, windows_and_shapes
from wsa.learn.runs.presence import Mask, mask_of
from wsa.learn.training import checkpoint
from wsa.store.objects.flat_map import FlatMap
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot


@dataclasses.dataclass(frozen=True)
class Player:
    """A trained network, with the models that feed it.

    `trained` counts updates, or steps of an online run, and `digest` is the first 12 hex digits of
    the checkpoint's hash. `mask` says whether each fused model is present (None: all are), and
    `embedder_for` makes an embedder of the models that a mask leaves.
    """

    config: OfflineRun | OnlineRun
    network: Any
    embedder: Any
    shapes: Sequence[tuple[int, ...]]
    trained: int
    digest: str
    mask: Mask | None
    embedder_for: Callable[[Mask | None], Any]

    def with_models(self, mask: Mask | None) -> Player:
        """The same network with only some of the opened models; the others are not run."""
        return dataclasses.replace(self, mask=mask, embedder=self.embedder_for(mask))

    @property
    def present(self) -> tuple[str, ...]:
        """Keys of the fused models that are present."""
        models = self.config.models
        return tuple(
            key
            for key, is_present in zip(models, self.mask or (True,) * len(models), strict=True)
            if is_present
        )

    @property
    def weighs(self) -> bool:
        """Whether its fusion gives each model a weight."""
        fusion = self.config.network.fusion.name
        return fusion != PIXELS and fusion_class(fusion).weighs

    def policy(self, num_envs: int, epsilon: float, seed: int) -> GreedyPolicy:
        """The network as a policy for `num_envs` environments; see `GreedyPolicy`."""
        config = self.config
        stacks = LiveStacks(self.embedder, num_envs, config.network.frame_stack)
        return GreedyPolicy(
            self.network, stacks, len(config.protocol.actions), epsilon, seed, mask=self.mask
        )


def open_player(
    folder: Path,
    request: EvaluationRequest,
    *,
    store: str = "",
    otherwise: str = "",
    weights: dict[str, str] | None = None,
    threads: int | None = None,
) -> Player:
    """Load a run's network and open its models.

    Args:
        request: The checkpoint to load, the models to open, and where they run.
        store, otherwise: Where the run's store is now; see `find_store`.
        weights: Paths of weights files by alias, if this machine keeps them elsewhere.
        threads: Number of threads that embed in parallel. By default, as many as torch uses.

    Raises:
        UsageError: If there are no such models, or the fusion needs them.
        MissingError: If the run, its checkpoint, the weights, or the data are missing.
        ConflictError: If a model's embeddings differ from those in the store.
        DamagedError: If the checkpoint or the data is damaged.
    """
    config = read_config(folder)
    # Check before opening models, which is slow.
    checkpoint.find(folder / "checkpoints", request.which)
    config = find_store(config, store, otherwise)
    mask = requested_mask(config, request)
    snapshot, flat = open_data(config)
    present = [key for key in config.inputs if key not in _left_out(config, mask)]
    opened = open_models(
        snapshot,
        present,
        weights=weights,
        device=request.device,
        engine=request.engine,
        threads=threads,
    )
    encoders = dict(zip(present, opened, strict=True))

    def embedder_for(mask: Mask | None) -> Any:
        left_out = _left_out(config, mask)
        models = [None if key in left_out else encoders[key] for key in config.inputs]
        return make_embedder(config, flat, models, threads=threads)

    embedder = embedder_for(mask)
    # A run in training may have newer checkpoints by now.
    path = checkpoint.find(folder / "checkpoints", request.which)
    network, trained = load_network(config, flat, path)
    return Player(
        config,
        network.to(torch.device(request.device)),
        embedder,
        windows_and_shapes(config, flat)[1],
        trained,
        checkpoint.digest(path),
        mask,
        embedder_for,
    )


def requested_mask(config: RunConfig, request: EvaluationRequest) -> Mask | None:
    """Whether each of a run's models is present, as requested; None if all are.

    Raises:
        UsageError: If there are no such models, or the fusion needs them.
    """
    if not (request.without or request.only):
        return None
    snapshot = take_snapshot(open_store(config.store))
    return mask_of(config, snapshot, without=request.without, only=request.only)


def _left_out(config: RunConfig, mask: Mask | None) -> set[str]:
    """Keys of the models that are left out."""
    return {
        key for key, is_present in zip(config.models, mask or (), strict=False) if not is_present
    }


def load_network(
    config: OfflineRun | OnlineRun, flat: FlatMap | None, path: Path
) -> tuple[Any, int]:
    """Load a run's network from a checkpoint without opening any model; `flat` is from `open_data`.

    Returns:
        The network, and the number of updates that trained it; for an online run, of steps.

    Raises:
        MissingError: If the checkpoint is gone.
        DamagedError: If the checkpoint is damaged.
    """
    network = make_network(config, *windows_and_shapes(config, flat))
    trained, _ = checkpoint.load(path, {"online": network})
    return network, trained
