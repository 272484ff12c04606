"""What a step takes, and how it is cut so that a machine can hold it.

In: a config and a machine. Out: FLOPs, bytes of one device, and the config with every `auto` said: which attention, what the
backward pass computes again, how many micro-batches. All of it is arithmetic on shapes; docs/planning.md explains it.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from msmjax.config import ExperimentConfig
from msmjax.evals import scoring
from msmjax.machine import Machine
from msmjax.model import attention, transformer
from msmjax.model.transformer import ModelConfig
from msmjax.training import loop, sharding
from msmjax.training import step as steps
from msmjax.training.loop import StageConfig
from msmjax.training.step import StepConfig

FILLED = 0.92  # the share of a device's memory that a step may take by these estimates


def fit(config: ExperimentConfig, stage: StageConfig, machine: Machine, segments: int = 0) -> ExperimentConfig:
    """The config that the stage is computed with: `auto` and 0 micro-batches are replaced by what fits the machine.

    Of what fits, nothing computed again and few micro-batches are the fastest; where the memory is not known, nothing is cut. Where
    nothing fits by the estimate, everything is cut and computed again. Raises BadInput for a named back end of attention that does
    not run there, and a batch that does not divide over micro-batches and devices. No row has more than `segments` (0: not known).
    """
    model, step, mesh = config.model, config.optimizer, machine.mesh
    back_end, _ = attention.resolve(model.attention, *machine.kind, config.row_length, model.head_dim, model.compute_dtype)
    devices = sharding.row_devices(mesh)
    cuts = [parts for parts in range(1, stage.batch_rows + 1) if stage.batch_rows % (parts * devices) == 0]
    for remat in transformer.REMAT if model.remat == transformer.AUTO else (model.remat,):
        for micro_batches in (step.micro_batches,) if step.micro_batches else cuts or (1,):
            said = dataclasses.replace(
                config,
                model=dataclasses.replace(model, attention=back_end, remat=remat),
                optimizer=dataclasses.replace(step, micro_batches=micro_batches),
            )
            loop.check_batch(stage, said.optimizer, mesh)
            if machine.memory is None or step_bytes(said, stage, mesh, segments) <= FILLED * machine.memory:
                return said
    return said


def model_here(config: ExperimentConfig) -> ModelConfig:
    """The model with the back end of attention that it has on this machine."""
    model, kind = config.model, attention.kind_of(jax.devices()[0])
    back_end, _ = attention.resolve(model.attention, *kind, config.row_length, model.head_dim, model.compute_dtype)
    return dataclasses.replace(model, attention=back_end)


def how(said: ExperimentConfig, there: Machine) -> str:
    """One line: how a stage is computed, of a config that `fit` made, and why not with a faster attention."""
    model, parts = said.model, said.optimizer.micro_batches
    _, why = attention.resolve(attention.AUTO, *there.kind, said.row_length, model.head_dim, model.compute_dtype)
    options = sharding.GPU_OPTIONS if there.kind[0] == "gpu" else {}
    return (
        f"attention {model.attention}{f' ({why})' if why else ''}, remat {model.remat}, "
        f"{parts} micro-batch{'es' if parts > 1 else ''} a step" + "".join(f", {name}={value}" for name, value in options.items())
    )


def step_bytes(config: ExperimentConfig, stage: StageConfig, mesh: Mesh | AbstractMesh, segments: int = 0) -> int:
    """Bytes of one device of a step at its largest: state, gradients and activations."""
    state = sum(state_bytes(config.model, config.optimizer, mesh))
    return state + gradient_bytes(config, mesh) + activation_bytes(config, stage, mesh, segments)


def computed_again(model: ModelConfig) -> float:
    """The FLOPs of a step over those that `flops_per_token` counts: with remat, the forward pass is computed twice."""
    return 1.0 if model.remat == "none" else 3 / 2 if model.lora_rank else 4 / 3


def flops_per_token(model: ModelConfig, length: int) -> float:
    """FLOPs of training on one token of a row of `length`: 6N + 6LTd, with LoRA 4N + 6p + 6LTd; d = heads x head_dim.

    N is the parameters without the lookup of the input embedding, p those of the adapter. Each takes a multiply and an add
    forward and two of each backward; a frozen one has no gradient of its own, so one backward. Causal attention is counted half,
    as MaxText does (its performance_metrics.md). What remat computes again is not counted, nor what borders of segments save.
    """
    params = transformer.count_params(model)
    matmul = params if model.tied_embeddings else params - model.vocab * model.width
    of_parameters = 4 * matmul + 6 * transformer.count_adapter(model) if model.lora_rank else 6 * matmul
    return of_parameters + 6 * model.layers * length * model.heads * model.head_dim


@functools.cache
def state_bytes(model: ModelConfig, step: StepConfig, mesh: Mesh | AbstractMesh) -> tuple[int, int]:
    """Bytes of one device of parameters and of optimizer state (with the step), exactly: from shapes and shardings."""
    state = steps.abstract_state(model, step, mesh)
    params = _bytes(state["params"])
    return params + _bytes(steps.abstract_base(model, mesh)), _bytes(state) - params


def _bytes(abstract: dict) -> int:
    """Bytes of one device of a tree of shapes with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))


def gradient_bytes(config: ExperimentConfig, mesh: Mesh | AbstractMesh) -> int:
    """Bytes of one device of the gradients: as large as what is trained, and once more where micro-batches are added up."""
    trained = _bytes(steps.abstract_state(config.model, config.optimizer, mesh)["params"])
    return trained * (1 if config.optimizer.micro_batches == 1 else 2)


def activation_bytes(config: ExperimentConfig, stage: StageConfig, mesh: Mesh | AbstractMesh, segments: int = 0) -> int:
    """Bytes of one device of what a step holds beside state and gradients at its largest, estimated:

        kept of every layer    rows x T x e x D with remat, and N H / t more if that is "attention"; or all that the block
                               computes without remat
      + one block's backward   twice its rows x T x e x (4 D + (2 N + 2 K) H / t + 3 F / t)
      + the loss               logits and their gradient in float32, 8 x rows x loss_chunk x V / t
      + weights                a copy of this device's shard of what is trained in the compute dtype, if that is not float32;
                               and where fsdp cuts them, the matrices of two blocks, gathered, e x 2 x parameters / t

    e is the bytes of the compute dtype, t the mesh's `tensor`, rows those of a micro-batch on one device. Attention scores
    never exist as a whole. cuDNN's attention keeps 4 bytes of sums for each of rows x N / t x M x T, M the segments it has
    place for (`segments`, or where that is 0, all that a row may have), and its backward pass works on 8 x H times as many for a
    moment; before JAX's pull request 39521 it has keys and values for all N heads. docs/planning.md compares this with the TPU
    compiler's peak and with what an H100 held.
    """
    model, tensor = config.model, mesh.shape["tensor"]
    rows, itemsize = rows_on_device(config, stage, mesh), jnp.dtype(model.compute_dtype).itemsize
    tokens, heads = rows * config.row_length, model.heads * model.head_dim // tensor
    sums = workspace = 0
    narrow = (2 * model.heads + 2 * model.kv_heads) * model.head_dim + 3 * model.mlp
    if model.attention == "cudnn":
        place = model.heads * (segments or attention.most_segments(config.row_length)) // tensor
        sums, workspace = 4 * place // itemsize, 8 * tokens * place * model.head_dim
        if not attention.grouped_offsets_are_right():
            narrow += 2 * (model.heads - model.kv_heads) * model.head_dim
    block = 4 * model.width + narrow // tensor + sums
    kept = {"none": block, "attention": model.width + heads + sums, "full": model.width}[model.remat]
    loss = 8 * rows * min(config.optimizer.loss_chunk, config.row_length) * model.vocab // tensor
    trained = _bytes(steps.abstract_state(model, config.optimizer, mesh)["params"])
    weights = trained * itemsize // 4 if itemsize < 4 else 0
    if mesh.shape["fsdp"] > 1:
        embeddings = (1 if model.tied_embeddings else 2) * model.vocab * model.width
        weights += 2 * itemsize * (transformer.count_params(model) - embeddings) // model.layers // tensor
    return itemsize * tokens * (model.layers * kept + 2 * block) + workspace + loss + weights


def eval_bytes(config: ExperimentConfig, mesh: Mesh | AbstractMesh) -> int:
    """Bytes of one device while bits per byte are measured, estimated: parameters, and the larger of a block, rows x T x e x
    (4 D + 2 F / t), and a chunk's logits in float32, twice. XLA's compiler for CPUs had 1.06 times the temporaries (8B, 14B)."""
    model, tensor = config.model, mesh.shape["tensor"]
    devices = sharding.row_devices(mesh)
    at_a_time = scoring.rows_at_a_time(config.row_length, mesh)
    rows, itemsize = at_a_time // devices, jnp.dtype(model.compute_dtype).itemsize
    block = itemsize * rows * config.row_length * (4 * model.width + 2 * model.mlp // tensor)
    logits = 8 * rows * scoring.chunk_of(at_a_time, config.row_length) * model.vocab // tensor
    return state_bytes(model, config.optimizer, mesh)[0] + max(block, logits)


def eval_flops_per_token(model: ModelConfig, length: int) -> float:
    """FLOPs of scoring a token: forward alone, 2N + 2LTd, and 2p of an adapter; `flops_per_token` says what the letters are."""
    whole = flops_per_token(dataclasses.replace(model, lora_rank=0), length) / 3
    return whole + (2 * transformer.count_adapter(model) if model.lora_rank else 0)


def rows_on_device(config: ExperimentConfig, stage: StageConfig, mesh: Mesh | AbstractMesh) -> int:
    return stage.batch_rows // config.optimizer.micro_batches // sharding.row_devices(mesh)
