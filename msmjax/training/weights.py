"""Where parameters come from: the seed, a parent's checkpoint, or published weights.

In: a stage's origins. Out: arrays on the mesh: what is trained, and with LoRA the base that is not.
"""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from msmjax.model import huggingface, lora
from msmjax.model.transformer import ModelConfig, unstack, with_adapter
from msmjax.training import checkpoint
from msmjax.training import step as steps
from msmjax.training.step import StepConfig


@dataclasses.dataclass(frozen=True)
class Source:
    """Published weights, a Hugging Face directory, and a PEFT directory of an adapter that is continued, if any."""

    weights: Path
    adapter: Path | None


def initial_state(model: ModelConfig, step: StepConfig, mesh: Mesh, source: Source | None, parent: Path | None, seed: int) -> dict:
    """The state of step 0. What is trained comes from 1. the parent's last step, 2. `source`, 3. the seed."""
    state = steps.compile_init(model, step, mesh)(jax.random.key(seed))
    if parent is None and (source is None or (model.lora_rank and source.adapter is None)):
        return state
    for leaf in jax.tree.leaves(state["params"]):
        leaf.delete()  # there may be no room for it twice
    return {**state, "params": trained(model, step, mesh, parent) if parent is not None else _read(source, model, step, mesh)}


def trained(model: ModelConfig, step: StepConfig, mesh: Mesh, stage: Path) -> dict:
    """What a finished stage trained: all parameters, or the adapter."""
    return checkpoint.restore_params(stage, steps.abstract_state(model, step, mesh)["params"])


def base(model: ModelConfig, mesh: Mesh, source: Source | None) -> dict:
    """What `steps.abstract_base` says: with LoRA the parameters of `source`, in the compute dtype; else nothing."""
    if not model.lora_rank:
        return {}
    params = _read_weights(source, model, steps.abstract_base(dataclasses.replace(model, scan_layers=True), mesh))
    if model.scan_layers:
        return params
    stacks, layers = params["blocks"], [{} for _ in range(model.layers)]
    places = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract_base(model, mesh)["blocks"])
    for name in list(stacks):  # one stack after the other: there may be no room for all twice
        own = name.replace("_L", "_", 1)
        take_apart = jax.jit(unstack, static_argnums=1, out_shardings=[{own: place[own]} for place in places])
        for layer, part in zip(layers, take_apart({name: stacks.pop(name)}, model.layers), strict=True):
            layer |= part
    return {**params, "blocks": layers}


def whole(model: ModelConfig, step: StepConfig, mesh: Mesh, source: Source | None, stage: Path | None) -> dict:
    """What `forward` takes of a finished stage, or of `source` itself where there is no stage yet."""
    if stage is not None:
        params = trained(model, step, mesh, stage)
    elif model.lora_rank and source.adapter is None:
        params = steps.compile_init(model, step, mesh)(jax.random.key(0))["params"]  # an adapter whose product is zero
    else:
        params = _read(source, model, step, mesh)
    return with_adapter(base(model, mesh, source), params) if model.lora_rank else params


def _read(source: Source, model: ModelConfig, step: StepConfig, mesh: Mesh) -> dict:
    """What is trained, as `source` has it: the adapter, or all parameters."""
    abstract = steps.abstract_state(model, step, mesh)["params"]
    if not model.lora_rank:
        return _read_weights(source, model, abstract)
    adapter = lora.read_peft(source.adapter, model)
    return jax.tree.map(
        lambda array, leaf: jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index]), adapter, abstract
    )


def _read_weights(source: Source, model: ModelConfig, abstract: dict) -> dict:
    dtype = jax.tree.leaves(abstract)[0].dtype
    return huggingface.read_params(source.weights, model, jax.tree.map(lambda leaf: leaf.sharding, abstract), dtype)
