"""`wsa pretrain`: train encoders as the options say, and print the results."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from distributed.system import MEMORY_LIMIT

from wsa.encode.inference import engines
from wsa.encode.inference.encoder import choose_device
from wsa.learn.configs.pretrain import PretrainOptions
from wsa.learn.pretrain import data, trainer
from wsa.learn.pretrain.trainee import Trainee
from wsa.learn.pretrain.trainer import TRAINEES, Training, trainee
from wsa.store.common import memory, names, terminal
from wsa.store.common.errors import UsageError
from wsa.store.common.ranges import check_ranges
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot


@memory.reported("Use a smaller --batch-size or --memory-gb.")
def pretrain_encoders(o: PretrainOptions) -> int:
    """`wsa pretrain`."""
    _check(o)
    games = list(dict.fromkeys(map(names.game, o.games)))
    training_inputs = [trainee(encoder).training_input for encoder in o.encoder]
    _, snapshot = open_snapshot(o.store)
    memory = round(o.compute.memory_gb * 1e9) or MEMORY_LIMIT // 2
    choice = data.choose(snapshot, games, o.recipe.policies, training_inputs, memory)
    policies = sorted({meta.policy for meta in choice.segments})
    terminal.say(
        f"{choice.frames:,} frames of {', '.join(games)}, played by {', '.join(policies)}, in "
        f"{terminal.plural(len(choice.segments), 'segment')}"
    )
    if choice.left_out:
        terminal.say(
            f"{choice.left_out:,} frames are left out, because they do not fit into "
            f"{terminal.size(memory)} of memory; each game has the same share of it. --memory-gb raises it."
        )
    device = choose_device(o.compute.device)
    engines.require("torch", torch.device(device), o.compute.precision)
    torch.set_num_threads(o.compute.threads)
    trainings = {encoder: _training(o, encoder, snapshot, choice) for encoder in o.encoder}
    if o.dry_run:
        return terminal.result(o.json, {e: _estimate(t, device) for e, t in trainings.items()})
    folder = Path(o.run_dir or f"runs/pretrain__{o.seed}__{int(time.time())}")
    terminal.say(f"run {folder}")
    for encoder, training in trainings.items():
        trainer.begin(folder / encoder, training)
    manifests = {
        e: _train(o, folder / e, t, snapshot, choice, device) for e, t in trainings.items()
    }
    if o.json:
        return terminal.result(True, {"run": str(folder), "encoders": manifests})
    rows = []
    for encoder, m in manifests.items():
        trained = [encoder, m["gradient_steps"], m["best_step"], _number(m["validation_loss"])]
        for alias, info in m["files"].items():
            rows.append([*trained, str(folder / encoder / f"{alias}.safetensors"), info["bytes"]])
    columns = ["encoder", "gradient steps", "best at", "validation loss", "weights", "bytes"]
    terminal.table("", columns, rows)
    return 0


def _train(
    o: PretrainOptions,
    folder: Path,
    training: Training,
    snapshot: Snapshot,
    choice: data.Choice,
    device: str,
) -> dict[str, Any]:
    """Train one encoder, and show its progress."""
    shown = not o.json
    reading = terminal.Progress(f"{training.encoder}: read", "frames", choice.frames, shown=shown)
    with reading:
        examples = trainer.open_examples(training, snapshot, reading.update)
    training_progress = terminal.Progress(
        f"{training.encoder}: train", "steps", training.steps, shown=shown
    )
    with training_progress:
        return trainer.run(
            folder,
            training,
            examples,
            half=o.compute.half,
            device=device,
            on_line=lambda step, _: training_progress.update(step),
        )


def _training(
    o: PretrainOptions, encoder: str, snapshot: Snapshot, choice: data.Choice
) -> Training:
    recipe = trainee(encoder).recipe
    batch_size = o.recipe.batch_size or recipe.batch_size
    trained_on = (1 - o.recipe.held_out) * sum(meta.steps for meta in choice.segments)
    steps = (
        math.ceil(o.recipe.epochs * trained_on / batch_size)
        if o.recipe.epochs
        else o.steps or recipe.steps
    )
    return Training(
        encoder=encoder,
        store=snapshot.backend.url,
        segments=tuple((meta.game, meta.segment) for meta in choice.segments),
        data=data.data_digest(snapshot, choice.segments),
        seed=o.seed,
        steps=steps,
        batch_size=batch_size,
        learning_rate=o.recipe.learning_rate or recipe.learning_rate,
        held_out=o.recipe.held_out,
        validate_frequency=o.recipe.validate_frequency or max(1, steps // 100),
        patience=o.recipe.patience,
        log_frequency=max(1, min(100, steps // 100)),
        precision=o.compute.precision,
    )


def _estimate(training: Training, device: str) -> dict[str, Any]:
    """Estimate the cost of a training from one gradient step on noise."""
    kind = trainee(training.encoder)
    network: Trainee = kind().to(device).to(memory_format=torch.channels_last)
    training_input = kind.training_input
    seconds = 0.0
    for count in (2, training.batch_size):  # The first pass is not timed: libraries initialize.
        examples = torch.rand(
            count, training_input.frames, training_input.height, training_input.width
        ).to(device)
        began = time.perf_counter()
        with engines.arithmetic(examples.device, training.precision):
            loss, _ = network.loss(examples, 0)
        loss.backward()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return {
        "gradient_steps": training.steps,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "parameters": sum(p.numel() for p in network.parameters()),
        "hours_without_validations": training.steps * seconds / 3600,
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _check(o: PretrainOptions) -> None:
    """Refuse impossible options, before anything is opened.

    Raises:
        UsageError: If a value is out of range.
    """
    unknown = [name for name in o.encoder if name not in TRAINEES]
    if unknown or not o.encoder:
        raise UsageError(
            f"--encoder {','.join(o.encoder)}: write one or more of {','.join(TRAINEES)}."
        )
    if not o.games:
        raise UsageError("--games names no game. Write for example --games Pong,Breakout.")
    if o.steps and o.recipe.epochs:
        raise UsageError("Give --steps or --epochs, not both.")
    for part in (o, o.recipe, o.compute):
        check_ranges(part)
    if o.recipe.batch_size == 1:
        raise UsageError("--batch-size must be at least 2, to compare samples with each other.")
