"""Attention's back ends on this machine's device: do they leak, how exact are they, how fast, and what do they hold?

    python benchmarks/attention.py                                                          # what a CPU takes
    python benchmarks/attention.py --rows=2 --length=4096 --heads=8 --kv_heads=2 --head_dim=128 --dtype=bfloat16    # GPU or TPU

Forward and backward pass over random packed rows, of every back end that the device can run, and of `jax.nn.dot_product_attention`
with a mask, which is what one writes first. *Leaks*: numbers of outputs and gradients outside a document that change, in any bit,
where the document does. *Repeats*: whether a second run gives the same bits; where it does not, as in cuDNN's backward pass, what
may leak is what changes by more than 1e-2 of the largest value. *Error*: the largest difference from jax.nn in float32, over the
largest value. `cudnn, place for most` has place for as many segments as a row may have, instead of as many as these rows have. A
back end that leaks ends the command with exit code 1.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from llama import rows_of

from msmjax import machine
from msmjax.artifact import BadInput
from msmjax.model import attention


def masked(implementation, q, k, v, starts):
    """`jax.nn.dot_product_attention` with segments as a mask."""
    places = jnp.arange(starts.shape[1])
    mask = (starts[:, :, None] <= places[None, None]) & (places[None, None] <= places[None, :, None])
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation=implementation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 2), ("length", 1024), ("heads", 8), ("kv_heads", 2), ("head_dim", 32), ("turns", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="a file that all figures are written to")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    shape = (arguments.rows, arguments.length)
    segment_ids = rows_of(0, *shape, 99)["segment_ids"]
    starts = attention.segment_starts(jnp.asarray(segment_ids))
    heads = (arguments.heads, arguments.kv_heads, arguments.kv_heads, arguments.heads)
    exact = [jax.random.normal(jax.random.key(i), (*shape, n, arguments.head_dim)) for i, n in enumerate(heads)]
    inputs = [array.astype(arguments.dtype) for array in exact]
    inside = jnp.asarray(segment_ids == 2)[:, :, None, None]
    other = [jnp.where(inside, array * 3 + 1, array) for array in inputs]

    segments = attention.place_for(int(segment_ids.max()), arguments.length)

    def ours(name, segments, *inputs):
        return attention.attention(name, *inputs, attention.ONE_DEVICE, segments)

    functions = {name: functools.partial(ours, name, segments) for name in attention.BACK_ENDS}
    functions["jax.nn"] = functools.partial(masked, "xla")
    if jax.default_backend() == "gpu" and arguments.dtype == "bfloat16":
        functions["jax.nn, cudnn"] = functools.partial(masked, "cudnn")
        functions["cudnn, place for most"] = functools.partial(ours, "cudnn", 0)

    @functools.partial(jax.jit, static_argnums=0)
    def step(function, q, k, v, d_out):
        out, transpose = jax.vjp(lambda q, k, v: function(q, k, v, starts), q, k, v)
        return out, *transpose(d_out)

    # 2 products forward and 5 backward, 2 H FLOPs for each score that is seen.
    seen = int(jnp.sum(jnp.arange(arguments.length)[None] - starts + 1)) * arguments.heads
    floor = 7 * 2 * seen * arguments.head_dim / machine.flops_per_second(arguments.dtype)
    with jax.default_matmul_precision("highest"):
        expected = [np.asarray(array) for array in step(functions["jax.nn"], *(array.astype(jnp.float32) for array in inputs))]
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}; {vars(arguments)}")
    print(f"the products of all scores that are seen: {floor * 1e3:.2f} ms at the speed of a large one")
    print("| back end | ms | of jax.nn | temporaries, MiB | error | leaks | repeats |\n|---|---|---|---|---|---|---|")
    found, seconds = {}, {}
    for name, function in functions.items():
        try:
            compiled = step.lower(function, *inputs).compile()
        except BadInput as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        found[name] = compiled
    for _ in range(arguments.turns):  # in turns, so that a busy machine disturbs all
        for name, compiled in found.items():
            started = time.perf_counter()
            jax.block_until_ready(compiled(*inputs))
            seconds.setdefault(name, []).append(time.perf_counter() - started)
    wrong, figures = [], []
    for name, compiled in found.items():
        before, again, after = ([np.asarray(array) for array in compiled(*arrays)] for arrays in (inputs, inputs, other))
        outside = segment_ids != 2
        repeats = all((one == two).all() for one, two in zip(before, again, strict=True))
        leaks = 0
        for one, two in zip(before, after, strict=True):
            allowed = 0.0 if repeats else 0.01 * np.abs(one.astype(np.float32)).max()
            leaks += int((np.abs(one[outside].astype(np.float32) - two[outside].astype(np.float32)) > allowed).sum())
        error = max(
            np.abs(one.astype(np.float32) - right).max() / np.abs(right).max() for one, right in zip(before, expected, strict=True)
        )
        took = float(np.median(seconds[name]))
        held = compiled.memory_analysis().temp_size_in_bytes / 2**20
        ratio = took / float(np.median(seconds["jax.nn"]))
        print(f"| {name} | {took * 1e3:.2f} | {ratio:.2f} | {held:.1f} | {error:.1e} | {leaks} | {repeats} |")
        figures.append({"back_end": name, "seconds": took, "mib": held, "error": float(error), "leaks": leaks, "repeats": repeats})
        wrong += [name] if leaks else []
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if wrong:
        sys.exit(f"leaks: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
