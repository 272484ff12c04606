"""Machines: what this run is on, and devices as they are sold, to plan for.

In: a config, and the name of a machine that is not here: a number of devices of a known type (`h100:8`), or a TPU slice
(`v5p:2x2x2`), as the compiler knows it. Out: a `Machine`.
"""

import dataclasses
import importlib.util
import os
import re
import time
from pathlib import Path

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from msmjax.artifact import BadInput
from msmjax.config import ExperimentConfig
from msmjax.model import attention
from msmjax.ranges import suggestion
from msmjax.training import processes, sharding

GIB = 2**30
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclasses.dataclass(frozen=True)
class DeviceType:
    """One device as it is sold: its peak, and what a program can have of its memory."""

    flops: float  # dense bfloat16 FLOP/s; sparse peaks, twice as high, are never reached here
    memory: float  # bytes
    kind: tuple[str, str]  # platform and compute capability, as model/attention.py asks
    mfu: float  # share of the peak that training is taken to reach
    basis: str  # where that is from


ASSUMED = "assumed: published dense fine-tuning of 8B models is at 0.35 to 0.49 on one H100, 0.40 on v6e"
MEASURED = "measured on one H100 without remat: 0.57 with LoRA at 8B, 0.55 in full at 1B (benchmarks/RESULTS.md)"
DEVICES = {
    # FLOP/s of NVIDIA's data sheets (A100, H100, H200 SXM); memory as CUDA reports it, a little under the name, and of that what
    # main.py lets JAX take.
    "a100": DeviceType(312e12, 0.92 * 79 * GIB, ("gpu", "8.0"), 0.4, ASSUMED),
    "h100": DeviceType(989e12, 0.92 * 79 * GIB, ("gpu", "9.0"), 0.55, MEASURED),
    "h200": DeviceType(989e12, 0.92 * 139 * GIB, ("gpu", "9.0"), 0.55, MEASURED),
    # FLOP/s a chip of the Cloud TPU system architecture pages; memory as the compiler's own "exceeds available HBM" has it.
    "v5e": DeviceType(197e12, 15.75 * GIB, ("tpu", ""), 0.4, ASSUMED),
    "v5p": DeviceType(459e12, 95.74 * GIB, ("tpu", ""), 0.4, ASSUMED),
    "v6e": DeviceType(918e12, 31.25 * GIB, ("tpu", ""), 0.4, ASSUMED),
}

# Share of the speed of a large matrix product that training reaches on small shapes on a CPU (benchmarks/cheese.py).
EFFICIENCY = 0.5


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a run is on, or a plan is made for."""

    name: str
    mesh: Mesh | AbstractMesh
    flops: float | None  # FLOP/s that one device is taken to reach in training; None: to be measured
    basis: str  # where that number is from
    memory: float | None  # bytes of one device, where they are known
    compiles: bool  # whether the train step is compiled for it
    kind: tuple[str, str]  # as DeviceType's
    device: str  # as its maker calls it


def this_machine(config: ExperimentConfig) -> Machine:
    """All devices of this run. Raises BadInput where they are not what the config is for, as `check_here` does."""
    check_here(config)
    mesh, device = sharding.make_mesh(config.mesh), jax.devices()[0]
    # A CPU has no memory of its own. All processes must cut their steps alike, so the first says what there is.
    mib = processes.first_says(lambda: (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0) // 2**20)
    memory = mib * 2**20 or None
    basis = f"{EFFICIENCY} of a measured matrix product"
    return Machine("this machine", mesh, None, basis, memory, False, attention.kind_of(device), device.device_kind)


def check_here(config: ExperimentConfig) -> None:
    """Raises BadInput where JAX computes on a CPU and nobody said so: on a machine with a GPU, or for a config made for one.

    JAX takes the CPU where it finds no driver or no CUDA of its own, and says little; JAX_PLATFORMS=cpu says that it is meant.
    """
    if jax.default_backend() != "cpu" or "cpu" in (os.environ.get("JAX_PLATFORMS") or "").split(","):
        return
    install = "pip install 'msmjax[cuda13]' (driver 580 or newer) or 'msmjax[cuda12]' (525 or newer), see docs/launching.md"
    meant = "to compute on the CPU all the same, set JAX_PLATFORMS=cpu"
    if NVIDIA_DRIVER.exists():
        raise BadInput(f"this machine has an NVIDIA GPU that JAX does not see: {install}; {meant}")
    if config.model.compute_dtype == "bfloat16":
        raise BadInput(
            f"model.compute_dtype='bfloat16': is for a GPU or TPU, and JAX found none here: {install}; {meant}, or float32"
        )


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
    basis = f"an MFU of {device.mfu} (peak {device.flops / 1e12:.0f} TFLOP/s; {device.basis})"
    return Machine(name, mesh, device.mfu * device.flops, basis, device.memory, compiles, device.kind, kind)


def flops_per_second(dtype: str = "float32") -> float:
    """Speed of one large matrix product on the first device: the fastest of ten, since others can only slow it down."""
    size = 1024 if jax.default_backend() == "cpu" else 8192  # so large that starting it takes no time beside it
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
