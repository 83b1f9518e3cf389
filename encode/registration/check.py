"""Check what the store relies on: that a model is a function of its frame alone, now and later.

`wsa models check` runs these checks before a lab spends a week of computing on a model. Each check
uses the probe frames and reports its result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsa.encode.inference.encoder import Encoder
from wsa.encode.inference.engines import arithmetic
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.inference.trunk import Trunk
from wsa.encode.models import networks
from wsa.encode.models.registry import Request
from wsa.encode.registration import fit_reduction, probe_frames
from wsa.encode.registration.engine_choice import Engines
from wsa.encode.registration.identity import identify, license_of
from wsa.store.common import hashing, user_code
from wsa.store.common.errors import ConflictError, WsaError
from wsa.store.objects import probe
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.writer import FLOAT16_MAX

# As a fraction of the change in a game's step. Libraries round differently for other batch sizes.
BATCH_ERROR = 0.01


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        what: Name of the check, in a few words.
        ok: Whether the model passed.
        found: Details, for the user.
    """

    what: str
    ok: bool
    found: str


def check(request: Request, device: str) -> Iterator[CheckResult]:
    """Check a model without any reduction that would be fitted here; yield each result as it comes.

    Raises:
        MissingError: If the weights or the module are not found.
        ConflictError: If the weights are wrong, or the user's callable fails.
        UsageError: If the model lacks the output.
    """
    module = networks.build(request)
    before = _tensors_digest(module)
    numbers = sum(tensor.numel() for tensor in module.state_dict().values())
    license = license_of(module, request)
    yield CheckResult("weights", True, f"{numbers:,} numbers, {_short(before)}, license: {license}")
    yield _frozen(module)
    output, basis = parse_output(request.output), None
    if output.of_one_game:  # It does nothing without its reduction, so take that of one game.
        output = msgspec.structs.replace(output, game=output.game or probe_frames.PROBE_GAMES[0])
        basis = fit_reduction.shipped(output)
    identity = identify(module, request)
    how, window = identity.preprocessing, identity.window
    encoder = Encoder(module, how, output, basis, request.precision, device)
    frames = probe_frames.probe_inputs(window, output.only_game)
    try:
        embeddings = encoder(frames)
    except WsaError:
        raise
    except user_code.ERRORS as error:  # A user's module may raise anything.
        why = " ".join(str(error).split())[:300]
        yield CheckResult("runs", False, f"{type(error).__name__}: {why}")
        return
    yield CheckResult(
        "runs", True, f"embeddings of shape {embeddings.shape[1:]}, {embeddings[0].size:,} numbers"
    )
    finite = _finite(embeddings)
    yield finite
    if not finite.ok:
        return  # The comparisons below would all report an infinite difference.
    yield _sees(embeddings)
    yield _equal("the same again", encoder(frames), embeddings)
    backward = np.concatenate([encoder(frames[5:6]), encoder(frames[:5][::-1])])
    yield _equal("alone and in another order", backward, embeddings[[5, 4, 3, 2, 1, 0]])
    yield _batch(module, encoder, request, frames)
    yield _threads(encoder, frames)
    yield _screens(encoder, window, embeddings.shape[1:])
    engines = Engines(
        module, msgspec.structs.replace(identity, output=str(output)), request.alias, device
    )
    yield _engines(engines, request)
    after = _tensors_digest(encoder.module.cpu())
    yield CheckResult(
        "weights untouched", after == before, f"{_short(before)}, then {_short(after)}"
    )
    again = networks.build(request)
    yield CheckResult(
        "the same weights when built again",
        _tensors_digest(again) == before,
        f"{_short(before)}, then {_short(_tensors_digest(again))}",
    )
    how = identify(again, request).preprocessing
    rebuilt = Encoder(again, how, output, basis, request.precision, device)
    yield _equal("the same embeddings when built again", rebuilt(frames), embeddings)


def _engines(engines: Engines, request: Request) -> CheckResult:
    """Report which engine `auto` chooses for the model, and why no other."""
    try:
        choice = engines.choose(request.engine("auto"), request.precision, math.inf)
    except ConflictError as error:
        return CheckResult("engines", False, str(error))
    return CheckResult("engines", True, choice.explained)


def _tensors_digest(module: nn.Module) -> str:
    """Return the digest of all tensors, even those that no embedding depends on."""
    return hashing.tensors_digest({n: t.cpu().numpy() for n, t in module.state_dict().items()})


def _short(digest: str) -> str:
    return f"blake3 {digest[:12]}"


def _frozen(module: nn.Module) -> CheckResult:
    training = [name or "the module" for name, part in module.named_modules() if part.training]
    learning = [name for name, tensor in module.named_parameters() if tensor.requires_grad]
    if training or learning:
        details = f"in training mode: {', '.join(training[:3]) or 'none'}"
        return CheckResult(
            "frozen", False, f"{details}; with gradients: {', '.join(learning[:3]) or 'none'}"
        )
    return CheckResult("frozen", True, "evaluation mode, no gradients")


def _finite(found: NDArray[np.float32]) -> CheckResult:
    bad = int((~np.isfinite(found)).sum())
    if bad:
        return CheckResult(
            "finite", False, f"{bad:,} of {found.size:,} numbers are NaN or infinite"
        )
    largest = float(np.abs(found).max())
    kept = "float16" if largest <= FLOAT16_MAX else "float32, too large for float16"
    return CheckResult("finite", True, f"at most {largest:.3g}; stored as {kept}")


def _sees(found: NDArray[np.float32]) -> CheckResult:
    pairs = found.reshape(len(found) // 2, 2, -1)
    differ = int((pairs[:, 0] != pairs[:, 1]).any(axis=1).sum())
    details = f"{differ} of {len(pairs)} pairs of consecutive frames have embeddings that differ"
    return CheckResult("sees a step", 2 * differ > len(pairs), details)


def _equal(what: str, found: NDArray[np.float32], wanted: NDArray[np.float32]) -> CheckResult:
    if found.shape != wanted.shape:
        return CheckResult(what, False, f"shape {found.shape[1:]}, not {wanted.shape[1:]}")
    if np.array_equal(found, wanted, equal_nan=True):
        return CheckResult(what, True, "equal to the last bit")
    rows = (found != wanted).reshape(len(found), -1).any(axis=1).sum()
    largest = float(np.nanmax(np.abs(found - wanted)))
    return CheckResult(what, False, f"{rows} of {len(found)} frames differ, by up to {largest:.3g}")


def _batch(
    module: nn.Module, encoder: Encoder, request: Request, frames: NDArray[Any]
) -> CheckResult:
    """Compare the network's output for all frames in one batch with that for each frame alone."""
    trunk = Trunk(module, parse_output(request.output))
    pixels = preprocess(torch.from_numpy(frames).to(encoder.device), encoder.preprocessing)
    with torch.inference_mode(), arithmetic(encoder.device, request.precision):
        together = trunk(pixels).cpu().numpy()
        alone = np.concatenate([trunk(one).cpu().numpy() for one in pixels.split(1)])
    error = probe.step_error(together, alone)
    details = f"differ by {error:.2g} of a game's step from each alone (limit {BATCH_ERROR})"
    return CheckResult("in one batch", error <= BATCH_ERROR, details)


def _threads(encoder: Encoder, frames: NDArray[Any]) -> CheckResult:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(encoder(frames))
    finally:
        torch.set_num_threads(threads)
    return _equal("with one thread and with two", results[1], results[0])


def _screens(encoder: Encoder, window: int, shape: tuple[int, ...]) -> CheckResult:
    """Check that screens of every height in the probe frames give embeddings of the same shape."""
    by_height = {
        part.frames.shape[1]: probe_frames.pairs_in_windows(part.frames[:2], window)
        for part in probe_frames.load_frames()
    }
    others = [height for height in by_height if encoder(by_height[height]).shape[1:] != shape]
    details = f"the same shape for screens of {', '.join(map(str, sorted(by_height)))} rows"
    return CheckResult(
        "any screen", not others, details if not others else f"another shape for {others}"
    )
