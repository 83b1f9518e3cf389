"""Encoding, playing, and learning on a GPU, in at most eight minutes.

    python -m benchmarks.gpu [--out gpu-results]
    python -m benchmarks.gpu --small --device cpu        everything, tiny, to see that it works

Architectures have random weights, which change no speed. Each section has its own process and its
own time, and writes its rows as they come to `results.md` and `results.json` in the folder. A
section that fails is reported there, does not stop the others, and makes the exit code 1.

CUDA graphs of the learner's network are made here: wsa has none, `wsa learn --compile` uses
torch.compile without them. Each way to act must follow the weights when an update changes them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # As wsa's commands do; before torch is imported.

import copy
import dataclasses
import datetime
import json
import math
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import wsa
from benchmarks.kit import rate
from benchmarks.sections import Add, Section, run
from wsa.encode.inference.engines import arithmetic
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.models.registry import parse_request
from wsa.encode.registration import register
from wsa.encode.registration.engine_choice import Engines
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion.base import Inputs
from wsa.learn.networks.heads import ActorCritic
from wsa.store.objects.model_spec import Precision
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

GAME, ACTIONS, WIDTH = "Pong", 6, 512
OWN = ("sr", "vos")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where."""

    device: Literal["cuda", "cpu"] = "cuda"
    """Where models run."""
    small: bool = False
    """Tiny networks and few steps."""
    out: str = "gpu-results"
    """Folder for the results."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        models: Large models; untrained.
        output: Their output when encoding; empty for wsa's default.
        unfitted: Their output when only the network is measured: the same size, without a fit.
        precisions: Arithmetic of the networks.
        steps: Steps of random play to encode.
        envs: Numbers of environments.
        num_steps: Steps of each environment in a rollout.
        rollouts: Rollouts of a run; there is no update after the first.
        product: Side of the matrices whose product is the peak.
        seconds: Time for each rate.
        scheduler: Where `wsa encode` runs.
    """

    models: tuple[str, ...] = ("vit:random", "resnet:random", "clip:random")
    output: str = ""
    unfitted: str = "grid:7+rp:512"
    precisions: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
    steps: int = 4096
    envs: tuple[int, ...] = (64, 256)
    num_steps: int = 8
    rollouts: int = 4
    product: int = 8192
    seconds: float = 1.5
    scheduler: str = "local"


SMALL = Sizes(
    models=("timm:test_vit:random",),
    output="pooled",
    unfitted="pooled",
    precisions=("fp32", "bf16"),
    steps=16,
    envs=(2,),
    num_steps=4,
    rollouts=2,
    product=256,
    seconds=0.02,
    scheduler="inproc",
)


@dataclasses.dataclass(frozen=True)
class Bench:
    """The measurements.

    Attributes:
        device: Where models run.
        sizes: How much is measured.
        folder: Folder for stores and runs.
    """

    device: str
    sizes: Sizes
    folder: Path

    def sections(self) -> list[Section]:
        """All measurements; the slowest to start come last."""
        sections = [
            Section("Machine", 15, self.machine),
            Section(f"Random play of {GAME}", 20, self.play),
            Section("`wsa encode --engine torch`", 60, partial(self.encode, "torch")),
            Section("Networks alone, in PyTorch", 60, partial(self.networks, "torch")),
            Section("From screens in RAM", 30, self.screens),
            Section("PPO while playing, with updates", 120, self.live),
            Section("Acting and updates of the learner's network", 40, self.learner),
            Section("`wsa encode`, engine chosen", 65, partial(self.encode, "auto")),
        ]
        if self.device == "cuda":  # On a CPU, compiling takes a minute.
            compiled = partial(self.networks, "compile")
            sections.insert(-1, Section("Networks alone, compiled", 60, compiled))
        return sections

    def machine(self, add: Add) -> None:
        """Name the processor and the libraries."""
        versions: dict[str, Any] = {"torch": torch.__version__, "CUDA": torch.version.cuda or ""}
        name = platform.processor() or platform.machine()
        if self.device == "cuda":
            properties = torch.cuda.get_device_properties(0)
            name, versions["GB"] = properties.name, properties.total_memory / 1e9
        add(device=name, cores=os.cpu_count(), python=platform.python_version(), **versions)

    def play(self, add: Add) -> None:
        """Collect the frames that are encoded, and copy them for the second encoding."""
        envs = min(8, max(self.sizes.envs))
        done = wsa.collect(
            GAME, store=self.store("torch"), steps=self.sizes.steps, num_envs=envs,
            segment_steps=self.sizes.steps // 8,
        )  # fmt: skip
        shutil.copytree(self.store("torch"), self.store("auto"))
        add(**done)

    def store(self, engine: str) -> str:
        """The store that an engine fills."""
        return str(self.folder / engine)

    def encode(self, engine: str, add: Add) -> None:
        """Measure a whole encoding, with startup and fits, and each model's part of it."""
        report, options = self.folder / f"report-{engine}", {}
        if self.sizes.output:
            options["output"] = self.sizes.output
        self.command(add, report, engine, list(self.sizes.models), options)
        if engine == "torch":  # `live` plays with these too.
            self.command(add, report, engine, list(OWN), {})

    def command(
        self, add: Add, report: Path, engine: str, models: list[str], options: dict[str, Any]
    ) -> None:
        """Run `wsa encode`; add a row for each model, and one for the command."""
        done = wsa.encode(
            models=models, game=GAME, store=self.store(engine), engine=engine, device=self.device,
            scheduler=self.sizes.scheduler, report=str(report), **options,
        )  # fmt: skip
        for model in json.loads((report / "run.json").read_text())["models"]:
            seconds = {f"s {stage}": spent for stage, spent in model["seconds"].items()}
            add(
                what=model["model"], passes=model["passes"], fitted=model["fit_passes"],
                **seconds, engine=model["engine"],
            )  # fmt: skip
        whole = {"s in all": done["seconds"], "passes/s": done["passes"] / done["seconds"]}
        add(what="the command", passes=done["passes"], fitted=done["fit_passes"], **whole)

    def engines(self, model: str, precision: Precision, engine: str) -> Engines:
        """The engines of a model, and what the gate measures them on."""
        request = parse_request(model, {}, self.sizes.unfitted, precision)
        snapshot = take_snapshot(open_store(self.store("torch")))
        return register.measure_engines(snapshot, request, self.device, engine, [GAME])

    def networks(self, engine: str, add: Add) -> None:
        """Measure each network's share of the peak, and its error, at each precision."""
        peaks = {each: self.peak(each) for each in self.sizes.precisions}
        for model in self.sizes.models:
            for precision in self.sizes.precisions:
                engines = self.engines(model, precision, engine)
                choice = engines.choose(engine, precision, math.inf)
                found = self.alone(engines, engine, precision)
                operations = self.operations(engines)
                add(
                    model=model, precision=precision, **{"frames/s": found},
                    TFLOPS=found * operations / 1e12, peak=peaks[precision] / 1e12,
                    share=found * operations / peaks[precision], **{"step error": choice.error},
                )  # fmt: skip

    def peak(self, precision: Precision) -> float:
        """Operations per second of a large matrix product."""
        kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
        side = self.sizes.product
        left, right = torch.randn(2, side, side, device=self.device).to(kind)

        def work() -> int:
            with arithmetic(torch.device(self.device), precision):
                torch.mm(left, right)
            self.finish()
            return 2 * side**3

        work()
        return rate(work, self.sizes.seconds)

    def operations(self, engines: Engines) -> float:
        """Operations of a network for one frame, two for each multiply-add."""
        encoder = engines.encoder("torch", "fp32")
        pixels = self.pixels(engines)
        with FlopCounterMode(display=False) as counter:
            encoder.engine(pixels)
        return counter.get_total_flops() / len(pixels)

    def pixels(self, engines: Engines) -> Tensor:
        """A batch of preprocessed pixels on the device."""
        encoder = engines.encoder("torch", "fp32")
        how = encoder.preprocessing
        shape = (encoder.engine.batch, len(how.mean), how.height, how.width)
        made = torch.randn(shape, device=self.device)
        return made.to(memory_format=torch.channels_last)

    def alone(self, engines: Engines, engine: str, precision: Precision) -> float:
        """Frames per second of a network alone."""
        encoder, pixels = engines.encoder(engine, precision), self.pixels(engines)

        def work() -> int:
            encoder.engine(pixels)
            self.finish()
            return len(pixels)

        work()
        return rate(work, self.sizes.seconds)

    def screens(self, add: Add) -> None:
        """Measure what preprocessing adds to a network."""
        snapshot = take_snapshot(open_store(self.store("torch")))
        stored = np.concatenate([snapshot.read_frames(meta) for meta in snapshot.segments(GAME)])
        for model in self.sizes.models:
            for precision in (self.sizes.precisions[0], self.sizes.precisions[-1]):
                engines = self.engines(model, precision, "torch")
                encoder = engines.encoder("torch", precision)
                batch = encoder.engine.batch
                frames = np.resize(stored, (4 * batch, *stored.shape[1:]))
                on_device = torch.from_numpy(frames[:batch]).to(self.device)

                def shrink(encoder: Any = encoder, on_device: Tensor = on_device) -> int:
                    preprocess(on_device, encoder.preprocessing)
                    self.finish()
                    return len(on_device)

                def whole(encoder: Any = encoder, frames: Any = frames) -> int:
                    return len(encoder.features(frames))

                shrink(), whole()
                network = self.alone(engines, "torch", precision)
                found = rate(whole, self.sizes.seconds)
                add(
                    model=model, precision=precision,
                    **{
                        "network alone, frames/s": network,
                        "preprocessing alone, on the device": rate(shrink, self.sizes.seconds),
                        "from screens in RAM": found,
                        "share of time beside the network": 1 - found / network,
                    },
                )  # fmt: skip

    def live(self, add: Add) -> None:
        """Measure PPO while playing, with models in the store that `encode` filled."""
        sizes = self.sizes
        for models in (OWN, sizes.models):
            for envs in sizes.envs:
                done = wsa.learn(
                    GAME, online=True, algo="ppo", models=list(models), store=self.store("torch"),
                    run_dir=str(self.folder / f"{len(models)}-{models[0].split(':')[0]}-{envs}"),
                    device=self.device, num_envs=envs, num_steps=sizes.num_steps,
                    total_timesteps=envs * sizes.num_steps * sizes.rollouts,
                )  # fmt: skip
                add(
                    models=", ".join(models), environments=envs, steps=done["steps"],
                    **{
                        "steps/s": done["steps_per_s"],
                        "passes/step": done["backbone_passes"] / done["steps"],
                    },
                )  # fmt: skip

    def learner(self, add: Add) -> None:
        """Measure acting and updates of a network over three models, and check its weights."""
        on_gpu = self.device == "cuda"
        for envs in self.sizes.envs:
            states = torch.randn(envs, 4, 3 * WIDTH, device=self.device)
            for how in ("eager", *(("torch.compile", "CUDA graph") if on_gpu else ())):
                network = made_network(self.device)
                act = acting(network, states, how)
                follows = follows_weights(act, network, states)
                learn = updating(made_network(self.device), states, how)
                speed = {}
                for name, work in (("acting", partial(act, states)), ("updates", learn)):

                    def once(work: Callable[[], object] = work) -> int:
                        work()
                        self.finish()
                        return 1

                    once()
                    speed[f"{name}/s"] = rate(once, self.sizes.seconds)
                seen = "yes" if follows else "NO"
                add(states=envs, how=how, **speed, **{"acting sees new weights": seen})
                if not follows:
                    raise AssertionError(f"{how}: acting does not see new weights")

    def finish(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def made_network(device: str) -> ActorCritic:
    """Make the network of PPO with WSA over three models and four frames."""
    torch.manual_seed(0)
    return ActorCritic(Inputs(((4, WIDTH),) * 3), ACTIONS, NetworkConfig()).to(device)


def acting(network: nn.Module, states: Tensor, how: str) -> Callable[[Tensor], Tensor]:
    """Return a function from states to logits that runs the network eagerly, compiled, or as a
    CUDA graph."""
    network.eval()
    if how == "torch.compile":
        network = torch.compile(network, dynamic=False)  # type: ignore[assignment]  # Same weights.

    @torch.no_grad()
    def act(states: Tensor) -> Tensor:
        logits: Tensor = network(states)[0]
        return logits

    if how != "CUDA graph":
        return act
    given, side = states.clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # Libraries allocate at their first calls, which a graph may not.
        for _ in range(3):
            act(given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = act(given)

    def replay(states: Tensor) -> Tensor:
        given.copy_(states)
        graph.replay()
        return logits.clone()

    return replay


def updating(network: nn.Module, states: Tensor, how: str) -> Callable[[], object]:
    """Return a function that makes one update: forward, backward, and Adam."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5, eps=1e-5, fused=True)
    forward: Any = network
    if how == "torch.compile":
        forward = torch.compile(network, dynamic=False)
    elif how == "CUDA graph":
        forward = torch.cuda.make_graphed_callables(network, (states,))  # type: ignore[arg-type]

    def update() -> None:
        logits, values, _ = forward(states)
        loss = values.square().mean() - 0.01 * logits.log_softmax(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()

    return update


@torch.no_grad()
def follows_weights(act: Callable[[Tensor], Tensor], network: Any, states: Tensor) -> bool:
    """Change weights and moments in place, as updates do; return whether `act` uses the new ones."""
    before = act(states).clone()
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    width = sum(network.torso.inputs.widths)
    network.torso.set_moments(torch.ones(width), 2 * torch.ones(width))
    wanted = copy.deepcopy(network)(states)[0]
    found = act(states)
    changed = not torch.allclose(before, wanted, rtol=1e-3, atol=1e-4)
    return changed and torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)


def main(o: Options) -> int:
    """Run all sections."""
    torch.set_num_threads(1)
    about = {
        "command": f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}".strip(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sections = Bench(o.device, SMALL if o.small else Sizes(), Path(folder)).sections()
        if o.small:  # To see that it works, on a machine that may be busy.
            sections = [dataclasses.replace(section, seconds=300) for section in sections]
        code = run(sections, Path(o.out), about)
    print(f"\n{time.monotonic() - began:.0f} s in all; results in {o.out}")
    return code


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
