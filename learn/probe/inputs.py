"""Inputs of probes: stored embeddings, embeddings of untrained networks, and pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, choose_device, stored
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.inference.segment_inputs import read_segment_frames
from wsa.encode.models.paper import catalog, load
from wsa.learn.probe.samples import SampledSteps
from wsa.store.objects.model_spec import GRAY, ModelSpec, Preprocessing, parse_output
from wsa.store.objects.snapshot import Snapshot


def embeddings(snapshot: Snapshot, game: str, key: str, sampled: SampledSteps) -> NDArray[Any]:
    """Read a model's embedding of each step, shape (n, width), one segment after another.

    For a model that sees several frames: the embedding of the window that ends at the step.
    """
    window = {m.segment: m.window for m in snapshot.embeddings(game, key)}
    parts = []
    for meta, rows, frames in zip(sampled.segments, sampled.rows, sampled.frames, strict=True):
        if len(rows):
            segment_embeddings = snapshot.read_embedding(game, key, meta.segment)
            chosen = segment_embeddings[frames if window[meta.segment] == 1 else rows]
            parts.append(chosen.reshape(len(chosen), -1))
    joined: NDArray[Any] = np.concatenate(parts)
    return joined


def width(snapshot: Snapshot, game: str, key: str) -> int:
    """Length of a model's flattened embedding."""
    return math.prod(snapshot.embeddings(game, key)[0].shape[1:])


def pixel_grid(numbers: int) -> tuple[int, int]:
    """Height and width of a small screen of at most `numbers` pixels."""
    height = max(1, int((numbers * 210 / 160) ** 0.5))
    return height, max(1, numbers // height)


def pixels(snapshot: Snapshot, sampled: SampledSteps, numbers: int) -> NDArray[np.uint8]:
    """Grayscale pixels of each step, shape (n, at most `numbers`), by area interpolation.

    Raises:
        MissingError: If frames are not in this store.
    """
    height, width = pixel_grid(numbers)
    preprocessing = Preprocessing(
        geometry="squash", height=height, width=width, interpolation="area",
        mean=(0.0,), std=(1.0,), crop=1.0, channels=GRAY,
    )  # fmt: skip
    parts = []
    for meta, frames in zip(sampled.segments, sampled.frames, strict=True):
        screens = snapshot.read_frames(meta) if len(frames) else np.zeros((0, 1, 1, 3), np.uint8)
        distinct, inverse = np.unique(frames, return_inverse=True)
        small = [
            (preprocess(torch.from_numpy(screens[some]), preprocessing) * 255)
            .round()
            .to(torch.uint8)
            for some in np.array_split(distinct, max(1, len(distinct) // 64))
            if len(some)
        ]
        if small:
            parts.append(torch.cat(small).flatten(1).numpy()[inverse])
    joined: NDArray[np.uint8] = np.concatenate(parts)
    return joined


def has_untrained(spec: ModelSpec) -> bool:
    """Whether a model is one of wsa's own encoders with learned weights, so can be untrained."""
    return bool(_network(spec))


def _network(spec: ModelSpec) -> str:
    """Module and class of a model's network, as `load.network` takes them; empty for other models.

    An alias may have several networks; this is the one with the same input as the model.
    """
    alias = spec.timm_name.removeprefix(catalog.PREFIX)
    if not catalog.is_paper_model(spec.timm_name) or alias not in catalog.NETWORKS:
        return ""
    for where in load.networks(alias):
        network = load.network(alias, where=where)
        sees = network.sees.preprocessing(), network.window
        if sees == (spec.identity.preprocessing, spec.identity.window):
            return where if any(True for _ in network.parameters()) else ""
    return ""


def untrained(
    snapshot: Snapshot, sampled: SampledSteps, spec: ModelSpec, seeds: Sequence[int]
) -> list[NDArray[np.float16 | np.float32]]:
    """Embed each step with untrained networks of a model's architecture; nothing is written.

    The model is one for which `has_untrained` is true. The output is the model's, without a
    reduction. The embeddings of seed 0 equal those that `:random` stores.

    Returns:
        Embeddings (n, width) for each seed.

    Raises:
        MissingError: If frames are not in this store.
    """
    output = parse_output(spec.identity.output)
    unreduced = msgspec.structs.replace(output, reduction="", numbers=0, game="")
    encoders = []
    for seed in seeds:
        network = load.build(spec.timm_name, "random", seed, _network(spec))
        encoders.append(
            Encoder(network, network.preprocessing, unreduced, device=choose_device("auto"))
        )
    window = spec.identity.window
    parts: list[list[NDArray[Any]]] = [[] for _ in encoders]
    for meta, rows, frames in zip(sampled.segments, sampled.rows, sampled.frames, strict=True):
        if not len(rows):
            continue
        segment = read_segment_frames(snapshot, meta, rows=window > 1)
        distinct, inverse = np.unique(frames if window == 1 else rows, return_inverse=True)
        for encoder, outputs in zip(encoders, parts, strict=True):
            embedded = stored(encoder.embed_inputs(segment, window, distinct))
            outputs.append(embedded.reshape(len(embedded), -1)[inverse])
    return [np.concatenate(outputs) for outputs in parts]
