"""How fast the shipped experiment is, against the machine's floor and against a plain training step, in one run.

    python benchmarks/cheese.py            # the step: tokens/s, share of the machine's speed, ratio to a plain step
    python benchmarks/cheese.py --overhead # and what logging and checkpoints cost at the config's cadence, as a ratio of step time
    python benchmarks/cheese.py --whole    # and the whole default command in a fresh directory: compile, train, eval, rest

Results are kept in benchmarks/RESULTS.md.
"""

import argparse
import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msmjax import config as configs
from msmjax import fit, machine
from msmjax.data.mixture import Mixture
from msmjax.model import transformer
from msmjax.training import loop, sharding
from msmjax.training import step as steps
from msmjax.training.loop import LogConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/cheese.py"


def load():
    spec = importlib.util.spec_from_file_location("cheese", ROOT / CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = configs.from_config_dict(module.get_config())
    return dataclasses.replace(config, model=fit.model_here(config))


def plain_step(config):
    """What one writes first: the whole batch's logits, optax's cross-entropy and AdamW with its learning rate, no mesh."""
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))

    @jax.jit
    def update(params, optimizer_state, batch):
        def loss_fn(params):
            x_BTD = transformer.forward(config.model, params, batch["tokens"], batch["segment_ids"])
            logits_BTV = transformer.unembed(config.model, params, x_BTD)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits_BTV[:, :-1], batch["tokens"][:, 1:])
            counted = batch["loss_mask"][:, 1:]
            return jnp.sum(nats * counted) / jnp.sum(counted)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, optimizer_state = transform.update(grads, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, loss

    params = transformer.init_params(config.model, jax.random.key(0))
    return update, params, transform.init(params)


def make_rows(config, rows):
    """Random rows of four documents each."""
    rng, length = np.random.default_rng(0), config.row_length
    return {
        "tokens": rng.integers(4, config.vocab_size, (rows, length)).astype(np.int32),
        "segment_ids": np.repeat([[1, 2, 3, 4]], rows, 0).repeat(length // 4, 1).astype(np.int32),
        "loss_mask": np.ones((rows, length), bool),
    }


def time_steps(config, count):
    """Seconds a step of ours, and of the plain one: medians of alternating blocks, so that a busy machine disturbs both."""
    rows, length = config.stages["pretrain"].batch_rows, config.row_length
    batch = make_rows(config, rows)
    mesh = sharding.make_mesh(config.mesh)
    state = steps.compile_init(config.model, config.optimizer, mesh)(jax.random.key(0))
    update = steps.compile_step(config.model, config.optimizer, mesh)
    plain, params, optimizer_state = plain_step(config)

    def ours():
        nonlocal state
        placed = sharding.place_batch(mesh, rows, lambda a, b: {name: array[a:b] for name, array in batch.items()})
        state, metrics = update(state, {}, placed, np.float32(1e-3))
        return metrics["loss"]

    def theirs():
        nonlocal params, optimizer_state
        params, optimizer_state, loss = plain(params, optimizer_state, batch)
        return loss

    seconds = {"ours": [], "plain": []}
    for block in range(6):
        for name, one in (("ours", ours), ("plain", theirs)):
            one().block_until_ready()
            started = time.perf_counter()
            for _ in range(count):
                loss = one()
            loss.block_until_ready()
            if block:  # the first compiles
                seconds[name].append((time.perf_counter() - started) / count)
    return {name: float(np.median(values)) for name, values in seconds.items()}, rows * length


def time_loop(config, blocks=4):
    """Seconds a step of the loop with the config's cadence of logging and checkpoints, and without any: medians of blocks.

    Every run of the loop saves at its end, which the time without checkpoints leaves out.
    """
    every = config.log.checkpoint_every
    stage = dataclasses.replace(config.stages["pretrain"], steps=2 * every)
    rows = make_rows(config, 512)
    source = [{name: array[index] for name, array in rows.items()} for index in range(512)]
    mesh = sharding.make_mesh(config.mesh)
    seconds = {"with": [], "without": []}
    for block in range(blocks):
        for name, log in (("with", config.log), ("without", LogConfig(stage.steps, stage.steps))):
            mixture = Mixture((source,), (1.0,), block)
            with tempfile.TemporaryDirectory() as work:
                said = loop.train(Path(work), name, config.model, config.optimizer, stage, log, mixture, mesh, None, None, 0)
            phases = said["seconds"]
            spent = sum(phases.values()) - phases["compile"] - (phases["checkpoint"] if name == "without" else 0)
            seconds[name].append(spent / stage.steps)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overhead", action="store_true", help="also time the loop with and without logging and checkpoints")
    parser.add_argument("--whole", action="store_true", help="also run the whole default command in a fresh directory")
    parser.add_argument("--steps", type=int, default=100, help="steps a block")
    arguments = parser.parse_args()
    config = load()
    peak = machine.flops_per_second()
    seconds, tokens = time_steps(config, arguments.steps)
    flops = fit.flops_per_token(config.model, config.row_length) * tokens
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}, python {sys.version.split()[0]}")
    print(f"a large matrix product: {peak / 1e9:.0f} GFLOP/s; a step's floor at that speed: {flops / peak * 1e3:.2f} ms")
    for name, value in seconds.items():
        print(f"{name:6s} {value * 1e3:7.2f} ms a step, {tokens / value:10,.0f} tokens/s, {flops / value / peak:.2f} of that speed")
    print(f"ours / plain: {seconds['ours'] / seconds['plain']:.2f} of its time")
    if arguments.overhead:
        loops = time_loop(config)
        cadence = f"logs every {config.log.metrics_every} and checkpoints every {config.log.checkpoint_every} steps"
        print(f"the loop: {loops['with'] * 1e3:.2f} ms a step with {cadence}, {loops['without'] * 1e3:.2f} without any")
        print(f"with / without: {loops['with'] / loops['without']:.3f} of its time")
    if arguments.whole:
        with tempfile.TemporaryDirectory() as work:
            started = time.perf_counter()
            command = [sys.executable, "-m", "msmjax.main", f"--config={CONFIG}", f"--workdir={work}"]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            total = time.perf_counter() - started
            (said,) = (json.loads(path.read_text()) for path in Path(work).glob("*/run.json"))
            split = ", ".join(f"{phase} {value:.0f} s" for phase, value in said["seconds"].items())
            print(f"the whole default command: {total:.0f} s ({split})")


if __name__ == "__main__":
    main()
