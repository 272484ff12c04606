"""What an experiment would take before any of it runs: steps, FLOPs, bytes, time and cost, on this machine or another.

In: an `ExperimentConfig` and a machine: this one, a number of devices of a known type (`h100:8`), or a TPU slice
(`v5p:2x2x2`), for which the real train step is compiled without having it. Out: what is printed. docs/planning.md explains it.
"""

import dataclasses
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from msmjax import fit, machine
from msmjax.artifact import BadInput
from msmjax.config import IMPORT, ExperimentConfig
from msmjax.corpus import estimate, sources
from msmjax.corpus.teacher_config import RECORDED
from msmjax.data import chat, show
from msmjax.data.huggingface import open_tokenizer
from msmjax.evals import scoring
from msmjax.evals.results import RANGES, Cost
from msmjax.experiment import influence, power
from msmjax.experiment.power import Smallest
from msmjax.influence import gradients as influence_gradients
from msmjax.machine import GIB, Machine
from msmjax.model import lora, transformer
from msmjax.report import findings, inference, table
from msmjax.training import loop
from msmjax.training import step as steps

# What a warning starts at.
FEWEST_TOKENS = 1024  # per device: fewer, and a device waits longer for the other shards of a weight than it computes with it
LONGEST_LOSS = 1800  # seconds of training that an interruption may cost


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's figures of one train step, in bytes of one device."""

    seconds: float
    arguments: int  # state and batch, padded as the chip wants them; the next state is written over them
    temporaries: int  # counted generously: with the arguments they may be more than the peak
    peak: int  # all that exists at one time: what the compiler holds against the memory there is


class DoesNotFit(Exception):
    """The compiler refuses the step for want of memory; the text says what it needs and what there is."""


def plan(
    config: ExperimentConfig,
    workdir: Path,
    device: str | None = None,
    topology: str | None = None,
    price: float | None = None,
    arm: str | None = None,
    only: str | None = None,
) -> None:
    """Prints the stages of an experiment, what they take and what its comparisons could show; runs none of them. `price` is dollars
    per device-hour. With `arm`, what it takes to measure influence in it (in its stage `only`), and nothing else."""
    from rich.table import Table

    if topology is not None:
        there = machine.slice_of(config, topology)
    elif device is not None:
        there = machine.devices_of(config, device)
    else:
        there = measured(config, machine.this_machine(config))
    if arm is not None:
        for line in influence_cost(config, arm, only, there, price):
            print(line)
        return
    used = dict.fromkeys(name for arm in config.run for name in config.arms[arm] if name != IMPORT)
    stages = {name: fit.fit(config, config.stages[name], there) for name in used}
    params, optimizer = fit.state_bytes(config.model, config.optimizer, there.mesh)
    per_token = fit.flops_per_token(config.model, config.row_length)
    axes = ", ".join(f"{axis} {size}" for axis, size in there.mesh.shape.items())

    name = f"{there.name}: {there.mesh.size} x {there.device}" if there.device not in there.name else there.name
    out = Table(title=f"{config.name}: {len(config.run)} arms, {len(config.seeds)} seeds, on {name} ({axes})")
    for name in ("stage", "runs", "steps", "tokens/step", "tokens", "activations", "estimate"):
        out.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    chains = {config.arms[arm][: i + 1] for arm in config.run for i in range(len(config.arms[arm]))}
    total = 0.0
    for name, said in stages.items():
        stage = config.stages[name]
        runs = len([chain for chain in chains if chain[-1] == name]) * len(config.seeds)
        seconds = stage.steps * step_seconds(said, name, there)
        total += runs * seconds
        per_step = stage.batch_rows * config.row_length
        out.add_row(
            name, str(runs), f"{stage.steps:,}", f"{per_step:,}", f"{stage.steps * per_step:,}",
            show_bytes(fit.activation_bytes(said, stage, there.mesh)), f"{runs} x {show_seconds(seconds)}",
        )  # fmt: skip
    console = table.make_console()
    console.print(out)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    for line in dict.fromkeys(fit.how(said, there) for said in stages.values()):
        say(f"computed with {line}")
    say(
        f"{transformer.count_params(config.model):,} parameters, {lora.describe(config.model)}; "
        f"about {total / 60:,.1f} minutes of training on {there.name}, "
        f"compilation and evals apart: {per_token / 1e9:.3g} GFLOP per token at {there.basis}"
    )
    trained = [(arm, seed) for arm in config.run for seed in config.seeds if set(config.arms[arm]) != {IMPORT}]
    models = len(trained) + any(set(config.arms[arm]) == {IMPORT} for arm in config.run)
    seconds, cost = eval_seconds(config, there)
    scoring_bytes = fit.eval_bytes(config, there.mesh)
    said = f"about {cost.scored:,} tokens scored" + (f" and up to {cost.generated:,} generated" if cost.generated else "")
    lacks = f" (without {' and '.join(cost.lacks)}: not known yet)" if cost.lacks else ""
    say(
        f"evals: {models} models, {said} and {show_seconds(seconds)} each{lacks}; "
        f"{scoring.rows_at_a_time(config.row_length, there.mesh)} rows at a time take {show_bytes(scoring_bytes)} on each device"
    )
    for line in judged(config, cost, models):
        say(line)
    total += models * seconds
    for line in corpora_by_teachers(config):
        say(line)
    hours = total / 3600 * there.mesh.size
    say(f"{hours:,.1f} device-hours" + (f", {hours * price:,.2f} dollars at {price:g} each" if price is not None else ""))
    gradients = max((fit.gradient_bytes(said, there.mesh) for said in stages.values()), default=0)
    say(
        f"on each device: parameters {show_bytes(params)}, optimizer state {show_bytes(optimizer)} (both exact), "
        f"gradients {show_bytes(gradients)}, activations as above (both estimates)"
        + (f", of {show_bytes(there.memory)}" if there.memory else "")
    )
    print_power(config, workdir)
    if there.compiles:
        apart = {(said.model, said.optimizer, config.stages[name].batch_rows): said for name, said in stages.items()}
        for (_, _, rows), said in apart.items():
            say(f"compiled for {rows} rows of {config.row_length}: {describe_compiled(said, rows, there)}")
    for line in warnings(config, stages, there):
        say(f"warning: {line}")
    if there.memory and scoring_bytes > there.memory:
        needed, has = show_bytes(scoring_bytes), show_bytes(there.memory)
        say(f"warning: evals: do not fit by this estimate: {needed} of {has}; use more devices")
    if config.weights:
        print_first_chat(config, stages)


def influence_cost(config: ExperimentConfig, arm: str, only: str | None, there: Machine, price: float | None) -> list[str]:
    """What it takes to measure influence in an arm, where documents fill the rows that the stage reads of them; what pads single
    examples to few lengths comes on top."""
    arm, name, seeds = influence.stage_of(config, arm, only)
    settings, stage, mesh = config.influence, config.stages[name], there.mesh
    said = fit.fit(config, stage, there)
    shares = dict(stage.data[place] for place in influence.own_places(config, arm, name))
    documents = sum(shares.values()) * stage.steps * stage.batch_rows * config.row_length
    others = (settings.background + 4 * settings.items) * config.row_length
    per_token = fit.flops_per_token(said.model, config.row_length) * fit.computed_again(said.model)
    seconds = {
        "training again": (1 - 1 / (6 * settings.points)) * stage.steps * step_seconds(said, name, there),
        "gradients": settings.points * (documents + others) * per_token / (there.flops * mesh.size),
    }
    hours = len(seeds) * sum(seconds.values()) / 3600 * mesh.size
    # A batch of single examples, whose gradients are not added up, beside the state and Adam's preconditioner.
    batch = dataclasses.replace(stage, batch_rows=influence_gradients.rows_on(mesh, settings.rows))
    at_once = dataclasses.replace(said, optimizer=dataclasses.replace(said.optimizer, micro_batches=1))
    trained = transformer.count_adapter(said.model) if said.model.lora_rank else transformer.count_params(said.model)
    single = fit.rows_on_device(at_once, batch, mesh) * 4 * trained // mesh.shape["tensor"]  # an example is on one device
    state = sum(fit.state_bytes(said.model, said.optimizer, mesh)) + fit.gradient_bytes(at_once, mesh)
    held = max(state + single + fit.activation_bytes(at_once, batch, mesh), fit.step_bytes(said, stage, mesh))
    taken = ", ".join(f"{what} {show_seconds(of)}" for what, of in seconds.items())
    dollars = f", {hours * price:,.2f} dollars at {price:g} each" if price is not None else ""
    of_memory = f", of {show_bytes(there.memory)}" if there.memory else ""
    too_much = "; does not fit by this estimate: set it lower, or use more devices" if held > (there.memory or held) else ""
    read = f"up to {documents:,.0f} tokens of {', '.join(shares)}"
    return [
        f"influence in stage {name} of {arm} on {there.name}: {read}, at {settings.points} points",
        f"a seed takes {taken}; {len(seeds)} of them {hours:,.1f} device-hours{dollars}",
        f"on each device {show_bytes(held)}{of_memory}: {show_bytes(single)} are gradients of single examples "
        f"(influence.rows={settings.rows}){too_much}",
    ]


def print_power(config: ExperimentConfig, workdir: Path) -> None:
    """Prints the smallest difference that each comparison would show four times in five."""
    found = power.smallest(config, workdir)
    if not found:
        return

    def show(one: Smallest, metric: str, most: float, of: str) -> str:
        if one.difference is None:
            return findings.MISSING
        wide = metric in RANGES and one.difference > most
        return ("more than there can be" if wide else findings.show(one.difference, metric)) + of

    out = table.new_table(
        "smallest differences that are found four times in five (two-sided, 5 %)", "comparison", "eval", "over seeds", "over items",
        "spread",
    )  # fmt: skip
    for comparison, metric, seeds, items in found:
        low, high = RANGES.get(metric, (0, 0))
        most = (high - low) * len(comparison.arms)
        in_clusters = f" in {items.clusters:,} clusters" if items.clusters < items.n else ""
        cells = show(seeds, metric, most, f", {seeds.n} seeds"), show(items, metric, most, f", {items.n:,} items{in_clusters}")
        whose = [one.run or "assumed" for one in (seeds, items) if one.difference is not None]
        said = whose[0] if len(set(whose)) == 1 else ", ".join(whose) or "not known"
        out.add_row(*map(table.plain, [comparison.label, comparison.eval, *cells, said]))
    console = table.make_console()
    console.print(out)
    note = (
        "assumed: every seed and every answer varies as widely as it can (a share: that of one half), arms independently of each "
        "other, and items of a cluster are one; what is paired varies less"
    )
    if len(config.seeds) > 1:
        times = inference.smallest_effect(len(config.seeds), 1.0)
        note += f". {len(config.seeds)} seeds show {times:.2f} times the spread over seeds, whatever that is"
    console.print(note, markup=False, highlight=False, soft_wrap=True)


def corpora_by_teachers(config: ExperimentConfig) -> Iterator[str]:
    """What each corpus by a teacher would take if nothing had been asked yet."""
    for name, source in config.corpora.items():
        if not isinstance(source, sources.WrittenSource) or config.teachers[source.teacher].model == RECORDED:
            continue
        found = estimate.estimate(source, sources.load_spec(source, config.assistant), config.teachers)
        dollars = (
            f"${found.dollars:,.2f}, ${found.dollars_least:,.2f} where a cache has those at a tenth" if found.dollars else "free"
        )
        yield (
            f"{name}: by {config.teachers[source.teacher].model}, from nothing: {found.calls:,} calls, {found.tokens_in:,} tokens "
            f"in, {found.sent_before / found.tokens_in:.0%} of which were sent before, {found.tokens_out:,} out; {dollars}"
        )


def judged(config: ExperimentConfig, cost: Cost, models: int) -> Iterator[str]:
    """What the judges of all models would take if nothing had been asked yet."""
    for name in dict.fromkeys(name for name, _, _ in cost.judged):
        teacher = config.teachers[name]
        tokens = [models * sum(one[column] for one in cost.judged if one[0] == name) for column in (1, 2)]
        dollars = (tokens[0] * teacher.input_price + tokens[1] * teacher.output_price) / 1e6
        price = f"${dollars:,.2f}" if dollars else "free"
        yield f"judged by {teacher.model}, from nothing: {tokens[0]:,} tokens in, {tokens[1]:,} out; {price}"


def measured(config: ExperimentConfig, here: Machine) -> Machine:
    """This machine, as fast as a matrix product says."""
    # CPU devices of one process are virtual and share one processor.
    shared = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    speed = machine.flops_per_second(config.model.compute_dtype) * machine.EFFICIENCY / shared
    return dataclasses.replace(here, flops=speed)


def remaining(config: ExperimentConfig, unfinished: list[str], lacking: list[str], here: Machine) -> str:
    """What of an experiment is not there yet, stages and evals, and about how long it takes here."""
    here = measured(config, here)
    fitted = {name: fit.fit(config, config.stages[name], here) for name in dict.fromkeys(unfinished)}
    seconds = sum(config.stages[name].steps * step_seconds(fitted[name], name, here) for name in unfinished)
    seconds += sum(eval_seconds(config, here, [name])[0] for name in lacking)
    return f"to do: {len(unfinished)} stages and {len(lacking)} evals, about {show_seconds(seconds)} here, compilation apart"


def eval_seconds(config: ExperimentConfig, there: Machine, names: Iterable[str] | None = None) -> tuple[float, Cost]:
    """Of the evals of one model, or of those of `names`, the seconds of scoring and what they take in all."""
    costs = [config.evals[name].cost(config.corpora) for name in names or config.evals]
    cost = Cost(*(sum((getattr(one, field) for one in costs), start=zero) for field, zero in Cost()._asdict().items()))
    flops = (cost.scored + cost.generated) * fit.eval_flops_per_token(config.model, config.row_length)
    return flops / (there.flops * there.mesh.size), cost


def print_first_chat(config: ExperimentConfig, stages: Iterable[str]) -> None:
    """Prints the hash of the chat template, and the first conversation that the stages read as it renders it.

    A plan is made before everything is there: what lacks is said and is no error.
    """
    console = table.make_console()
    try:
        tokenizer = open_tokenizer(
            config.weights, config.adapter, config.template, config.template_arguments, config.control_in_text
        )
        console.print(tokenizer.describe_template(), markup=False, highlight=False, soft_wrap=True)
        for corpus in dict.fromkeys(corpus for name in stages for corpus, _ in config.stages[name].data):
            if found := sources.first_conversation(config.corpora[corpus], config.text_and_messages):
                messages, _ = chat.open_thinking(found["messages"])
                ids, mask = chat.render(messages, tokenizer, found["read_from"], found.get("tools"))
                console.print(f"the first chat of {corpus}, in bold green what is trained on:", highlight=False)
                console.print(show.coloured(show.as_row(ids, mask), tokenizer), soft_wrap=True)
                return
    except BadInput as error:
        console.print(f"no chat is shown: {error}", markup=False, highlight=False, soft_wrap=True)


def step_seconds(said: ExperimentConfig, name: str, there: Machine) -> float:
    """Of one step of a stage, of a config that `fit` made."""
    tokens = said.stages[name].batch_rows * said.row_length
    flops = tokens * fit.flops_per_token(said.model, said.row_length) * fit.computed_again(said.model)
    return flops / (there.flops * there.mesh.size)


def warnings(config: ExperimentConfig, stages: dict[str, ExperimentConfig], there: Machine) -> list[str]:
    """What is allowed and probably not meant; `stages` are what `fit` made. What depends on data, as epochs do, is not known."""
    found: dict[str, list[str]] = {}  # warning -> the stages it is true of

    def warn(stage: str, text: str) -> None:
        found.setdefault(text, []).append(stage)

    accelerator, every = there.memory is not None, config.log.checkpoint_every
    for name, said in stages.items():
        stage = config.stages[name]
        if stage.warmup_steps >= stage.steps:
            warn(name, f"warm-up of {stage.warmup_steps} in {stage.steps} steps: the rate never falls from its peak")
        if stage.steps < loop.FEWEST_UPDATES:
            warn(name, f"{stage.steps} updates train too little to conclude from")
        if (lost := min(every, stage.steps) * step_seconds(said, name, there)) > LONGEST_LOSS:
            warn(name, f"an interruption costs up to {show_seconds(lost)} with log.checkpoint_every={every}")
        if not accelerator:
            continue
        if config.model.compute_dtype == "float32":
            warn(name, "model.compute_dtype=float32: matrix units reach their peak in bfloat16 only")
        tokens = fit.rows_on_device(said, stage, there.mesh) * config.row_length
        if there.mesh.size > 1 and tokens < FEWEST_TOKENS:
            warn(
                name,
                f"{tokens} tokens of a micro-batch on a device: it waits longer for its share of the weights than it computes; "
                "raise tokens_per_step, lower micro_batches or use fewer devices",
            )
        needed = fit.step_bytes(said, stage, there.mesh)
        if needed > there.memory and not there.compiles:
            warn(
                name,
                f"does not fit by this estimate: {show_bytes(needed)} of {show_bytes(there.memory)}; "
                "use more devices, mesh.tensor, micro_batches or remat",
            )
    return [f"{', '.join(names)}: {text}" for text, names in found.items()]


def describe_compiled(config: ExperimentConfig, rows: int, there: Machine) -> str:
    """One line: the compiler's figures, or that the step does not fit."""
    try:
        said = compile_for(config, rows, there.mesh)
    except DoesNotFit as error:
        return f"does not fit: {error}"
    return (
        f"fits: peak {show_bytes(said.peak)} of {show_bytes(there.memory)}, arguments {show_bytes(said.arguments)}, "
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
