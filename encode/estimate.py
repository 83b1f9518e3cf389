"""What an encoding would take, for `wsa encode --dry-run`: passes, bytes, minutes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from wsa.encode.inference.encoder import Encoder
from wsa.encode.models.registry import Request
from wsa.encode.plan import make_plan
from wsa.encode.registration import fit_reduction, register
from wsa.encode.registration import identity as lookup
from wsa.store.common import names
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.probe import MAX_STEP_ERROR
from wsa.store.objects.snapshot import Snapshot


@dataclasses.dataclass(frozen=True)
class Sized:
    """One model as it was found where it would run.

    Attributes:
        engine: What would run it.
        rate: Frames a second of that.
        window: Consecutive frames that it looks at.
        features: Numbers of one input before any reduction.
        numbers: Numbers of an embedding.
    """

    engine: str
    rate: float
    window: int
    features: int
    numbers: int


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


def size_up(
    snapshot: Snapshot,
    request: Request,
    games: Sequence[str],
    device: str,
    engine: str = "auto",
    max_step_error: float = MAX_STEP_ERROR,
) -> tuple[Sized, Encoder]:
    """Build a model and measure its engines, as when it is registered; nothing is written.

    Raises:
        MissingError: No weights, or an engine that is not installed.
        UsageError: A precision that is not to be had there.
        ConflictError: A model that fails, or a precision that errs too much.
    """
    found, _, identity = register.measured(snapshot, request, device, engine, games)
    choice = found.choose(engine, identity.precision, max_step_error)
    features = found.embed(choice.engine, identity.precision)[0].size
    numbers = parse_output(request.output).numbers or features
    sized = Sized(choice.engine, choice.rate, identity.window, features, numbers)
    return sized, found.encoder(choice.engine, identity.precision)


def estimate(
    snapshot: Snapshot,
    request: Request,
    games: Sequence[str],
    sized: Sized,
    at_once: int = 1,
) -> Estimate:
    """Plan one model.

    Args:
        snapshot: The store.
        request: The model.
        games: Games.
        sized: The model, from `size_up`.
        at_once: Workers that run it side by side.
    """
    spec = lookup.find(snapshot, request)
    # Of a model that is not in the store, nothing has been encoded under whatever key it will get.
    key = spec.key if spec else names.make_model_key(request.alias, "0" * 12)
    plan = make_plan(snapshot, [key], games, windows={key: sized.window})
    fit = 0 if spec else fit_reduction.count(snapshot, parse_output(request.output), sized.window)
    numbers = math.prod(spec.shape) if spec else sized.numbers
    return Estimate(
        alias=request.alias,
        objects=len(plan.items),
        passes=plan.passes,
        copies=plan.copies,
        strip=fit,
        bytes=2 * numbers * sum(item.inputs for item in plan.items),
        engine=sized.engine,
        # A basis is fitted by one worker alone.
        minutes=(plan.passes / at_once + fit) / sized.rate / 60,
    )
