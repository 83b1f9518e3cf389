"""Frames a second of the encoding pipeline, against the bare model on tensors already in RAM.

    python benchmarks/encode.py [ALIAS ...]        default: lite0 lite1 lite2

One process on both sides, with as many torch threads. The pipeline reads segments from the store,
checks them, preprocesses, runs the model and its basis, joins, compresses, commits and flushes; the
bare loop calls the network's forward_features on one preprocessed batch (of one frame on a CPU). The model is registered
(its basis fitted) beforehand: that happens once in its life.
"""

from __future__ import annotations

import sys
import time

import torch
from kit import interleave, markdown, store_of, table

from wsa.encode import job, strip
from wsa.encode.models import parse_request
from wsa.encode.plan import Plan, make_plan
from wsa.encode.preprocess import preprocess
from wsa.encode.register import open_model, register
from wsa.store import names
from wsa.store.keys import object_id
from wsa.store.reader import take_snapshot

STEPS, ROUNDS = 300, 3


def main(aliases: list[str]) -> None:
    torch.set_num_threads(1)
    print(f"Seaquest, {STEPS} steps, one process, one thread:\n")
    for alias in aliases:
        with store_of("Seaquest", STEPS) as (backend, _):
            request = parse_request(alias, {})
            key = register(take_snapshot(backend), request, 0.1).spec.key
            snapshot = take_snapshot(backend)
            encoder = open_model(snapshot, key)
            plan = make_plan(snapshot, [key], ["Seaquest"])
            frames = torch.from_numpy(strip.probe_frames()[: encoder.batch])
            batch = preprocess(frames, encoder.preprocessing)
            setting = job.Setting(backend.url, {key: request.source}, "cpu", 1)
            job.embed(setting, plan.items[:1])  # Builds the model.

            def bare(encoder=encoder, batch=batch, plan=plan) -> float:
                started = time.perf_counter()
                done = 0
                with torch.inference_mode():
                    while done < plan.passes:
                        encoder.module.forward_features(batch)
                        done += len(batch)
                return done / (time.perf_counter() - started)

            def pipeline(backend=backend, plan=plan, setting=setting) -> float:
                forget(backend, plan)
                started = time.perf_counter()
                for items in plan.by_segment():
                    job.encode_segment(setting, items)
                return plan.passes / (time.perf_counter() - started)

            rates = interleave({"bare loop": bare, "pipeline": pipeline}, ROUNDS)
            print(f"{alias} ({request.timm_name}), {request.output}\n")
            table("frames/s", rates, "bare loop")
            print()
            markdown(
                ["frames", "passes", "copied"],
                [[plan.passes + plan.copies, plan.passes, plan.copies]],
            )
            print(flush=True)


def forget(backend, plan: Plan) -> None:
    """Undo a plan, so that the next round does it again."""
    for item in plan.items:
        path = names.embedding_path(item.meta.game, item.model, item.meta.segment)
        backend.delete(names.commit_path(object_id(path)))
        for file in list(backend.list(path)):
            backend.delete(file.path)


if __name__ == "__main__":
    main(sys.argv[1:] or ["lite0", "lite1", "lite2"])
