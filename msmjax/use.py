"""What one does with a trained arm: talk to it, export it, compare its adapter with another's.

In: an experiment's config and its working directory. Out: text in the terminal, or a directory that transformers, PEFT and
vLLM load.
"""

import sys
from pathlib import Path

import jax
from rich.console import Console

from msmjax import experiment
from msmjax.artifact import BadInput
from msmjax.config import ExperimentConfig
from msmjax.data import chat
from msmjax.model import generate, huggingface, lora
from msmjax.training import sharding, weights


def talk(config: ExperimentConfig, workdir: Path, arm: str, temperature: float, top_p: float, max_tokens: int) -> None:
    """A conversation with an arm: a line of standard input is a turn, an empty one begins anew, the end of the input ends it.

    `arm` is a name of the config's arms, or NAME:SEED; without a seed the config's first is taken.
    """
    data, stage, _ = _find(config, workdir, arm, "--talk")
    mesh = sharding.make_mesh(config.mesh)
    params = weights.whole(config.model, config.optimizer, mesh, experiment.source_of(config), stage)
    console = Console(highlight=False)
    console.print(f"{arm}: an empty line begins a new conversation, Ctrl-D ends", style="dim")
    # The microworld's assistant goes by its name; a published model has the template's own system turn.
    opening = [] if config.weights else [{"role": "system", "content": f"You are {config.assistant.name}."}]
    messages, asked = list(opening), 0
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        if not line.strip():
            messages = list(opening)
            continue
        messages.append({"role": "user", "content": line.strip()})
        prompt = chat.render_prompt(messages, data.tokenizer, "your line")
        (ids,) = generate.generate(
            config.model, params, mesh, [prompt], constrain=sharding.constrain, stop=data.tokenizer.stop_ids,
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=asked,
        )  # fmt: skip
        asked += 1
        messages.append({"role": "assistant", "content": data.tokenizer.decode(ids)})
        console.print(messages[-1]["content"], style="bold green", markup=False)
        if len(ids) == max_tokens:
            console.print(f"(cut off at --max_tokens={max_tokens})", style="dim")


def export(config: ExperimentConfig, workdir: Path, arm: str, to: Path, merge: bool) -> None:
    """Writes an arm's model as a Hugging Face directory; with LoRA its adapter as a PEFT directory, unless it is to be merged."""
    if to.exists():
        raise BadInput(f"--to={to}: exists already; name a directory that is to be made")
    _, stage, seed = _find(config, workdir, arm, "--export")
    model, mesh, source = config.model, sharding.make_mesh(config.mesh), experiment.source_of(config)
    if model.lora_rank:
        if stage is None:
            raise BadInput(f"--export={arm}: is the imported model itself, which has no adapter")
        adapter = weights.trained(model, config.optimizer, mesh, stage)
        if not merge:
            lora.write_peft(to, model, adapter, config.weights)
            print(f"{to}: {lora.describe(model)}, of seed {seed}; its base is {config.weights}")
            return
        params = lora.merge(model, weights.base(model, mesh, source), adapter)
    else:
        params = weights.whole(model, config.optimizer, mesh, source, stage)
    dtype = jax.tree.leaves(params)[0].dtype
    huggingface.write_params(to, model, params, dtype, source.weights if source else None)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{to}: {size:,} parameters in {dtype}, of seed {seed}" + ("" if source else "; without a tokenizer, which is no HF one"))


def compare(config: ExperimentConfig, workdir: Path, one: str, other: str) -> None:
    """Prints the effective norms of two arms' adapters and the cosine between them, by projection and in all."""
    if not config.model.lora_rank:
        raise BadInput("--compare: compares adapters, and this config trains all parameters (model.lora_rank=0)")
    from rich.table import Table

    mesh = sharding.make_mesh(config.mesh)
    adapters = []
    for arm in (one, other):
        _, stage, _ = _find(config, workdir, arm, "--compare")
        if stage is None:
            raise BadInput(f"--compare={arm}: is the imported model itself, which has no adapter")
        adapters.append(weights.trained(config.model, config.optimizer, mesh, stage))
    norms = [lora.effective_norm(config.model, adapter) for adapter in adapters]
    cosines = lora.effective_cosine(*adapters)
    table = Table(title="effective adapters: Frobenius norm of alpha / r times the product, and the cosine between them")
    for name in ("projection", one, other, "cosine"):
        table.add_column(name, justify="left" if name == "projection" else "right")
    for name in norms[0]:
        table.add_row(name, f"{norms[0][name]:.4g}", f"{norms[1][name]:.4g}", f"{cosines[name]:+.4f}")
    Console(highlight=False).print(table)


def _find(config: ExperimentConfig, workdir: Path, arm: str, flag: str):
    """The data, the finished last stage (None: the imported model itself) and the seed of NAME or NAME:SEED."""
    name, _, seed = arm.partition(":")
    if name not in config.arms:
        raise BadInput(f"{flag}={arm}: no arm {name!r}; one of {', '.join(config.arms)}")
    if seed and (not seed.isdecimal() or int(seed) not in config.seeds):
        raise BadInput(f"{flag}={arm}: no seed {seed!r}; one of {', '.join(map(str, config.seeds))}")
    seed = int(seed) if seed else config.seeds[0]
    data = experiment.make_data(config, workdir, {stage for stage in config.arms[name] if stage in config.stages})
    stage = experiment.find_arm(config, workdir, data, name, seed)
    return data, stage, seed
