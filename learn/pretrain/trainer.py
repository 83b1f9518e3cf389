"""Train one of the paper's own encoders, from frames in memory to files that `wsa encode` takes.

runs/pretrain__{seed}__{time}/{encoder}/
    config.json       everything the training depends on, the data's segments included
    command.txt       the command line
    metrics.jsonl     losses, one line each; TensorBoard events beside them
    checkpoints/      the two newest; the same command continues exactly from the newest
    {alias}.safetensors    the frozen encoder with the best validation loss
    manifest.json     the training's data and settings, and each file's digest
    curves.png, seen.png   the losses; the encoder's view of held-out frames
    lock              held while a process trains it
"""

from __future__ import annotations

import copy
import dataclasses
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from wsa.encode.inference import engines
from wsa.learn.pretrain import data as pretrain_data
from wsa.learn.pretrain import outputs
from wsa.learn.pretrain.data import Examples, scale
from wsa.learn.pretrain.trainee import Trainee
from wsa.learn.training import checkpoint
from wsa.learn.training.lock import locked
from wsa.learn.training.loop import Loop, OnLine
from wsa.store.common import atomic_files, hashing
from wsa.store.common.errors import ConflictError
from wsa.store.format import records
from wsa.store.objects.model_spec import Precision
from wsa.store.objects.snapshot import Snapshot
from wsa.store.objects.writer import command_line

# Module and class of each trainee; imported one at a time.
TRAINEES = {
    "ae": "autoencoder:Autoencoder",
    "stdim": "stdim:InfoMax",
    "mae": "masked_autoencoder:MaskedAutoencoder",
    "transporter": "transporter:Transporter",
    "segmentation": "segmentation:MovingObjects",
}


def trainee(encoder: str) -> type[Trainee]:
    """Import the class for `encoder`, a key of `TRAINEES`."""
    found: type[Trainee] = pkgutil.resolve_name(f"wsa.learn.pretrain.{TRAINEES[encoder]}")
    return found


class Training(msgspec.Struct, frozen=True):
    """Settings of a training.

    Attributes:
        encoder: A key of `TRAINEES`.
        store: The store's URL.
        segments: (game, segment) of every segment to read.
        data: Digest of their data, from `pretrain_data.data_digest`.
        seed: Seed of the initialization and batches.
        steps: Maximum number of gradient steps.
        batch_size: Examples in a batch.
        learning_rate: Adam's initial learning rate.
        held_out: Share of each game's episodes to hold out.
        validate_frequency: Gradient steps between validations.
        patience: Training stops after this many validations without improvement; 0 for never.
        log_frequency, save_frequency: Gradient steps between lines of losses, and checkpoints.
        precision: Precision of forward and backward passes. Weights and Adam's moments are always
            single precision.
    """

    encoder: str
    store: str
    segments: tuple[tuple[str, str], ...]
    data: str
    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    held_out: float
    validate_frequency: int
    patience: int
    log_frequency: int = 100
    save_frequency: int = 1000
    precision: Precision = "fp32"


@dataclasses.dataclass
class Best:
    """The best validation so far.

    Attributes:
        step: Number of gradient steps at that validation.
        loss: Its loss; infinite before the first.
        since: Number of validations since then.
        stopped: Whether training has stopped early.
    """

    step: int = 0
    loss: float = float("inf")
    since: int = 0
    stopped: bool = False


# Settings that do not change the gradient steps, so a continued training may change them.
_CADENCE = ("validate_frequency", "log_frequency")


@dataclasses.dataclass(frozen=True)
class Trained:
    """Result of a training.

    Attributes:
        network: The trainee, with the best weights.
        best: The validation of these weights.
        step: Total number of gradient steps.
        steps_per_s: Gradient steps per second in this process; 0 if it made none.
    """

    network: Trainee
    best: Best
    step: int
    steps_per_s: float


def begin(folder: Path, training: Training) -> None:
    """Start a training in `folder`, or check that the one there is the same or a shorter one.

    Raises:
        ConflictError: If another training is there.
    """
    path = folder / "config.json"
    if path.exists():
        existing = records.read_json(path.read_bytes(), Training, str(path))
        if existing == training:
            return
        fields = [
            f for f in Training.__struct_fields__ if getattr(existing, f) != getattr(training, f)
        ]
        longer = training.steps > existing.steps and {*fields} <= {"steps", *_CADENCE}
        if not longer or trainee(training.encoder).scheduled:
            why = "; its schedule fixes the number of steps" if longer else ""
            raise ConflictError(
                "run-exists",
                f"{folder} holds a different training run: its {', '.join(fields)} differ{why}. "
                f"Use another --run-dir, or the command in {folder / 'command.txt'}.",
            )
    atomic_files.replace(path, msgspec.json.format(hashing.canonical(training)))
    atomic_files.replace(folder / "command.txt", (command_line() + "\n").encode())


def open_examples(
    training: Training,
    snapshot: Snapshot,
    on_frames: Callable[[int], None] = lambda done: None,
) -> Examples:
    """Read the frames of a training into memory.

    Raises:
        MissingError: If the store has lost some, or a game has too few episodes.
        DamagedError: If stored bytes are not what was committed.
    """
    known = {(m.game, m.segment): m for m in snapshot.segments()}
    segments = [known[pair] for pair in training.segments]
    training_input = trainee(training.encoder).training_input
    return pretrain_data.read(snapshot, segments, training_input, training.held_out, on_frames)


def run(
    folder: Path,
    training: Training,
    examples: Examples,
    *,
    half: bool = False,
    device: str = "cpu",
    on_line: OnLine = lambda step, line: None,
) -> dict[str, Any]:
    """Train, or continue in a folder that `begin` prepared; write the encoder, manifest, and
    pictures.

    Returns:
        The manifest.

    Raises:
        ConflictError: If another process is training it.
        DamagedError: If the newest checkpoint is damaged.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after saving a checkpoint.
    """
    with locked(folder):
        trained = train_encoder(training, examples, folder, device, on_line)
        files = outputs.write_encoders(folder, trained.network, half)
        encoded = hashing.canonical(manifest(training, examples, trained, files))
        atomic_files.replace(folder / "manifest.json", msgspec.json.format(encoded))
        outputs.write_pictures(folder, trained.network, examples, device)
        decoded: dict[str, Any] = msgspec.json.decode(encoded)
        return decoded


def train_encoder(
    training: Training,
    examples: Examples,
    folder: Path,
    device: str = "cpu",
    on_line: OnLine = lambda step, line: None,
) -> Trained:
    """Train, or continue from the newest checkpoint in `folder`.

    Raises:
        DamagedError: If the newest checkpoint is damaged.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after saving a checkpoint.
    """
    kind = trainee(training.encoder)
    torch.manual_seed(training.seed)
    network: Trainee = kind().to(device).to(memory_format=torch.channels_last)
    best_network = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), eps=kind.recipe.adam_eps, fused=True)
    checkpoints = folder / "checkpoints"
    modules: dict[str, nn.Module] = {"network": network, "best": best_network}
    start, best = 0, Best()
    if checkpoint.all_of(checkpoints):
        start, extra = checkpoint.load(checkpoint.latest(checkpoints), modules, optimizer)
        best = Best(**extra)
    if start >= training.steps or best.stopped:
        return Trained(best_network, best, start, 0.0)

    def save(step: int) -> None:
        checkpoint.save(checkpoints, step, modules, optimizer, dataclasses.asdict(best))

    with Loop(
        folder, start, training.steps, save=save, save_frequency=training.save_frequency,
        on_line=on_line,
    ) as loop:  # fmt: skip
        logged, lap = start, 0.0
        for step in loop:
            rate = network.learning_rate(training.learning_rate, step - 1, training.steps)
            batch = scale(examples.draw(training.seed, step, training.batch_size), device)
            done = (step - 1) / training.steps
            loss, parts, norm = _update(network, optimizer, batch, done, rate, training.precision)
            line: dict[str, float] = {}
            if loop.every(training.log_frequency):
                line = {"losses/train": loss.item(), "charts/learning_rate": rate}
                line |= {f"losses/{name}": part.item() for name, part in parts.items()}
                line["charts/gradient_norm"] = norm.item()
                line["time/steps_per_s"] = (step - logged) / (loop.seconds - lap)
                lap, logged = loop.seconds, step
            if loop.every(training.validate_frequency):
                line |= _validate(network, best_network, examples, training, step, best, device)
            if line:
                loop.write(line)
            if 0 < training.patience <= best.since:
                loop.finish()
        return Trained(best_network, best, loop.step, (loop.step - start) / loop.seconds)


def _update(
    network: Trainee,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    done: float,
    rate: float,
    precision: Precision,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Make one gradient step; `done` is the completed share of all steps.

    Returns:
        The loss, its parts, and the gradient's norm.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    network.train()
    with engines.arithmetic(batch.device, precision):
        loss, parts = network.loss(batch, done)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    limit = network.recipe.clip or float("inf")
    norm = nn.utils.clip_grad_norm_(network.parameters(), limit)
    optimizer.step()
    return loss, parts, norm


def _validate(
    network: Trainee,
    best_network: Trainee,
    examples: Examples,
    training: Training,
    step: int,
    best: Best,
    device: str,
) -> dict[str, float]:
    """Validate on the whole held-out set, keep the weights if they are the best, return losses."""
    done = step / training.steps
    with engines.arithmetic(torch.device(device), training.precision):
        losses = validation_loss(network, examples, training.batch_size, done, device)
    mean_loss = float(np.mean(list(losses.values())))
    if done <= network.settled or mean_loss < best.loss:
        best.step, best.since = step, 0
        # Before the loss has its final meaning, keep the newest weights without comparing losses.
        best.loss = mean_loss if done > network.settled else float("inf")
        best_network.load_state_dict(network.state_dict())
    else:
        best.since += 1
        best.stopped = 0 < training.patience <= best.since
    return {
        "losses/validation": mean_loss,
        **{f"losses/validation/{game}": loss for game, loss in losses.items()},
    }


def validation_loss(
    network: Trainee, examples: Examples, batch_size: int, done: float, device: str
) -> dict[str, float]:
    """Mean loss of each game over its held-out examples, with the network in evaluation mode."""
    network.eval()
    sums = {game: 0.0 for game in examples.held_out}
    with torch.inference_mode():
        for game, batch in examples.validation(batch_size):
            loss, _ = network.loss(scale(batch, device), done)
            sums[game] += loss.item() * len(batch)
    return {game: total / len(examples.held_out[game]) for game, total in sums.items()}


def manifest(
    training: Training, examples: Examples, trained: Trained, files: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Everything that a reader of the files needs to know about them."""
    games = {
        game: {
            "steps": len(rows),
            "held_out_steps": len(examples.held_out[game]),
            "episodes": examples.episodes[game][0],
            "held_out_episodes": examples.episodes[game][1],
        }
        for game, rows in examples.training.items()
    }
    settings = msgspec.to_builtins(training)
    return {
        "files": files,
        "games": games,
        # `data` is the digest of the segments, which config.json names.
        "training": {**settings, "segments": len(training.segments)},
        "gradient_steps": trained.step,
        "best_step": trained.best.step,
        "validation_loss": trained.best.loss if np.isfinite(trained.best.loss) else None,
        "stopped_early": trained.best.stopped,
        "command": command_line(),
        "libraries": {"torch": str(torch.__version__), "numpy": np.__version__},
    }
