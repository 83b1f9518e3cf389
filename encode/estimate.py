"""What an encoding would take, for `wsa encode --dry-run`: passes, bytes, minutes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from wsa.encode import fitting, lookup, probe, register
from wsa.encode.cluster import cores
from wsa.encode.forward import choose_device
from wsa.encode.models import Request
from wsa.encode.plan import make_plan
from wsa.store.reader import Snapshot


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One model's share of the work.

    Attributes:
        alias: The model.
        objects: Embedding objects to write.
        passes: Frames, or windows of frames, to run through the model.
        copies: Those whose embedding is copied.
        strip: Frames of the strip, or of a game, to run to fit the model's basis.
        bytes: Size of the embeddings before compression, which saves about a third.
        engine: What would run it.
        minutes: Time, from that engine's rate measured just now.
    """

    alias: str
    objects: int
    passes: int
    copies: int
    strip: int
    bytes: int
    engine: str
    minutes: float


def estimate(
    snapshot: Snapshot,
    request: Request,
    games: Sequence[str],
    workers: int,
    device: str,
    engine: str = "auto",
    max_step_error: float = probe.MAX_STEP_ERROR,
) -> Estimate:
    """Plan one model and time the engine that would run it; nothing is written.

    Raises:
        MissingError: No weights.
        UsageError: An engine or a precision that is not to be had here.
        ConflictError: A precision that errs too much.
    """
    spec = lookup.find(snapshot, request)
    # Of a model that is not in the store, nothing has been encoded under whatever key it will get.
    key = spec.key if spec else f"{request.alias}-{'0' * 12}"
    device = choose_device(device)
    found, _, identity = register.measured(snapshot, request, device, engine, games)
    plan = make_plan(snapshot, [key], games, windows={key: identity.window})
    choice = found.choose(engine, identity.precision, max_step_error)
    encoder = found.encoder(choice.engine, identity.precision)
    width = found.embed(choice.engine, identity.precision)[0].size
    numbers = encoder.output.numbers or width
    if spec is not None:
        numbers = math.prod(spec.shape)
    fit = 0 if spec else fitting.count(snapshot, encoder.output, identity.window)
    parallel = (
        1
        if encoder.device.type == "cuda"
        else max(1, (workers or cores()) / torch.get_num_threads())
    )
    return Estimate(
        alias=request.alias,
        objects=len(plan.items),
        passes=plan.passes,
        copies=plan.copies,
        strip=fit,
        bytes=2 * numbers * sum(item.inputs for item in plan.items),
        engine=choice.engine,
        minutes=(plan.passes + fit) / choice.rate / parallel / 60,
    )
