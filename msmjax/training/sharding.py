"""The mesh, and where each array lives on it, by the letters of its name.

In: mesh sizes, and trees whose leaf names end in their letters. Out: NamedShardings. One table decides everything.
"""

import dataclasses
import math
from typing import Annotated

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from msmjax.artifact import BadInput
from msmjax.ranges import Range

# Letter -> mesh axes. A letter that is not here is replicated.
RULES = {"B": ("data", "fsdp"), "D": "fsdp", "F": "tensor", "N": "tensor", "K": "tensor", "V": "tensor"}
MOST_REPLICATED = 0.02  # of the bytes of parameters or optimizer state
WORTH_CUTTING = 2**20  # bytes
# Activations are sharded over the batch; their D stays whole.
ACTIVATION_RULES = {key: axes for key, axes in RULES.items() if key != "D"}


Axis = Annotated[int, Range("[-1, inf)")]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1: all devices that are left."""

    data: Axis
    fsdp: Axis
    tensor: Axis


# What XLA is told of a training step on a GPU, measured on one H100 (benchmarks/RESULTS.md): cuBLAS adds LoRA's product to the
# matrix's as it writes it, where XLA's own kernels leave that to another pass over both.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
# The gradient of the embedding, to which equal tokens add, is summed in one order: a tenth of a step of a 1B model in full.
REPEATS = {"xla_gpu_enable_scatter_determinism_expander": True}


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over all devices of this run. Raises BadInput where it does not fit them."""
    sizes = mesh_sizes(config, jax.device_count())
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def mesh_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Axis -> size, -1 filled in. Raises BadInput where the sizes do not multiply to the number of devices."""
    sizes = dataclasses.asdict(config)
    known = math.prod(size for size in sizes.values() if size != -1)
    if list(sizes.values()).count(-1) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise BadInput(f"mesh {sizes}: sizes must be at least 1, and at most one of them -1")
    if -1 in sizes.values() and devices % known == 0:
        sizes = {name: devices // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != devices:
        raise BadInput(f"mesh {sizes}: does not fit {devices} devices; the sizes must multiply to that")
    return sizes


def letters_of(path: tuple) -> str:
    """The letters of a leaf, from its name: `wq_LDNH` -> "LDNH"; a name without letters has none."""
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    suffix = names[-1].rpartition("_")[2] if names else ""
    return suffix if suffix.isupper() else ""


def spec(letters: str, rules: dict = RULES) -> PartitionSpec:
    """The mesh axes of each letter. R, the rank of a LoRA pair, has the one that the leaf's other letters leave."""
    axes = {letter: rules.get(letter) for letter in letters}
    if "R" in axes:
        axes["R"] = next(axis for axis in ("fsdp", "tensor") if axis not in axes.values())
    return PartitionSpec(*axes.values())


def tree_shardings(mesh: Mesh | AbstractMesh, abstract: object) -> object:
    """A NamedSharding for every leaf of a tree of parameters, or of optimizer state that mirrors them.

    Raises BadInput where a dimension does not divide by the mesh axes that its letter selects.
    """

    def leaf_sharding(path, leaf):
        letters = letters_of(path) if leaf.ndim else ""
        axes = spec(letters)
        for letter, size, axis in zip(letters, leaf.shape, axes, strict=True):
            check_divides(mesh, letter, size, path[-1].key, axis)
        return NamedSharding(mesh, axes)

    return jax.tree_util.tree_map_with_path(leaf_sharding, abstract)


def check_replication(mesh: Mesh | AbstractMesh, placed: object, what: str) -> None:
    """Raises BadInput where a device holds over 2 % more bytes than its share of a tree of placed arrays, cut by fsdp and tensor.

    So much means that something large is whole on every device, though the mesh was made to cut it. Copies along `data` are what
    that axis is for, and leaves below a MiB are not worth cutting.
    """
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    share = excess = 0.0
    for leaf in jax.tree.leaves(placed):
        size = leaf.size * leaf.dtype.itemsize
        share += size / parts
        if size >= WORTH_CUTTING:
            excess += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize - size / parts
    if excess > MOST_REPLICATED * share:
        raise BadInput(
            f"mesh {dict(mesh.shape)}: each device would hold {excess / share:.0%} more bytes of {what} than its share; at most "
            f"{MOST_REPLICATED:.0%} may be replicated without need, so give `data` what fsdp or tensor cannot cut"
        )


def check_divides(mesh: Mesh | AbstractMesh, letter: str, size: int, what: str, axes: str | tuple | None) -> None:
    """Raises BadInput where `size`, a dimension called `letter`, does not divide by mesh axes."""
    parts = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
    if size % parts:
        raise BadInput(
            f"mesh {dict(mesh.shape)}: {what} has {letter}={size}, which does not divide by {parts}; change mesh or shape"
        )


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where activations go on a mesh, by their letters."""

    mesh: Mesh

    @property
    def device(self) -> jax.Device:
        return self.mesh.devices.flat[0]

    def compiler_options(self, repeats: bool) -> dict:
        """What `jax.jit` is given of a training step for these devices; `repeats` where nothing else keeps it from giving the same
        bits again."""
        return {**GPU_OPTIONS, **(REPEATS if repeats else {})} if self.device.platform == "gpu" else {}

    def __call__(self, array: jax.Array, letters: str) -> jax.Array:
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec(letters, ACTIVATION_RULES)))

    def per_device(self, function, letters_in: tuple[str, ...], letters_out: str):
        """`function`, run by each device on its own part of arrays with these letters, for an output with these."""
        specs_in, spec_out = (tuple(spec(letters, ACTIVATION_RULES) for letters in letters_in), spec(letters_out, ACTIVATION_RULES))
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs_in, out_specs=spec_out, check_vma=False)


def row_devices(mesh: Mesh | AbstractMesh) -> int:
    """How many devices the rows of a batch are spread over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def place_batch(mesh: Mesh, batch_rows: int, read) -> dict[str, jax.Array]:
    """The global batch on the mesh, each process reading only its own rows.

    `read(start, stop)` gives rows of the global batch as a dict of arrays [rows, T].
    """
    sharding = NamedSharding(mesh, spec("BT"))
    row_slices = {index[0].indices(batch_rows)[:2] for index in sharding.addressable_devices_indices_map((batch_rows, 1)).values()}
    pieces = {rows: read(*rows) for rows in row_slices}
    names = next(iter(pieces.values()))
    return {
        name: jax.make_array_from_callback(
            (batch_rows, array.shape[1]),
            sharding,
            lambda index, name=name: np.asarray(pieces[index[0].indices(batch_rows)[:2]][name][:, index[1]]),
        )
        for name, array in names.items()
    }
