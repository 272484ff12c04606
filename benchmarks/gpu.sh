#!/usr/bin/env bash
# All that is measured on one GPU, in at most eight minutes: benchmarks/gpu.py, on a machine without a network.
#
#   benchmarks/gpu.sh [--wheels=DIR] [--out=DIR] [--dry] [--parts NAME ...]
#
# It needs Python 3.11 or newer with jax (CUDA), flax, optax, orbax-checkpoint, numpy, torch, transformers and peft. Packages of ours
# that are missing there can travel as wheels, e.g. made by
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d DIR ml-collections ...
# (DIRs are relative to the repository) and are put aside, not into the machine's own Python. PYTHON names the interpreter (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
arguments=()
for argument in "$@"; do
    case "$argument" in
        --wheels=*)
            site="$(mktemp -d)"
            "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "${argument#*=}"/*.whl
            export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
            ;;
        *) arguments+=("$argument") ;;
    esac
done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$python" benchmarks/gpu.py "${arguments[@]}"
