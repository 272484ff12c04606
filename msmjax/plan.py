"""What an experiment would take before any of it runs: steps, FLOPs, bytes, time and cost, on this machine or another.

In: an `ExperimentConfig` and a machine: this one, a number of devices of a known type (`h100:8`), or a TPU slice
(`v5p:2x2x2`), for which the real train step is compiled without having it. Out: what is printed. docs/planning.md explains it.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from msmjax.artifact import BadInput
from msmjax.config import IMPORT, ExperimentConfig, suggestion
from msmjax.corpus import sources
from msmjax.data import chat, show
from msmjax.data.huggingface import open_tokenizer
from msmjax.model import attention, lora, transformer
from msmjax.model.transformer import ModelConfig
from msmjax.report import table
from msmjax.training import loop, sharding
from msmjax.training import step as steps
from msmjax.training.loop import StageConfig
from msmjax.training.step import StepConfig

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class DeviceType:
    """One device as it is sold: its peak, and what a program can have of its memory."""

    flops: float  # dense bfloat16 FLOP/s; sparse peaks, twice as high, are never reached here
    memory: float  # bytes
    kind: tuple[str, str]  # platform and compute capability, as model/attention.py asks


DEVICES = {
    # FLOP/s of NVIDIA's data sheets (A100, H100, H200 SXM); memory as CUDA reports it, a little under the name.
    "a100": DeviceType(312e12, 79 * GIB, ("gpu", "8.0")),
    "h100": DeviceType(989e12, 79 * GIB, ("gpu", "9.0")),
    "h200": DeviceType(989e12, 139 * GIB, ("gpu", "9.0")),
    # FLOP/s a chip of the Cloud TPU system architecture pages; memory as the compiler's own "exceeds available HBM" has it.
    "v5e": DeviceType(197e12, 15.75 * GIB, ("tpu", "")),
    "v5p": DeviceType(459e12, 95.74 * GIB, ("tpu", "")),
    "v6e": DeviceType(918e12, 31.25 * GIB, ("tpu", "")),
}

# Share of a described device's peak that training reaches. Published dense fine-tuning of 8B models, causal attention counted
# half: 0.35 to 0.49 on one H100, 0.40 on v6e. Nothing of this repository has been measured there.
ASSUMED_MFU = 0.4
# Share of the speed of a large matrix product that training reaches on small shapes on a CPU (benchmarks/cheese.py).
EFFICIENCY = 0.5

# What a warning starts at.
FEWEST_TOKENS = 1024  # per device: fewer, and a device waits longer for the other shards of a weight than it computes with it
LONGEST_LOSS = 1800  # seconds of training that an interruption may cost


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a plan is made for."""

    name: str
    mesh: Mesh | AbstractMesh
    flops: float  # FLOP/s that one device is taken to reach in training
    basis: str  # where that number is from
    memory: float | None  # bytes of one device, where they are known
    compiles: bool  # whether the train step is compiled for it
    kind: tuple[str, str]  # as DeviceType's


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's figures of one train step, in bytes of one device."""

    seconds: float
    arguments: int  # state and batch, padded as the chip wants them; the next state is written over them
    temporaries: int  # counted generously: with the arguments they may be more than the peak
    peak: int  # all that exists at one time: what the compiler holds against the memory there is


class DoesNotFit(Exception):
    """The compiler refuses the step for want of memory; the text says what it needs and what there is."""


def plan(config: ExperimentConfig, device: str | None = None, topology: str | None = None, price: float | None = None) -> None:
    """Prints the stages of an experiment and what they take; runs none of them. `price` is dollars per device-hour."""
    from rich.table import Table

    if topology is not None:
        machine = slice_of(config, topology)
    elif device is not None:
        machine = devices_of(config, device)
    else:
        machine = this_machine(config)
    model = config.model
    attention.check(model.attention, *machine.kind, config.row_length, model.head_dim, model.compute_dtype)
    used = dict.fromkeys(name for arm in config.run for name in config.arms[arm] if name != IMPORT)
    stages = {name: config.stages[name] for name in used}
    for stage in stages.values():
        loop.check_batch(stage, config.optimizer, machine.mesh)
    params, optimizer = state_bytes(config.model, config.optimizer, machine.mesh)
    per_token = flops_per_token(config.model, config.row_length)
    rate = machine.flops * machine.mesh.size
    axes = ", ".join(f"{axis} {size}" for axis, size in machine.mesh.shape.items())

    out = Table(title=f"{config.name}: {len(config.run)} arms, {len(config.seeds)} seeds, on {machine.name} ({axes})")
    for name in ("stage", "runs", "steps", "tokens/step", "tokens", "activations", "estimate"):
        out.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    chains = {config.arms[arm][: i + 1] for arm in config.run for i in range(len(config.arms[arm]))}
    total = 0.0
    for name, stage in stages.items():
        runs = len([chain for chain in chains if chain[-1] == name]) * len(config.seeds)
        per_step = stage.batch_rows * config.row_length
        tokens = stage.steps * per_step
        total += runs * tokens * per_token / rate
        out.add_row(
            name, str(runs), f"{stage.steps:,}", f"{per_step:,}", f"{tokens:,}",
            show_bytes(activation_bytes(config, stage, machine.mesh)), f"{runs} x {show_seconds(tokens * per_token / rate)}",
        )  # fmt: skip
    console = table.make_console()
    console.print(out)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(
        f"{transformer.count_params(config.model):,} parameters, {lora.describe(config.model)}; "
        f"about {total / 60:,.1f} minutes of training on {machine.name}, "
        f"compilation and evals apart: {per_token / 1e9:.3g} GFLOP per token at {machine.basis}"
    )
    hours = total / 3600 * machine.mesh.size
    say(f"{hours:,.1f} device-hours" + (f", {hours * price:,.2f} dollars at {price:g} each" if price is not None else ""))
    say(
        f"on each device: parameters {show_bytes(params)}, optimizer state {show_bytes(optimizer)} (both exact), "
        f"gradients {show_bytes(gradient_bytes(config, machine.mesh))}, activations as above (both estimates)"
        + (f", of {show_bytes(machine.memory)}" if machine.memory else "")
    )
    if machine.compiles:
        for rows in dict.fromkeys(stage.batch_rows for stage in stages.values()):
            say(f"compiled for {rows} rows of {config.row_length}: {describe_compiled(config, rows, machine)}")
    for line in warnings(config, stages, machine):
        say(f"warning: {line}")
    if config.weights:
        print_first_chat(config, stages)


def print_first_chat(config: ExperimentConfig, stages: dict[str, StageConfig]) -> None:
    """Prints the hash of the chat template, and the first conversation that the stages read as it renders it.

    A plan is made before everything is there: what lacks is said and is no error.
    """
    console = table.make_console()
    try:
        tokenizer = open_tokenizer(config.weights, config.adapter, config.template, config.template_arguments)
        console.print(tokenizer.describe_template(), markup=False, highlight=False, soft_wrap=True)
        for corpus in dict.fromkeys(corpus for stage in stages.values() for corpus, _ in stage.data):
            if found := sources.first_conversation(config.corpora[corpus], config.text_and_messages):
                ids, mask = chat.render(found["messages"], tokenizer, found["read_from"], found.get("tools"))
                row = {"tokens": np.array(ids), "segment_ids": np.ones(len(ids), int), "loss_mask": np.array(mask)}
                console.print(f"the first chat of {corpus}, in bold green what is trained on:", highlight=False)
                console.print(show.coloured(row, tokenizer), soft_wrap=True)
                return
    except BadInput as error:
        console.print(f"no chat is shown: {error}", markup=False, highlight=False, soft_wrap=True)


def this_machine(config: ExperimentConfig) -> Machine:
    """All devices of this run; their speed is measured with a matrix product."""
    mesh = sharding.make_mesh(config.mesh)
    # CPU devices of one process are virtual and share one processor.
    flops = flops_per_second() * EFFICIENCY / (jax.local_device_count() if jax.default_backend() == "cpu" else 1)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")  # a CPU has no memory of its own
    kind = attention.kind_of(jax.devices()[0])
    return Machine("this machine", mesh, flops, f"{EFFICIENCY} of a measured matrix product", memory, False, kind)


def devices_of(config: ExperimentConfig, name: str) -> Machine:
    """`h100:8` is eight of them, `h100` one. Raises BadInput for a type that is not known."""
    kind, _, count = name.partition(":")
    if kind not in DEVICES:
        raise BadInput(f"--device={name}: no device type {kind!r}{suggestion(kind, list(DEVICES))}")
    if not re.fullmatch(r"([1-9]\d*)?", count) or name.endswith(":"):
        raise BadInput(f"--device={name}: {count!r} is not a number of devices; e.g. --device={kind}:8")
    sizes = sharding.mesh_sizes(config.mesh, int(count or 1))
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    return _described(f"{count or 1} x {kind}", kind, mesh, compiles=False)


def slice_of(config: ExperimentConfig, name: str) -> Machine:
    """The chips of a TPU slice, e.g. `v5p:2x2x2`, as the compiler knows them: no chip is needed.

    Raises BadInput for a slice that is not known, and where libtpu, which holds the compiler, is not installed.
    """
    kind = name.partition(":")[0]
    if kind not in DEVICES or not re.fullmatch(r"v\w+:\d+(x\d+){1,2}", name):
        raise BadInput(f"--topology={name}: not a TPU slice; write e.g. v5e:4x4, v6e:2x4 or v5p:2x2x2")
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput(f"--topology={name}: compiling for a TPU needs libtpu; pip install 'msmjax[tpu]'")
    # libtpu asks a cloud's metadata service which chips it has and locks them for itself, unless it is told before it is loaded.
    # The accelerator type only ends a complaint: the figures were the same with and without it, for v5p and v6e alike.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true", "TPU_LOG_DIR": "disabled",
    }  # fmt: skip
    jax.config.update("jax_platforms", "cpu")  # libtpu compiles; it is no back end to run on
    from jax.experimental import mesh_utils, topologies

    try:
        chips = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise BadInput(f"--topology={name}: {str(error).splitlines()[0]}") from None
    sizes = sharding.mesh_sizes(config.mesh, len(chips))
    try:
        # `topologies.make_mesh` cannot divide one axis of the slice among two of ours.
        placed = mesh_utils.create_device_mesh(tuple(sizes.values()), chips, allow_split_physical_axes=True)
    except (ValueError, NotImplementedError) as error:
        raise BadInput(f"--topology={name}: mesh {sizes}: {str(error).splitlines()[0]}") from None
    mesh = Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    return _described(name, kind, mesh, compiles=True)


def _described(name: str, kind: str, mesh: Mesh | AbstractMesh, compiles: bool) -> Machine:
    device = DEVICES[kind]
    basis = f"an assumed MFU of {ASSUMED_MFU} (peak {device.flops / 1e12:.0f} TFLOP/s)"
    return Machine(name, mesh, ASSUMED_MFU * device.flops, basis, device.memory, compiles, device.kind)


def flops_per_second() -> float:
    """Speed of one large float32 matrix product on the first device: the fastest of ten, since others can only slow it down."""
    size = 1024 if jax.default_backend() == "cpu" else 8192  # so large that starting it takes no time beside it
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


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


def activation_bytes(config: ExperimentConfig, stage: StageConfig, mesh: Mesh | AbstractMesh) -> int:
    """Bytes of one device of what a step holds beside state and gradients at its largest, estimated:

        kept of every layer    rows x T x e x D with remat, and N H / t more if that is "attention"; or all that the block
                               computes without remat
      + one block's backward   twice its rows x T x e x (4 D + (2 N + 2 K) H / t + 3 F / t)
      + the loss               logits and their gradient in float32, 8 x rows x loss_chunk x V / t
      + weights                a copy of this device's shard of what is trained in the compute dtype, if that is not float32;
                               and where fsdp cuts them, the matrices of two blocks, gathered, e x 2 x parameters / t

    e is the bytes of the compute dtype, t the mesh's `tensor`, rows those of a micro-batch on one device. Attention scores
    never exist as a whole. cuDNN's attention has keys and values for all N heads, and keeps 4 bytes of sums for each of
    rows x N / t x M x T, M the segments it has place for. docs/planning.md compares this with the TPU compiler's peak; a
    GPU's has not been compared.
    """
    model, tensor = config.model, mesh.shape["tensor"]
    rows, itemsize = _rows_on_device(config, stage, mesh), jnp.dtype(model.compute_dtype).itemsize
    tokens, heads = rows * config.row_length, model.heads * model.head_dim // tensor
    sums = 0
    narrow = (2 * model.heads + 2 * model.kv_heads) * model.head_dim + 3 * model.mlp
    if model.attention == "cudnn":
        sums = 4 * model.heads * attention.most_segments(config.row_length) // (tensor * itemsize)
        narrow += 2 * (model.heads - model.kv_heads) * model.head_dim
    block = 4 * model.width + narrow // tensor + sums
    kept = {"none": block, "attention": model.width + heads + sums, "full": model.width}[model.remat]
    loss = 8 * rows * config.optimizer.loss_chunk * model.vocab // tensor
    trained = _bytes(steps.abstract_state(model, config.optimizer, mesh)["params"])
    weights = trained * itemsize // 4 if itemsize < 4 else 0
    if mesh.shape["fsdp"] > 1:
        embeddings = (1 if model.tied_embeddings else 2) * model.vocab * model.width
        weights += 2 * itemsize * (transformer.count_params(model) - embeddings) // model.layers // tensor
    return itemsize * tokens * (model.layers * kept + 2 * block) + loss + weights


def _rows_on_device(config: ExperimentConfig, stage: StageConfig, mesh: Mesh | AbstractMesh) -> int:
    return stage.batch_rows // config.optimizer.micro_batches // (mesh.shape["data"] * mesh.shape["fsdp"])


def warnings(config: ExperimentConfig, stages: dict[str, StageConfig], machine: Machine) -> list[str]:
    """What is allowed and probably not meant. What depends on the data, such as epochs, is not known here."""
    found: dict[str, list[str]] = {}  # warning -> the stages it is true of

    def warn(stage: str, text: str) -> None:
        found.setdefault(text, []).append(stage)

    accelerator, every = machine.memory is not None, config.log.checkpoint_every
    per_token = flops_per_token(config.model, config.row_length)
    state = sum(state_bytes(config.model, config.optimizer, machine.mesh)) + gradient_bytes(config, machine.mesh)
    for name, stage in stages.items():
        if stage.warmup_steps >= stage.steps:
            warn(name, f"warm-up of {stage.warmup_steps} in {stage.steps} steps: the rate never falls from its peak")
        if stage.steps < loop.FEWEST_UPDATES:
            warn(name, f"{stage.steps} updates train too little to conclude from")
        seconds = stage.batch_rows * config.row_length * per_token / (machine.flops * machine.mesh.size)
        if (lost := min(every, stage.steps) * seconds) > LONGEST_LOSS:
            warn(name, f"an interruption costs up to {show_seconds(lost)} with log.checkpoint_every={every}")
        if not accelerator:
            continue
        if config.model.compute_dtype == "float32":
            warn(name, "model.compute_dtype=float32: matrix units reach their peak in bfloat16 only")
        tokens = _rows_on_device(config, stage, machine.mesh) * config.row_length
        if machine.mesh.size > 1 and tokens < FEWEST_TOKENS:
            warn(
                name,
                f"{tokens} tokens of a micro-batch on a device: it waits longer for its share of the weights than it computes; "
                "raise batch_rows, lower micro_batches or use fewer devices",
            )
        needed = state + activation_bytes(config, stage, machine.mesh)
        if needed > machine.memory and not machine.compiles:
            warn(
                name,
                f"does not fit by this estimate: {show_bytes(needed)} of {show_bytes(machine.memory)}; "
                "use more devices, mesh.tensor, micro_batches or remat",
            )
    return [f"{', '.join(names)}: {text}" for text, names in found.items()]


def describe_compiled(config: ExperimentConfig, rows: int, machine: Machine) -> str:
    """One line: the compiler's figures, or that the step does not fit."""
    try:
        said = compile_for(config, rows, machine.mesh)
    except DoesNotFit as error:
        return f"does not fit: {error}"
    return (
        f"fits: peak {show_bytes(said.peak)} of {show_bytes(machine.memory)}, arguments {show_bytes(said.arguments)}, "
        f"temporaries {show_bytes(said.temporaries)}; {said.seconds:.0f} s to compile"
    )


def compile_for(config: ExperimentConfig, rows: int, mesh: Mesh) -> Compiled:
    """Compiles the train step that `train` would run, for the devices of `mesh`; nothing is allocated on them.

    Only its memory is read: the compiler counts the FLOPs of a scanned layer once. Raises DoesNotFit.
    """
    state, base = steps.abstract_state(config.model, config.optimizer, mesh), steps.abstract_base(config.model, mesh)
    batch = {
        name: jax.ShapeDtypeStruct((rows, config.row_length), dtype)
        for name, dtype in (("tokens", "int32"), ("segment_ids", "int32"), ("loss_mask", "bool"))
    }
    started = time.perf_counter()
    update = steps.compile_step(config.model, config.optimizer, mesh)
    lowered = update.lower(state, base, batch, jax.ShapeDtypeStruct((), "float32"))
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(read_exhausted(str(error))) from None
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    seconds = time.perf_counter() - started
    return Compiled(seconds, arguments, memory.temp_size_in_bytes, memory.peak_memory_in_bytes)


def read_exhausted(message: str) -> str:
    """The two figures of the compiler's RESOURCE_EXHAUSTED; of a wording that is not known, the first line.

    The first wording says temporaries and counts arguments with them: a step of 9 GiB of each is said to need 18.
    """
    for wording in (r"temporaries \(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", r"Used ([\d.]+)G of ([\d.]+)G hbm"):
        if match := re.search(wording, message):
            return f"needs {match[1]} GiB of {match[2]} GiB"
    return message.splitlines()[0]


def show_bytes(count: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"


def show_seconds(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"
