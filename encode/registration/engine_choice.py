"""Choose the engine that runs a model: the fastest accurate one, by measuring speed and error.

Every engine embeds the same frames: the probe frames, and for precisions below fp32 also
consecutive frames of the games to encode, since an error matters relative to the changes in a game.
The result is compared with PyTorch in fp32. Below `MAX_ENGINE_ERROR` the difference is negligible,
so the model key does not name the engine. The key does name the precision, whose error may reach
`--max-step-error`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.encode.inference import engines
from wsa.encode.inference.encoder import Encoder
from wsa.encode.inference.reduction import Reduction
from wsa.encode.inference.segment_inputs import read_segment_frames
from wsa.encode.models import screen
from wsa.encode.registration import probe_frames
from wsa.store.common import memory, user_code
from wsa.store.common.errors import ConflictError, WsaError
from wsa.store.objects import probe
from wsa.store.objects.model_spec import Identity, Precision, parse_output
from wsa.store.objects.snapshot import Snapshot

MAX_ENGINE_ERROR = 0.01
GAME_PAIRS = 16
PROBE = "probe frames"


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An engine that was not chosen.

    Attributes:
        engine: Name of the engine.
        why: Reason.
        rate: Frames per second; 0 if not measured.
        error: Largest step-relative error; None if not measured.
    """

    engine: str
    why: str
    rate: float = 0.0
    error: float | None = None

    def __str__(self) -> str:
        measured = "" if self.error is None else f" ({_measured(self.rate, self.error)})"
        return f"not {self.engine}{measured}: {self.why.rstrip('.')}"


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """The chosen engine, or a candidate, with its measurements.

    Attributes:
        engine: Name of the engine.
        rate: Frames per second in the measuring process, with preprocessing.
        errors: Step-relative errors relative to PyTorch in fp32, on the probe frames and by game.
        left_out: Other engines, with the reason why each was not chosen.
        network: Whether there is a network to run; `palette` and `objects` have none, so the
            engine does nothing.
    """

    engine: str
    rate: float
    errors: dict[str, float]
    left_out: tuple[LeftOut, ...] = ()
    network: bool = True

    @property
    def error(self) -> float:
        """Largest of the errors."""
        return max(self.errors.values())

    def __str__(self) -> str:
        if not self.network:
            return f"no network, {_frames(self.rate)}"
        return f"{self.engine}, {_measured(self.rate, self.error)}"

    @property
    def shown(self) -> str:
        """Name of the engine for tables and reports; `none` if there is no network to run."""
        return self.engine if self.network else "none"

    @property
    def run_by(self) -> str:
        """What runs the model, and why no other engine, in one line."""
        return f"run by {self.explained}" if self.network else str(self)

    @property
    def explained(self) -> str:
        """The engine, and why no other was chosen, in one line."""
        return "; ".join(map(str, (self, *self.left_out)))


def _frames(rate: float) -> str:
    return f"{rate:,.0f} frames/s" if rate >= 100 else f"{rate:.3g} frames/s"


def _measured(rate: float, error: float) -> str:
    return f"{_frames(rate)}, step error {error:.2g}"


class Engines:
    """The engines of one model, each created and measured on first use.

    Args:
        module: Network, as `wsa.encode.models.networks.build` returns it.
        alias: Name of the model, for messages.
        games: Inputs to measure on besides the probe frames, from `game_inputs`.
        threads: Number of CPU threads that call an encoder at once; torch's number if None.
    """

    def __init__(
        self,
        module: nn.Module,
        identity: Identity,
        alias: str,
        device: str,
        games: Mapping[str, NDArray[np.uint8]] | None = None,
        threads: int | None = None,
    ) -> None:
        self.module, self.identity = module, identity
        self._alias, self._device, self._threads = alias, device, threads
        self._output = parse_output(identity.output)
        probed = probe_frames.probe_inputs(identity.window, self._output.only_game)
        self._inputs = {PROBE: probed, **(games or {})}
        self._basis: Reduction | None = None
        self._encoders: dict[tuple[str, Precision], Encoder] = {}
        self._measurements: dict[tuple[str, Precision], tuple[float, dict[str, Tensor]]] = {}

    def set_basis(self, basis: Reduction | None) -> None:
        """Set the reduction of all encoders from now on."""
        self._basis = basis

    def encoder(self, engine: str, precision: Precision) -> Encoder:
        """Return the encoder, with the basis."""
        if (engine, precision) not in self._encoders:
            with self._naming_the_model(engine):
                self._encoders[engine, precision] = Encoder(
                    self.module,
                    self.identity.preprocessing,
                    self._output,
                    None,
                    precision,
                    self._device,
                    engine,
                    self._threads,
                )
        encoder = self._encoders[engine, precision]
        encoder.basis = self._basis.to(encoder.device) if self._basis else None
        return encoder

    def embed(self, engine: str, precision: Precision, of: str = PROBE) -> NDArray[np.float32]:
        """Return embeddings of the probe frames, or of a game's frames."""
        encoder = self.encoder(engine, precision)
        features = self._measure(engine, precision)[1][of]
        return encoder.reduce(features.to(encoder.device)).cpu().numpy()

    def choose(self, asked: str, precision: Precision, limit: float) -> EngineChoice:
        """Choose the engine asked for, or for `auto` the fastest, among those accurate enough.

        Args:
            asked: Name of an engine, or `auto`.
            limit: Largest step-relative error of a precision below fp32; the limit for fp32 is
                `MAX_ENGINE_ERROR`.

        Raises:
            MissingError: If the engine is not installed.
            UsageError: If the engine lacks this precision on this device.
            ConflictError: If the model fails, or no engine is accurate enough or finite.
        """
        device = self.encoder("torch", "fp32").device
        self._measure("torch", "fp32")  # First, because PyTorch gives the clearest errors.
        auto = asked == "auto"
        measured, others, failures = [], [], []
        for name in engines.offered(device, precision) if auto else [asked]:
            try:
                rate, _ = self._measure(name, precision)
            except ConflictError as error:  # Not every network can be converted.
                failures.append(error)
                others.append(LeftOut(name, str(error)))
            else:
                errors = self._errors(name, precision)
                network = self.identity.architecture != screen.NAME
                measured.append(EngineChoice(name, rate, errors, network=network))
        if not measured:
            raise failures[0]
        most = MAX_ENGINE_ERROR if precision == "fp32" else limit
        right = [choice for choice in measured if choice.error <= most]
        if not right:
            raise _rejection(self._alias, precision, min(measured, key=lambda c: c.error), most)
        # Time them again, since other work may have slowed one of them.
        if len(right) > 1:
            again = [self._time(choice.engine, precision)[0] for choice in right]
            right = [
                dataclasses.replace(choice, rate=max(choice.rate, rate))
                for choice, rate in zip(right, again, strict=True)
            ]
        best = max(right, key=lambda choice: choice.rate)
        if not auto:
            return best
        for other in measured:
            if not other.error <= most:
                others.append(
                    LeftOut(other.engine, f"it errs by more than {most:g}", other.rate, other.error)
                )
        for other in right:
            if other is not best:
                others.append(LeftOut(other.engine, "it is slower", other.rate, other.error))
        others += [LeftOut(name, why) for name, why in engines.left_out(device, precision).items()]
        return dataclasses.replace(best, left_out=tuple(others))

    def _errors(self, engine: str, precision: Precision) -> dict[str, float]:
        return {
            name: probe.step_error(
                self.embed(engine, precision, name), self.embed("torch", "fp32", name)
            )
            for name in self._inputs
        }

    def _measure(self, engine: str, precision: Precision) -> tuple[float, dict[str, Tensor]]:
        """Return frames per second, and the features of all inputs."""
        if (engine, precision) not in self._measurements:
            encoder = self.encoder(engine, precision)
            with self._naming_the_model(engine):
                rate, shown = self._time(engine, precision)
                features = {PROBE: shown[: len(self._inputs[PROBE])]}
                for game in self._inputs.keys() - {PROBE}:
                    features[game] = encoder.features(self._inputs[game])
            self._measurements[engine, precision] = rate, features
        return self._measurements[engine, precision]

    def _time(self, engine: str, precision: Precision) -> tuple[float, Tensor]:
        """Return the best frames per second, and features of at least a batch of probe frames."""
        encoder = self.encoder(engine, precision)
        # A GPU runs full batches, so measure the rate of a full one.
        inputs = _repeated(self._inputs[PROBE], encoder.engine.batch)
        size = min(len(inputs), encoder.engine.batch * torch.get_num_threads())
        encoder.features(inputs[:size])  # Warm-up.
        parts, seconds = [], []
        for at in range(0, len(inputs), size):
            started = time.perf_counter()
            parts.append(encoder.features(inputs[at : at + size]))
            seconds.append((time.perf_counter() - started) / len(parts[-1]))
        # Take the shortest time, since other work on the machine can only add to it.
        return 1 / min(seconds), torch.cat(parts)

    @contextlib.contextmanager
    def _naming_the_model(self, engine: str) -> Iterator[None]:
        """Turn any error of the network or its compiler into one that names the model."""
        try:
            yield
        except (WsaError, ImportError):
            raise
        except user_code.ERRORS as error:
            if memory.ran_out(error):
                raise
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ConflictError(
                "model-failed",
                f"{self._alias} fails when {engine} runs it ({why}). Nothing was written. 'wsa "
                "models check' tries it alone.",
            ) from error


def _repeated(inputs: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return all inputs, repeated until there are at least `count`."""
    return inputs[np.arange(max(count, len(inputs))) % len(inputs)]


def game_inputs(
    snapshot: Snapshot, games: Sequence[str], window: int
) -> dict[str, NDArray[np.uint8]]:
    """Read inputs of consecutive steps of each game, from a segment with frames.

    Returns:
        Inputs (2n, H, W, 3) uint8 RGB, or (2n, window, H, W, 3), with n at most `GAME_PAIRS`, for
        each game that has any. Rows 2i and 2i + 1 are consecutive steps with different frames.
    """
    inputs = {}
    for game in games:
        for meta in snapshot.segments_with_frames(game):
            frame = snapshot.read_array(meta, "frame")
            first = snapshot.read_array(meta, "is_first")
            (before,) = np.nonzero((frame[1:] != frame[:-1]) & ~first[1:])
            if len(before):
                spread = np.linspace(0, len(before) - 1, GAME_PAIRS).astype(int)
                chosen = before[np.unique(spread)]
                rows = np.stack([chosen, chosen + 1], axis=1).ravel()
                segment_frames = read_segment_frames(snapshot, meta, rows=window > 1)
                inputs[game] = (
                    segment_frames.frames[frame[rows]]
                    if window == 1
                    else next(segment_frames.inputs(window, rows))
                )
                break
    return inputs


def _rejection(alias: str, precision: Precision, best: EngineChoice, limit: float) -> ConflictError:
    if not math.isfinite(best.error):
        return ConflictError(
            "not-finite",
            f"{alias} in {precision} returns NaN or infinite numbers for frames of games. Nothing "
            "was written. Use --precision fp32.",
        )
    where = max(best.errors, key=lambda name: best.errors[name])
    errs = (
        f"{alias} in {precision} by {best.engine} errs by {best.error:.3g} of what changes from one "
        f"step of {'a game' if where == PROBE else where} to the next; the limit is {limit:g}. "
        "Nothing was written. "
    )
    if precision == "fp32":
        return ConflictError("step-error", f"{errs}Use --engine torch.")
    return ConflictError(
        "step-error",
        f"{errs}Use --precision fp32, or allow it with --max-step-error {_rounded_up(best.error)}.",
    )


def _rounded_up(error: float) -> str:
    """Return a number slightly above `error`, with two digits."""
    unit = 10.0 ** (math.floor(math.log10(error)) - 1)
    return f"{(math.floor(error / unit) + 1) * unit:.2g}"
