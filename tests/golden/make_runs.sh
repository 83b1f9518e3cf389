#!/bin/bash
# Make the golden data of commit 528a08d: a store, run folders and what they were worth, as that
# commit wrote them. Never run again for it: what lies in 528a08d/ is what labs have.
#
#     PYTHON=path/to/528a08d/.venv/bin/python bash make_runs.sh
#
# Run where this file lies. Everything goes to 528a08d/ here; the runs record the absolute path of
# that folder as it was, in config.json, which a test replaces in the folder's copy. Tables of online runs are files of
# 32 MB, zeros but for their beginning: the zeros are cut off, and a test appends them again.
set -eu
cd "$(dirname "$0")"
here=$PWD
root=$here/528a08d
scratch=$(mktemp -d)
export WSA_CACHE=$scratch/cache OMP_NUM_THREADS=1
unset WSA_STORE
: "${PYTHON:=python}"
cat >"$scratch/wsa.py" <<'PYTHON'
"""The `wsa` command of 528a08d with a fixed author; killed once checkpoint KILL_AT is saved.

    KILL_AT=12 python wsa.py learn --run-dir runs/cql ...     (exit code 137)
"""

from __future__ import annotations

import os
import sys
from typing import Any

from wsa import cli
from wsa.encode import checkpoint
from wsa.store import writer

save = checkpoint.save


def save_and_die(folder: Any, step: int, *rest: Any, name: str = "", **more: Any) -> Any:
    path = save(folder, step, *rest, name=name, **more)
    if not name and step == int(os.environ.get("KILL_AT", "-1")):
        os.kill(os.getpid(), 9)
    return path


if __name__ == "__main__":
    sys.argv[0] = "wsa"
    writer.author = lambda: "golden@lab"
    checkpoint.save = save_and_die
    sys.exit(cli.main())
PYTHON
wsa() { "$PYTHON" "$scratch/wsa.py" "$@"; }
killed() { local at=$1; shift; local code=0; KILL_AT=$at wsa "$@" || code=$?; [ $code = 137 ]; }
rm -rf "$root"
mkdir -p "$root/runs"

STORE="--store $root/store"
NET="--fusion-size 8 --hidden 16 --frame-stack 2"
UNTRAINED=timm:test_resnet.r160_in1k:random
ENCODE="encode $STORE --scheduler inproc --engine torch"
ONLINE="learn --online $STORE --game Centipede --engine torch --max-episode-steps 80 --num-envs 2"

# The store: 2 segments, a model with a window of 4, a shipped one, an untrained one of timm.
wsa collect $STORE --game Centipede --steps 320 --num-envs 2 --segment-steps 160 --max-episode-steps 80
wsa $ENCODE --models ae --output pooled
wsa $ENCODE --models sr --output pooled+rp:16
wsa $ENCODE --models $UNTRAINED --output grid:2+rp:16

# Offline: one finished, cloning; one killed after 12 of 24 updates, CQL with a context of its own.
wsa learn $STORE --game Centipede --models ae,$UNTRAINED --fusion mean --algo bc $NET --updates 20 --batch-size 16 \
    --log-frequency 5 --save-frequency 10 --validation-fraction 0.25 --validation-frequency 5 --save-best \
    --learning-rate 0.003 --run-dir "$root/runs/bc"
killed 12 learn $STORE --game Centipede --models ae,$UNTRAINED --context sr --fusion wsa --algo cql $NET --updates 24 \
    --batch-size 16 --n-step 3 --log-frequency 4 --save-frequency 6 --validation-fraction 0.25 --validation-frequency 6 \
    --save-best --target-network-frequency 8 --learning-rate 0.003 --seed 2 --run-dir "$root/runs/cql"

# Online: PPO that began from the cloning, finished; PPO with a memory over windows, and DQN that
# mixes stored data and records what it plays, both killed half-way; PPO from pixels, finished.
wsa $ONLINE --algo ppo --init "$root/runs/bc" --num-steps 16 --total-timesteps 64 --num-minibatches 2 --update-epochs 2 \
    --save-frequency 32 --learning-rate 0.003 --seed 5 --run-dir "$root/runs/ppo"
killed 64 $ONLINE --algo ppo --recurrent --models sr,ae --fusion wsa --fusion-size 8 --frame-stack 2 --num-steps 16 \
    --total-timesteps 128 --num-minibatches 2 --update-epochs 2 --save-frequency 32 --learning-rate 0.003 \
    --run-dir "$root/runs/ppo-lstm"
killed 80 $ONLINE --algo dqn --models sr --context ae --fusion wsa $NET --total-timesteps 160 --learning-starts 40 \
    --buffer-size 64 --batch-size 16 --offline-fraction 0.25 --target-network-frequency 40 --exploration-fraction 0.5 \
    --log-frequency 20 --save-frequency 40 --learning-rate 0.003 --record --run-dir "$root/runs/dqn"
wsa $ONLINE --algo ppo --fusion nature --parameters 3000 --num-steps 8 --total-timesteps 16 --num-minibatches 2 \
    --update-epochs 1 --save-frequency 16 --learning-rate 0.003 --run-dir "$root/runs/nature"

# What they were worth, evaluated by the same commit from a copy, as they are and once finished.
find "$root" -name lock -delete
"$PYTHON" "$here/expect.py" "$root" "$scratch"
rm -rf "$scratch"
find "$root" -type f -printf '%s\n' | awk '{ s += $1 } END { print NR, "files,", s, "bytes" }'
