"""Which TPU slice, and which mesh on it, is the smallest that the paper's shapes fit, in full or with LoRA? Asks the compiler.

    pip install -e '.[tpu]' && JAX_PLATFORMS=cpu python benchmarks/topologies.py   # all: over an hour on one core
    JAX_PLATFORMS=cpu python benchmarks/topologies.py --variants=llama31_8b_4k --types=v5e,v6e      # some

For every shape and type of chip, slices are tried from the smallest on and meshes from the one with the least tensor parallelism
on, one row of the batch for each group of `tensor` chips, until the train step compiles, with splash attention. It prints rows of
the table that is kept in docs/planning.md, figures in GiB of one chip.
"""

import argparse
import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax

from msmjax import config as configs
from msmjax import fit
from msmjax import machine as machines
from msmjax.experiment import plan
from msmjax.training.sharding import MeshConfig

ROOT = Path(__file__).resolve().parents[1]
SLICES = {
    "v5e": ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    "v6e": ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}
TENSOR = (1, 2, 4, 8)  # at most the 8 key-value heads of all these shapes
VARIANTS = tuple(
    f"{shape}_{length}{lora}"
    for lora in ("", "_lora")
    for shape in ("llama31_8b", "qwen25_14b", "qwen3_32b")
    for length in ("4k", "8k")
)


def load(variant):
    spec = importlib.util.spec_from_file_location("shapes", ROOT / "configs" / "shapes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return configs.from_config_dict(module.get_config(variant))


def row(config, kind):
    """The table's row of a shape on a type of chip: the smallest slice that it fits, its mesh, and what was refused before."""
    refused = []
    for shape in SLICES[kind]:
        needs = []
        for tensor in TENSOR:
            model = dataclasses.replace(config.model, attention="splash")
            one = dataclasses.replace(config, model=model, mesh=MeshConfig(data=1, fsdp=-1, tensor=tensor))
            machine = machines.slice_of(one, f"{kind}:{shape}")
            rows = machine.mesh.shape["fsdp"]
            known = sum(fit.state_bytes(one.model, one.optimizer, machine.mesh)) + fit.gradient_bytes(one, machine.mesh)
            if known > machine.memory:  # no mesh divides this further: it is spread over all chips already
                needs.append(f"state and gradients alone {known / machines.GIB:.1f}")
                break
            try:
                found = plan.compile_for(one, rows, machine.mesh)
            except plan.DoesNotFit as error:
                needs.append(f"{rows} x {tensor} needs {float(str(error).split()[1]):.1f}")
                print(f"{config.name} {kind}:{shape} {needs[-1]}", file=sys.stderr)
                continue
            finally:
                jax.clear_caches()
            stage = dataclasses.replace(one.stages["midtrain"], batch_rows=rows)
            estimate = known + fit.activation_bytes(one, stage, machine.mesh)
            figures = [f"{value / machines.GIB:.1f}" for value in (found.arguments, found.peak, machine.memory, estimate)]
            return f"| {config.name} | {kind}:{shape} | {rows} x {tensor} | {' | '.join(figures)} | {'; '.join(refused)} |"
        refused.append(f"{shape}: {', '.join(needs)}")
    return f"| {config.name} | {kind} | | | | | | {'; '.join(refused)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="of configs/shapes.py, with commas")
    parser.add_argument("--types", default=",".join(SLICES), help="of chips, with commas")
    arguments = parser.parse_args()
    print("| shape and row | slice | fsdp x tensor | arguments | peak | memory | estimate | smaller slices, refused |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in arguments.variants.split(","):
        for kind in arguments.types.split(","):
            print(row(load(variant), kind), flush=True)


if __name__ == "__main__":
    main()
