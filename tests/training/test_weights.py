"""Where parameters come from: a base whose layers are not scanned is read layer by layer, each where the step wants it."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import AxisType

from msmjax.model import huggingface_export, transformer
from msmjax.training import step as steps
from msmjax.training import weights


def test_layers_of_a_base_lie_where_the_step_wants_them(tmp_path, model):
    sizes = (1, 4, 2)
    devices = jax.devices()[: math.prod(sizes)]
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)
    model = dataclasses.replace(model, qkv_bias=False)  # a published family's
    params = transformer.init_params(model, jax.random.key(0))
    huggingface_export.write_params(tmp_path / "weights", model, params, "float32", None)
    lora = dataclasses.replace(model, lora_rank=4, lora_alpha=8.0, scan_layers=False)
    base = weights.base(lora, mesh, weights.Source(tmp_path / "weights", None))
    abstract = steps.abstract_base(lora, mesh)
    assert jax.tree.structure(base) == jax.tree.structure(abstract)
    assert all(leaf.sharding == said.sharding for leaf, said in zip(*map(jax.tree.leaves, (base, abstract)), strict=True))
    expected = params | {"blocks": transformer.layers_of(params)}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(base), jax.device_get(expected))
