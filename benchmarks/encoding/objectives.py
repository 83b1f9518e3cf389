"""Ways to train the small state encoder, at equal CPU time, compared by the probe.

    OMP_NUM_THREADS=1 python -m benchmarks.encoding.objectives FOLDER --store STORE --judged STORE [--minutes 4]

The first store holds random and better play of the training games; the second holds that of the
test games, played with other seeds. Games only in the second store are unseen in training. Every
objective trains the same small, fully connected network (not that of `sr`) from the same weights on
the same mixed batches, until its process has used the CPU minutes. Then `wsa.learn.probe` compares
them with three untrained networks, grayscale pixels, and the models that encoded the second store,
on every game.

Weights and probes are saved in the folder, one file each: the same command makes what is missing.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kit import markdown
from wsa.encode.models.custom import Input
from wsa.encode.models.paper.base import Frozen, gray, initialize
from wsa.learn.pretrain import data, masked_autoencoder, stdim
from wsa.learn.pretrain.trainee import TrainingInput
from wsa.learn.probe import inputs, probe, samples, targets
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot

ACTIONS = 18
LEAST_DEVIATION = 0.03
# Receptive field and stride, in pixels, of each of the 9 x 9 positions after two convolutions.
_SEEN, _APART = 20, 8


class SmallStateEncoder(Frozen):
    """DQN's network at half its width; one frame, 0.83 M parameters, 2.3 M multiply-adds."""

    sees: ClassVar[Input] = gray(84, 84)
    window: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(1, 16, 8, 4), nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2), nn.ReLU(),
        )  # fmt: skip
        self.code = nn.Sequential(
            nn.Conv2d(32, 32, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 7 * 7, 512)
        )
        initialize(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 1, 84, 84) in [0, 1] to (B, 512)."""
        code: Tensor = self.code(self.patches(pixels))
        return code


class SmallInfoMax(stdim.InfoMax):
    """ST-DIM without ties.

    Most positions of a screen look the same in many steps, which no code can distinguish. So at
    each position a step is compared only with steps that look different there.
    """

    network: ClassVar[type[Frozen]] = SmallStateEncoder
    channels: ClassVar[int] = 32
    places: ClassVar[tuple[int, int]] = (9, 9)
    training_input: ClassVar[TrainingInput] = TrainingInput(SmallStateEncoder.sees, depth=2)

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE without ties, global to local and local to local, for looks (B, 2, 84, 84)."""
        with torch.autocast(looks.device.type, enabled=False):
            ties = same_places(looks[:, :1])
            parts = [stdim.info_nce(s.masked_fill(ties, -torch.inf)) for s in self.scores(looks)]
        return parts[0] + parts[1], {"global_local": parts[0], "local_local": parts[1]}


def same_places(frames: Tensor) -> Tensor:
    """Whether frames look the same at each position, shape (81, B, B); False on the diagonal.

    Args:
        frames: Shape (B, 1, 84, 84), in [0, 1].
    """
    shown = functional.unfold(frames, _SEEN, stride=_APART).double()  # (B, 400, 81)
    # A weighted sum with irregular weights: equal for equal pixels, otherwise almost never.
    weights = torch.sin(torch.arange(1, shown.shape[1] + 1, dtype=torch.float64)).to(frames.device)
    key = torch.einsum("bkp,k->pb", shown, weights)
    same = (key[:, :, None] - key[:, None, :]).abs() < 1e-9
    return same & ~torch.eye(len(frames), dtype=torch.bool, device=frames.device)


SIGHT = SmallInfoMax.training_input  # A frame and the one before it.


def untrained(seed: int) -> SmallStateEncoder:
    """The network, initialized with a seed."""
    torch.manual_seed(seed)
    return SmallStateEncoder()


class Batch:
    """Pairs of consecutive frames from several games.

    Attributes:
        before, now: A frame and the next one, shape (B, 1, 84, 84), float32 in [0, 1].
        action: Index of the action between them, out of all 18, shape (B,).
        weight: Inverse standard deviation of each pixel in its game, shape (B, 1, 84, 84), mean 1.
    """

    def __init__(self, looks: Tensor, action: Tensor, weight: Tensor) -> None:
        self.looks = looks
        self.before, self.now = looks[:, :1], looks[:, 1:]
        self.action, self.weight = action, weight


class Frames:
    """Frames of a store in memory, with the actions between them."""

    def __init__(self, store: str) -> None:
        _, snapshot = open_snapshot(store)
        games = sorted({meta.game for meta in snapshot.segments()})
        choice = data.choose(snapshot, games, (), [SIGHT], 1 << 40)
        self.examples = data.read(snapshot, choice.segments, SIGHT, 0.05)
        self.games = games
        names = sorted({name for m in choice.segments for name in m.protocol.actions})
        actions = []
        for meta in choice.segments:
            number = np.array([*(names.index(name) for name in meta.protocol.actions), 0])
            actions.append(number[snapshot.read_rows(meta)["action"].astype(np.int64)])
        self.action = np.concatenate(actions)
        self.weight = {game: self._weight(rows) for game, rows in self.examples.training.items()}

    def _weight(self, rows: NDArray[np.int64]) -> Tensor:
        """Inverse standard deviations of a game's pixels, shape (1, 84, 84), mean 1."""
        generator = np.random.default_rng(0)
        sample = self.examples.take(generator.choice(rows, 2_000), generator)[:, 1:].float() / 255
        inverse = 1 / sample.std(dim=0).clamp(min=LEAST_DEVIATION)
        return inverse / inverse.mean()

    def draw(self, generator: np.random.Generator, count: int) -> Batch:
        """Draw pairs of frames, about equally many from each game."""
        games = np.sort(generator.integers(0, len(self.games), count))
        rows = np.array([generator.choice(self.examples.training[self.games[g]]) for g in games])
        before = self.examples.frame_rows(rows, generator)[:, 0]
        return Batch(
            data.scale(self.examples.take(rows, generator), "cpu"),
            torch.from_numpy(self.action[before]),
            torch.stack([self.weight[self.games[g]] for g in games]),
        )


class Objective(nn.Module):
    """Trains the encoder by minimizing `loss`; `after` is called after each gradient step."""

    def __init__(self, encoder: SmallStateEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def loss(self, batch: Batch) -> Tensor:
        """The loss, a scalar."""
        raise NotImplementedError

    def after(self) -> None:
        """Update moving averages, if there are any."""


class InfoMax(Objective):
    """ST-DIM (Anand et al., 2019)."""

    def __init__(self, encoder: SmallStateEncoder) -> None:
        super().__init__(encoder)
        self.scorer = SmallInfoMax()
        self.scorer.encoder = encoder

    def loss(self, batch: Batch) -> Tensor:
        """See the class."""
        return stdim.InfoMax.loss(self.scorer, batch.looks, 0.0)[0]


class DistinctInfoMax(InfoMax):
    """ST-DIM without ties: a loss that can reach 0."""

    def loss(self, batch: Batch) -> Tensor:
        """See the class."""
        return self.scorer.loss(batch.looks, 0.0)[0]


class InverseDynamics(Objective):
    """Predict the action between two frames from their codes (Pathak et al., 2017)."""

    def __init__(self, encoder: SmallStateEncoder) -> None:
        super().__init__(encoder)
        self.head = nn.Sequential(nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, ACTIONS))

    def loss(self, batch: Batch) -> Tensor:
        """See the class."""
        codes = self.encoder(batch.looks.flatten(0, 1).unsqueeze(1)).unflatten(0, (-1, 2))
        return functional.cross_entropy(self.head(codes.flatten(1)), batch.action)


class SelfPrediction(Objective):
    """Predict the moving-average encoder's next code from code and action (SPR, BYOL)."""

    def __init__(self, encoder: SmallStateEncoder) -> None:
        super().__init__(encoder)
        self.project = nn.Sequential(
            nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128)
        )
        self.predict = nn.Sequential(
            nn.Linear(128 + ACTIONS, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128)
        )
        self.target = copy.deepcopy(nn.Sequential(encoder, self.project)).requires_grad_(False)

    def loss(self, batch: Batch) -> Tensor:
        """See the class."""
        action = functional.one_hot(batch.action, ACTIONS).float()
        code = self.project(self.encoder(batch.before))
        predicted = self.predict(torch.cat([code, action], dim=1))
        with torch.no_grad():
            target_code = self.target(batch.now)
        return 1 - functional.cosine_similarity(predicted, target_code).mean()

    def after(self) -> None:
        """Update the moving averages of the networks."""
        online = [*self.encoder.parameters(), *self.project.parameters()]
        for slow, fast in zip(self.target.parameters(), online, strict=True):
            slow.data.lerp_(fast.data, 0.01)


class Reconstruction(Objective):
    """Reconstruct the frame from its code; errors are weighted by `Batch.weight`."""

    masked = 0.0

    def __init__(self, encoder: SmallStateEncoder) -> None:
        super().__init__(encoder)
        self.decode = masked_autoencoder.decoder(512)

    def loss(self, batch: Batch) -> Tensor:
        """See the class."""
        visible, weight = batch.now, batch.weight
        if self.masked:
            hidden = (torch.rand(len(visible), 1, 12, 12) < self.masked).float()
            hidden = functional.interpolate(hidden, size=(84, 84))
            visible, weight = visible * (1 - hidden), weight * hidden / self.masked
        return ((self.decode(self.encoder(visible)) - batch.now).square() * weight).mean()


class MaskedReconstruction(Reconstruction):
    """Reconstruct hidden patches: half of the 7 x 7 patches of a frame (MAE; He et al., 2022)."""

    masked = 0.5


class Several(Objective):
    """One encoder with several heads, whose losses are added."""

    heads: tuple[type[Objective], ...] = (DistinctInfoMax, InverseDynamics, Reconstruction)

    def __init__(self, encoder: SmallStateEncoder) -> None:
        super().__init__(encoder)
        self.parts = nn.ModuleList(head(encoder) for head in self.heads)

    def loss(self, batch: Batch) -> Tensor:
        """See the class."""
        return sum((part.loss(batch) for part in self.parts), torch.tensor(0.0))


class TwoHeads(Several):
    """ST-DIM without ties, plus reconstruction."""

    heads = (DistinctInfoMax, Reconstruction)


OBJECTIVES: dict[str, Callable[[SmallStateEncoder], Objective]] = {
    "ST-DIM": InfoMax,
    "ST-DIM without ties": DistinctInfoMax,
    "inverse dynamics": InverseDynamics,
    "self-prediction": SelfPrediction,
    "weighted reconstruction": Reconstruction,
    "masked reconstruction": MaskedReconstruction,
    "three heads": Several,
    "two heads": TwoHeads,
}


def train(file: Path, name: str, frames: Frames, minutes: float, seed: int) -> None:
    """Train for some CPU minutes; save the encoder with its steps and loss."""
    torch.manual_seed(seed)
    encoder = untrained(seed)
    objective = OBJECTIVES[name](encoder.train())
    optimizer = torch.optim.Adam(
        [p for p in objective.parameters() if p.requires_grad], 3e-4, eps=1e-5, fused=True
    )
    generator = np.random.default_rng(seed)
    began, steps = time.process_time(), 0
    while time.process_time() - began < 60 * minutes:
        loss = objective.loss(frames.draw(generator, 64))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        objective.after()
        steps += 1
    print(f"{name}, seed {seed}: {steps:,} steps, loss {loss.item():.3f}", flush=True)
    facts = {"steps": str(steps), "minutes": str(minutes), "loss": str(loss.item())}
    safetensors.torch.save_file(encoder.state_dict(), file, facts)


def load_encoders(folder: Path) -> Iterator[tuple[str, SmallStateEncoder]]:
    """Yield every encoder of a folder, and three untrained ones."""
    for seed in range(3):
        yield f"untrained, seed {seed}", untrained(seed)
    for file in sorted(folder.glob("*.safetensors")):
        encoder = SmallStateEncoder()
        encoder.load_state_dict(safetensors.torch.load_file(file))
        yield file.stem, encoder


def probe_encoders(
    snapshot: Snapshot, game: str, count: int, encoders: Sequence[tuple[str, SmallStateEncoder]]
) -> dict[str, list[float | None]]:
    """R2, hits, and R2 from random to better play, of every encoder and every stored model."""
    stored = {
        key: read_spec(snapshot, key).alias for key in {m.model for m in snapshot.embeddings(game)}
    }
    segments = samples.choose(snapshot, game, [*stored], (), samples.SPREAD * count)
    segments, labeler, _ = targets.replay(snapshot, segments, lambda done: None)
    sampled = samples.draw(snapshot, segments, labeler, count, 5, 1)
    variables, _ = probe.usable_variables(sampled, probe.MIN_ENTROPY)
    plan = probe.Plan(stored, variables, True, True, False, 0, True, 1)
    pixels = levels(snapshot, sampled)

    def embeddings() -> Iterator[probe.Named]:
        yield "gray pixels, 500", "", "pixels", inputs.pixels(snapshot, sampled, 500)
        for key, alias in stored.items():
            yield alias, key, "model", inputs.embeddings(snapshot, game, key, sampled)
        for name, encoder in encoders:
            with torch.inference_mode():
                codes = [encoder.eval()(data.scale(part, "cpu")) for part in pixels.split(256)]
            yield name, "", "model", torch.cat(codes).numpy()

    table = probe.compare(sampled, plan, embeddings())
    results: dict[str, list[float | None]] = {}
    for line in table.lines:
        both, across = (table.means.get((line.name, way)) for way in ("both", "transfer"))
        results[line.name] = [
            *([m.value for m in both] if both else [None, None]),
            across[0].value if across else None,
        ]
    return results


def levels(snapshot: Snapshot, sampled: samples.SampledSteps) -> Tensor:
    """Gray levels of the steps, shape (n, 1, 84, 84), uint8."""
    parts = []
    for meta, frames in zip(sampled.segments, sampled.frames, strict=True):
        distinct, at = np.unique(frames, return_inverse=True)
        if len(distinct):
            screens = snapshot.read_frames(meta)
            parts += [data.levels(np.stack([screens[i] for i in distinct.tolist()]), SIGHT)[at]]
    return torch.from_numpy(np.concatenate(parts)).unsqueeze(1)


def tables(probed: dict[str, dict[str, list[float | None]]], trained: Sequence[str]) -> None:
    """Print R2 / hit of each encoder by game, and means over training games and unseen games."""
    games = [*sorted(set(probed) & set(trained)), *sorted(set(probed) - set(trained))]
    columns = [g if g in trained else f"{g} (unseen)" for g in games]
    rows: list[tuple[float, list[str]]] = []
    for name in dict.fromkeys(name for by_encoder in probed.values() for name in by_encoder):
        cells = [probed[game].get(name) or [None, None, None] for game in games]
        seen: list[Any] = [
            c for c, g in zip(cells, games, strict=True) if g in trained and c[0] is not None
        ]
        unseen: list[Any] = [
            c for c, g in zip(cells, games, strict=True) if g not in trained and c[0] is not None
        ]
        means = [
            f"{np.mean([c[0] for c in cells_of]):.3f} / {np.mean([c[1] for c in cells_of]):.3f}"
            if cells_of
            else "-"
            for cells_of in (seen, unseen)
        ]
        scores = ["-" if c[0] is None else f"{c[0]:.2f} / {c[1]:.2f}" for c in cells]
        rows.append(
            (float(np.mean([c[0] for c in seen])) if seen else 0.0, [name, *means, *scores])
        )
    markdown(
        ["encoder (R2 / hit)", "mean, trained on", "mean, unseen", *columns],
        [row for _, row in sorted(rows, key=lambda r: -r[0])],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", required=True)
    parser.add_argument("--judged", required=True)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--only", default="", help="objectives, separated by commas")
    o = parser.parse_args()
    torch.set_num_threads(1)
    o.folder.mkdir(parents=True, exist_ok=True)
    frames: Frames | None = None
    for seed in range(1, o.seeds + 1):
        for name in o.only.split(",") if o.only else OBJECTIVES:
            file = o.folder / f"{name}, seed {seed}.safetensors"
            if not file.exists():
                frames = frames or Frames(o.store)
                train(file, name, frames, o.minutes, seed)
    encoders = list(load_encoders(o.folder))
    _, training = open_snapshot(o.store)
    _, snapshot = open_snapshot(o.judged)
    results_file = o.folder / "probes.json"
    probed = json.loads(results_file.read_text()) if results_file.exists() else {}
    for game in sorted({meta.game for meta in snapshot.segments()}):
        if any(name not in probed.get(game, {}) for name, _ in encoders):
            probed[game] = probe_encoders(snapshot, game, o.samples, encoders)
            results_file.write_text(json.dumps(probed, indent=1))
            print(f"probed {game}", flush=True)
    tables(probed, sorted({meta.game for meta in training.segments()}))


if __name__ == "__main__":
    main()
