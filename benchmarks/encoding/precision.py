"""Step-relative error of the shipped encoders in bf16 and int8, as the engine gate measures it.

    python -m benchmarks.encoding.precision [--models ae,okk] [--games Pong,Qbert]

int8 needs NNCF, which wsa does not depend on. Keep it out of wsa's environment:

    pip install --target /tmp/nncf nncf
    PYTHONPATH=/tmp/nncf python -m benchmarks.encoding.precision

Each game is played at random. The frames to measure are those that `wsa encode --precision bf16`
measures: the probe frames, and sixteen pairs of consecutive steps of each game. The reference is
PyTorch in fp32.

- bf16: OpenVINO, or PyTorch's autocast where the CPU has no bf16 of its own. Both round the inputs
  and outputs of matrix products and convolutions to bf16.
- int8: OpenVINO after NNCF's post-training quantization, calibrated on other frames of the same
  games.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

import wsa
from benchmarks.kit import markdown_line, markdown_table
from wsa.encode.inference import engines
from wsa.encode.inference.encoder import Encoder
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.inference.trunk import Trunk
from wsa.encode.models.registry import PACKAGES, parse_request
from wsa.encode.registration import engine_choice, fit_reduction, probe_frames, register
from wsa.store.common import hashing
from wsa.store.objects import probe
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

CPU = torch.device("cpu")
MOST_CALIBRATION = 50  # Inputs of each game; NNCF takes 300 by default.


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    models: str = "sr,vos,ae,okk,oke,lite0"
    """Encoders; lite0 is left out if its package is not installed."""
    games: str = "Seaquest,Pong,Breakout,MsPacman,SpaceInvaders,Qbert"
    """ALE games."""
    steps: int = 400
    """Steps of random play in each game."""


class Quantized:
    """A network in int8, in OpenVINO, frame by frame.

    Args:
        trunk: Network, on the CPU.
        pixels: Inputs for calibration, (n, c, h, w) float32.
    """

    name, batch = "openvino int8", 1

    def __init__(self, trunk: Trunk, pixels: Tensor) -> None:
        import nncf

        from wsa.encode.inference import openvino

        with torch.no_grad():
            converted = openvino._convert(trunk, pixels[:1])
        lines = [one.permute(0, 2, 3, 1).contiguous().numpy() for one in pixels.split(1)]
        converted.reshape({converted.inputs[0]: list(lines[0].shape)})
        quantized = nncf.quantize(converted, nncf.Dataset(lines), subset_size=len(lines))
        kinds = [node.get_type_name() for node in quantized.get_ops()]
        assert "FakeQuantize" in kinds, "NNCF quantized nothing"
        shape = tuple(pixels[:1].shape)
        self._run = openvino._Requests(openvino._compile(quantized, shape, "fp32", 1))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, c, h, w) to features (B, *shape)."""
        return torch.cat([self._run(one) for one in pixels.split(1)])


Errors = Mapping[str, float]


def measure(snapshot: Snapshot, name: str, games: Sequence[str]) -> dict[str, Errors]:
    """Errors of a model by arithmetic, then by game."""
    engine = "torch" if engines.why_not("openvino", CPU, "bf16") else "openvino"
    request = parse_request(name, {}, precision="bf16")
    candidates = register.measure_engines(snapshot, request, "cpu", engine, games)
    module, identity = candidates.module, candidates.identity
    output = parse_output(request.output)
    if output.reduction:
        whole = candidates.encoder("openvino", "fp32")
        candidates.set_basis(fit_reduction.fit(whole, snapshot, output, identity.window))
    errors: dict[str, Errors] = {}
    errors[f"bf16, {engine}"] = candidates.choose(engine, "bf16", math.inf).errors
    if importlib.util.find_spec("nncf") is None:
        return errors
    inputs = {
        engine_choice.PROBE: probe_frames.probe_inputs(identity.window),
        **engine_choice.game_inputs(snapshot, games, identity.window),
    }
    encoder = candidates.encoder("openvino", "fp32")
    pixels = torch.cat(
        [
            preprocess(torch.from_numpy(other), encoder.preprocessing)
            for other in calibration(snapshot, games, identity.window, inputs)
        ]
    )
    encoder.engine = Quantized(Trunk(module, output).eval(), pixels)
    reference: Encoder = candidates.encoder("torch", "fp32")
    errors["int8, openvino"] = {
        game: probe.step_error(encoder(frames), reference(frames))
        for game, frames in inputs.items()
    }
    return errors


def calibration(
    snapshot: Snapshot, games: Sequence[str], window: int, measured: Mapping[str, NDArray[np.uint8]]
) -> list[NDArray[np.uint8]]:
    """Inputs of each game, (n, H, W, 3) or (n, window, H, W, 3), none of them measured."""
    taken = {hashing.checksum(one.tobytes()) for part in measured.values() for one in part}
    chosen = []
    for game in games:
        parts = fit_reduction.game_inputs(snapshot, game, window, 2 * MOST_CALIBRATION)
        free = [one for part in parts for one in part]
        free = [one for one in free if hashing.checksum(one.tobytes()) not in taken]
        chosen.append(np.stack(free[:: max(1, len(free) // MOST_CALIBRATION)][:MOST_CALIBRATION]))
    return chosen


def row(name: str, how: str, errors: Errors) -> list[object]:
    """A row of the table, with the largest error and what the gate says of it."""
    worst = max(errors.values())
    said = "as exact as fp32" if worst <= engine_choice.MAX_ENGINE_ERROR else "accepted"
    said = said if worst <= probe.MAX_STEP_ERROR else "refused"
    return [name, how, *(f"{error:.2g}" for error in errors.values()), f"{worst:.2g}", said]


def main(o: Options) -> None:
    """Play, measure, and print the table."""
    torch.set_num_threads(1)
    games = o.games.split(",")
    if importlib.util.find_spec("nncf") is None:
        print("NNCF is not installed, so int8 is left out.\n", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        for game in games:
            wsa.collect(game, store=folder, steps=o.steps, num_envs=4, segment_steps=100)
        snapshot = take_snapshot(open_store(folder))
        columns = ["encoder", "arithmetic", "probe frames", *games, "largest", "with the limit"]
        print(markdown_table(columns, []), flush=True)
        for name in o.models.split(","):
            package = PACKAGES.get(name)
            if package and importlib.util.find_spec(package.module) is None:
                print(f"{package.module} is not installed, so {name} is left out.", file=sys.stderr)
                continue
            with contextlib.redirect_stdout(sys.stderr):  # NNCF prints its progress.
                errors = measure(snapshot, name, games)
            for how, of_games in errors.items():
                print(markdown_line(row(name, how, of_games)), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
