"""Decisions of a run's network on stored states, held out if possible; no pass, and no game."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.learn.data.nstep import hold_out
from wsa.learn.data.transitions import StateRows
from wsa.learn.networks.parameters import count_parameters
from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.learn.runs.data import find_store, only, open_data
from wsa.learn.runs.player import load_network
from wsa.learn.runs.presence import Mask
from wsa.learn.study.trained_runs import TrainedRun
from wsa.learn.training import checkpoint
from wsa.store.common import names
from wsa.store.common.errors import MissingError
from wsa.store.objects.flat_map import FlatMap, materialize
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

STATES = 4096
CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Decisions:
    """A network's outputs on n states.

    Attributes:
        values: Action values or logits, shape (n, actions), float32.
        weights: The fusion's weights, shape (n, models), float32; None if it has none.
    """

    values: NDArray[np.float32]
    weights: NDArray[np.float32] | None


class StoredStates:
    """A run's network, and stored states of its game.

    Attributes:
        held_out: Whether the run was not trained on the states.
        parameters: Number of trainable parameters of its network.

    Raises:
        MissingError: If there is no checkpoint, or no state that all of its models have encoded.
        DamagedError: If the checkpoint or the data is damaged.
    """

    def __init__(self, run: TrainedRun, most: int = STATES, device: str = "cpu") -> None:
        path = checkpoint.latest(run.folder / "checkpoints")
        self._frame_stack = run.config.network.frame_stack
        self._flat = _data(run.folder, run.config)
        network, _ = load_network(run.config, self._flat, path)
        self._network: Any = network.to(torch.device(device)).eval()
        self.parameters = count_parameters(network).total
        self._rows, self.held_out = _held_out(run.config, self._flat, most, self._recurrent)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _recurrent(self) -> bool:
        return bool(self._network.recurrent)

    @torch.inference_mode()
    def decide(self, mask: Mask) -> Decisions:
        """Run the network on the states with some of its models.

        With none of them the state vector is the empty sum, zeros.
        """
        memory = self._network.initial_state(1) if self._recurrent else None
        parts: list[tuple[Tensor, Tensor | None]] = []
        with contextlib.nullcontext() if any(mask) else _without_models(self._network):
            for stacks, first in self._states():
                if memory is None:
                    values, *_, weights = self._network(stacks, mask)
                else:
                    values, _, weights, memory = self._network(stacks, first, memory, mask)
                parts.append((values, weights))
        values = torch.cat([values for values, _ in parts]).float().cpu().numpy()
        weighed = [weights for _, weights in parts if weights is not None]
        return Decisions(values, torch.cat(weighed).float().cpu().numpy() if weighed else None)

    def _states(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield stacks (n, k, width), and whether each starts a new sequence, shape (n,)."""
        device, depth = self._network.device, self._frame_stack
        gathered, before = StateRows(self._flat), -1
        for start in range(0, len(self._rows), CHUNK):
            rows = self._rows[start : start + CHUNK]
            stacks = gathered.gather(self._flat.stack(rows, depth), {depth - 1: rows})
            begins = np.diff(rows, prepend=before) != 1
            begins |= self._flat.rows["first"][rows] == rows
            before = int(rows[-1])
            first = torch.from_numpy(begins.astype(np.float32))
            yield torch.from_numpy(stacks).to(device), first.to(device)


class _NoModels(torch.nn.Module):
    """Replaces a torso; returns the state vector of no model."""

    def __init__(self, torso: Any) -> None:
        super().__init__()
        self.out_features = torso.out_features

    def forward(self, stacks: Tensor, mask: Mask) -> tuple[Tensor, None]:
        return stacks.new_zeros(len(stacks), self.out_features, dtype=torch.float32), None


@contextlib.contextmanager
def _without_models(network: Any) -> Iterator[None]:
    """Remove all models from the network until the block ends."""
    torso, network.torso = network.torso, _NoModels(network.torso)
    try:
        yield
    finally:
        network.torso = torso


def _data(folder: Path, config: OfflineRun | OnlineRun) -> FlatMap:
    """The run's data; for an online run, what the store now has of its game by all its models.

    What the run itself recorded is left out, unless there is nothing else.
    """
    config = find_store(config)
    if isinstance(config, OfflineRun):
        _, flat = open_data(config)
        assert flat is not None, "an offline run has data"
        return flat
    snapshot = take_snapshot(open_store(config.store))
    encoded = snapshot.segments_encoded_by(config.game, config.inputs)
    others = [meta for meta in encoded if meta.run != config.record]
    if not encoded:
        called = ",".join(names.key_alias(key) for key in config.inputs)
        raise MissingError(
            "not-encoded",
            f"{folder} was trained online, and the store {config.store} has no states of {config.game} "
            f"that all of its models have encoded. Make some: wsa collect --game {config.game}, "
            f"then wsa encode --game {config.game} --models {called}",
        )
    segments = [meta.segment for meta in others or encoded]
    return materialize(only(snapshot, config.game, segments), config.game, config.inputs)


def _held_out(
    config: OfflineRun | OnlineRun, flat: FlatMap, most: int, in_order: bool
) -> tuple[NDArray[np.int64], bool]:
    """Rows of states, and whether they are held out.

    Rows are evenly spaced, or consecutive for a network with a memory. An online run learns from
    its own play, which the store has if it recorded it, unless it mixes stored data in.
    """
    if isinstance(config, OnlineRun):
        # A segment's id begins with its run.
        own = config.record and any(part.segment.startswith(config.record) for part in flat.parts)
        rows, held_out = flat.steps, not (own or config.mixes_stored)
    else:
        rows = hold_out(flat, config.hyperparameters.validation_fraction)[1]
        held_out = len(rows) > 0
        rows = rows if held_out else flat.steps
    if in_order:
        return rows[:most], held_out
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))
    return rows[chosen], held_out
