"""An arm's weights for other programs: transformers, PEFT, vLLM.

In: a config, its data and the directory of a finished stage. Out: a Hugging Face directory, or with LoRA a PEFT one.
"""

import dataclasses
from pathlib import Path

import jax

from msmjax.config import ExperimentConfig
from msmjax.experiment.data import Data, source_of
from msmjax.model import huggingface_export, lora
from msmjax.training import sharding, weights


def write(config: ExperimentConfig, data: Data, stage: Path | None, to: Path, merge: bool) -> str:
    """Writes the model of a stage: with LoRA its adapter, unless that is to be merged. Says in a line what it is.

    `stage` is None for the imported model, of which there is no adapter to write.
    """
    templates = data.tokenizer.templates if config.weights else None
    model, mesh, source = config.model, sharding.make_mesh(config.mesh), source_of(config)
    if model.lora_rank:
        adapter = weights.trained(model, config.optimizer, mesh, stage)
        if not merge:
            lora.write_peft(to, model, adapter, config.weights, templates)
            return lora.describe(model)
        params = lora.merge(model, weights.base(dataclasses.replace(model, scan_layers=True), mesh, source), adapter)
    else:
        params = weights.whole(model, config.optimizer, mesh, source, stage)
    dtype = jax.tree.leaves(params)[0].dtype
    huggingface_export.write_params(to, model, params, dtype, source.weights if source else None, templates)
    return f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters in {dtype}"


def for_server(config: ExperimentConfig, data: Data, stage: Path | None, to: Path) -> None:
    """`to` is what a server loads as the model of a stage: an adapter, whole weights, or a link to what is imported."""
    if to.exists():  # it appears whole: an eval that was interrupted has it already
        return
    if stage is not None:
        write(config, data, stage, to, merge=False)
    elif config.adapter:  # with the path of its base, for which published ones have a hub's name
        adapter = lora.read_peft(Path(config.adapter), config.model)
        lora.write_peft(to, config.model, adapter, config.weights, data.tokenizer.templates)
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(Path(config.weights).resolve())
