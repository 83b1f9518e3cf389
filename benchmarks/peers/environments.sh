#!/bin/sh
# Make an environment for each library that benchmarks/peers/compare.py measures beside wsa.
#
#     sh benchmarks/peers/environments.sh DIR [PYTHON]
#
# DIR/sb3 has Stable-Baselines3, DIR/d3rlpy has d3rlpy. They cannot share one environment with wsa:
# d3rlpy requires gymnasium 1.0.0 exactly. Both get the torch of PYTHON, the interpreter with wsa
# (default: .venv/bin/python), so that libraries are compared and not versions of torch. Each takes
# some 6 GB on Linux, where torch from PyPI brings its CUDA libraries.
#
# CleanRL is missing: its last release, 1.2.0 of 2023, does not install on Python 3.11.
set -eu

dir=${1:?usage: sh benchmarks/peers/environments.sh DIR [PYTHON]}
python=${2:-.venv/bin/python}
version='import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))'
torch=$("$python" -c "$version" torch)
emulator=$("$python" -c "$version" ale-py)

make() {
    where=$dir/$1
    shift
    [ -x "$where/bin/python" ] || "$python" -m venv "$where"
    "$where/bin/python" -m pip install --quiet "torch==${torch%+*}" "$@"
}

make sb3 stable-baselines3==2.9.2 gymnasium==1.4.0 "ale-py==$emulator" opencv-python-headless==5.0.0.93
make d3rlpy d3rlpy==2.8.1 gymnasium==1.0.0 gym==0.26.2
