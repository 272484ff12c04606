"""What one does with an arm: ask what it reads, and once it is trained talk to it, export it, compare its adapter with another's.

In: an experiment's config and its working directory. Out: text in the terminal, or a directory that transformers, PEFT and
vLLM load.
"""

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from msmjax import artifact, fit, machine
from msmjax.artifact import BadInput
from msmjax.config import IMPORT, ExperimentConfig
from msmjax.data import chat
from msmjax.data import mixture as mixtures
from msmjax.data import provenance as provenances
from msmjax.data.provenance import Corpus, Document
from msmjax.data.tokenizer import AnyTokenizer
from msmjax.experiment import export as exports
from msmjax.experiment.data import Data, make_data, mixture_of, source_of
from msmjax.experiment.evaluation import check_needs, evaluate
from msmjax.experiment.stages import find_arm
from msmjax.generation.answering import Answering, Settings
from msmjax.model import lora
from msmjax.ranges import known, suggestion
from msmjax.report import table as tables
from msmjax.training import processes, sharding, weights

BY = ("section", "kind", "source", "domain")  # fields that --provenance counts by: the first that a corpus has
MOST_VALUES = 40  # lines of a corpus in that table; the values with the fewest tokens are put together
FIRST_WORDS = 80  # characters of a document's text


def provenance(config: ExperimentConfig, workdir: Path, arm: str, by: str | None, only: str | None, step: int | None) -> None:
    """Prints what an arm reads in its stages, or in `only` one: records, tokens and epochs of each corpus, by the field `by`.

    That is over all steps that the config plans. With `step`, counted from 1 as in `metrics.jsonl`, the documents in that step of
    the last stage. It takes the data alone, which is made where it is missing; nothing need be trained.
    """
    name, seed = parse_arm(config, arm, "--provenance")
    chain = [stage for stage in config.arms[name] if stage != IMPORT]
    if not chain:
        raise BadInput(f"--provenance={arm}: is the imported model itself, which reads nothing here")
    if only is not None and only not in chain:
        raise BadInput(f"--stage={only}: no stage of arm {name!r}{suggestion(only, chain)}")
    wanted = [stage for stage in chain if only in (None, stage)]
    last = wanted[-1]
    if step is not None and not 1 <= step <= config.stages[last].steps:
        raise BadInput(f"--step={step}: stage {last!r} has the steps 1 to {config.stages[last].steps:,}")
    data = make_data(config, workdir, set(wanted), asks=False)
    corpora = {
        corpus: provenances.open_corpus(corpus, data.rows[corpus], data.corpora[corpus])
        for corpus in dict.fromkeys(corpus for stage in wanted for corpus, _ in config.stages[stage].data)
    }
    console = tables.make_console()
    if step is not None:
        read = [corpora[corpus] for corpus, _ in config.stages[last].data]
        mixture = mixture_of(config, data, last, seed)
        documents = provenances.documents(read, mixture, step - 1, config.stages[last].batch_rows)
        console.print(_documents(f"{name}, seed {seed}: step {step:,} of {last}", documents, data.tokenizer))
        return
    known = {field: None for corpus in corpora.values() for record in corpus.records for field in record}
    if by is not None and by not in known:
        raise BadInput(f"--by={by}: no record that arm {name!r} reads has it{suggestion(by, list(known))}")
    for stage in wanted:
        settings = config.stages[stage]
        mixture = mixture_of(config, data, stage, seed)
        times = mixtures.times_read(mixture, settings.steps * settings.batch_rows)
        read = [(corpora[corpus], of_rows) for (corpus, _), of_rows in zip(settings.data, times, strict=True)]
        title = f"{name}, seed {seed}: {stage}, {settings.steps:,} steps of {settings.batch_rows} rows"
        console.print(_reads(title, read, (by,) if by else BY))


def _reads(title: str, read: list[tuple[Corpus, np.ndarray]], fields: tuple[str, ...]) -> Table:
    """A line for each corpus and each value of the first of `fields` that it has."""
    table = _table(title, "corpus", "of its records", "read", "tokens", "supervised", "epochs")
    for corpus, times in read:
        field = next((field for field in fields if any(field in record for record in corpus.records)), "")
        values = provenances.count(corpus, times, field)
        lines = [provenances.together("all", values)]
        if field:
            lines += [one._replace(value=f"{field}: {one.value}") for one in values[:MOST_VALUES]]
            if rest := values[MOST_VALUES:]:
                lines.append(provenances.together(f"{field}: {len(rest):,} others", rest))
        for line in lines:
            numbers = f"{line.records:,} of {line.of_records:,}", f"{line.tokens:,}", f"{line.supervised:,}", f"{line.epochs:.2f}"
            table.add_row(Text(corpus.name if line is lines[0] else ""), Text(line.value), *numbers)
        table.add_section()
    return table


def _documents(title: str, documents: Iterable[Document], tokenizer: AnyTokenizer) -> Table:
    """A line for each segment of a batch."""
    table = _table(title, "row", "it is", "segment", "tokens", "supervised", "record", "its fields and first words here")
    last = None
    for document in documents:
        segment, record = document.segment, document.record
        if last not in (None, document.row):
            table.add_section()
        fields = ", ".join(f"{name}: {provenances.show(value)}" for name, value in record.items() if value != record["id"])
        text = " ".join(tokenizer.readable(document.ids.tolist()).split())
        text = text if len(text) <= FIRST_WORDS else f"{text[: FIRST_WORDS - 1]}…"
        start = f" from {segment['start']:,}" if segment["start"] else ""
        table.add_row(
            "" if last == document.row else str(document.row), f"{document.corpus} {segment['row']}", str(segment["segment"]),
            f"{segment['tokens']:,}{start}", f"{segment['supervised']:,}", Text(record["id"]), Text(f"{fields}\n{text}"),
        )  # fmt: skip
        last = document.row
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=rich.box.SIMPLE_HEAD)
    for column in columns:
        is_number = column in ("read", "tokens", "supervised", "epochs", "value", "n", "unscored")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    return table


def open_arm(config: ExperimentConfig, workdir: Path, arm: str, flag: str) -> tuple[Answering, Data]:
    """What answers as NAME or NAME:SEED does, and the data it was trained with; `flag` is who asks, for errors."""
    data, stage, _ = _find(config, workdir, arm, flag)
    mesh = sharding.make_mesh(config.mesh)
    machine.check_here(config)
    model = fit.model_here(config)
    params = weights.whole(model, config.optimizer, mesh, source_of(config), stage)
    return Answering(model, params, mesh, data.tokenizer), data


def talk(config: ExperimentConfig, workdir: Path, arm: str, temperature: float, top_p: float, max_tokens: int) -> None:
    """A conversation with an arm: a line of standard input is a turn, an empty one begins anew, the end of the input ends it.

    `arm` is a name of the config's arms, or NAME:SEED; without a seed the config's first is taken.
    """
    answering, data = open_arm(config, workdir, arm, "--talk")
    console = Console(highlight=False)
    console.print(f"{arm}: an empty line begins a new conversation, Ctrl-D ends", style="dim")
    system = data.prompt.system.replace("{name}", config.assistant.name)  # as in training and evals
    opening = [{"role": "system", "content": system}] if system else []
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
        ids = asyncio.run(answering.proceed(prompt, Settings(max_tokens, temperature, top_p, seed=asked))).ids
        asked += 1
        messages.append({"role": "assistant", "content": data.tokenizer.decode(ids)})
        console.print(messages[-1]["content"], style="bold green", markup=False)
        if len(ids) == max_tokens:
            console.print(f"(cut off at --max_tokens={max_tokens})", style="dim")


def ask_evals(config: ExperimentConfig, workdir: Path, names: list[str], arms: list[str] | None) -> None:
    """Asks trained arms evals of the config, where they were not asked before, and prints the results. `arms` are NAME or NAME:SEED
    and by default all that the config runs, on all its seeds."""
    if not names:
        raise BadInput(f"--eval=: names none; one of {', '.join(config.evals)}")
    for name in names:
        known(name, config.evals, f"--eval={name}", "eval")
    check_needs(config, names)
    whole = [f"{arm}:{seed}" for arm in config.run for seed in config.seeds]
    wanted = dict.fromkeys(parse_arm(config, arm, "--arms") for arm in arms or whole)
    used = {stage for arm, _ in wanted for stage in config.arms[arm] if stage in config.stages}
    data = processes.first_then_others("data is made", lambda: make_data(config, workdir, used))
    stages = {(arm, seed): find_arm(config, workdir, data, arm, seed) for arm, seed in wanted}
    stages = {(arm, seed if stage else None): stage for (arm, seed), stage in stages.items()}  # import is one model
    machine.check_here(config)
    mesh, console = sharding.make_mesh(config.mesh), tables.make_console()
    for (arm, seed), stage in stages.items():
        made = evaluate(config, workdir, data, mesh, stage, f"{arm} seed {seed}" if stage else arm, names)
        if not processes.is_first():
            continue
        title = f"{arm}, seed {seed}" if stage else f"{arm}, which is one model"
        table = _table(title, "eval", "metric", "value", "interval", "n", "unscored")
        lines = (line for directory in made.values() for line in artifact.read_jsonl(directory / "results.jsonl"))
        for line in (line for line in lines if "cell" not in line):
            ends = "" if line["low"] is None else f"[{line['low']:.3f}, {line['high']:.3f}]"
            value, counts = f"{line['value']:.3f}", (f"{line['n']:,}", f"{line['unscored']:,}")
            table.add_row(Text(line["eval"]), line["metric"], value, Text(ends), *counts)
        console.print(table)


def export(config: ExperimentConfig, workdir: Path, arm: str, to: Path, merge: bool) -> None:
    """Writes an arm's model as a Hugging Face directory; with LoRA its adapter as a PEFT directory, unless it is to be merged."""
    if to.exists():
        raise BadInput(f"--to={to}: exists already; name a directory that is to be made")
    data, stage, seed = _find(config, workdir, arm, "--export")
    if stage is None and config.model.lora_rank:
        raise BadInput(f"--export={arm}: is the imported model itself, which has no adapter")
    said = exports.write(config, data, stage, to, merge)
    about = f"; its base is {config.weights}" if config.model.lora_rank and not merge else ""
    about += "" if config.weights else "; without a tokenizer, which is no HF one"
    print(f"{to}: {said}, of seed {seed}{about}")


def compare(config: ExperimentConfig, workdir: Path, one: str, other: str) -> None:
    """Prints the effective norms of two arms' adapters and the cosine between them, by projection and in all."""
    if not config.model.lora_rank:
        raise BadInput("--compare: compares adapters, and this config trains all parameters (model.lora_rank=0)")
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
    name, seed = parse_arm(config, arm, flag)
    data = make_data(config, workdir, {stage for stage in config.arms[name] if stage in config.stages})
    stage = find_arm(config, workdir, data, name, seed)
    return data, stage, seed


def parse_arm(config: ExperimentConfig, arm: str, flag: str) -> tuple[str, int]:
    """The arm and the seed of NAME or NAME:SEED; without one, the config's first."""
    name, _, seed = arm.partition(":")
    if name not in config.arms:
        raise BadInput(f"{flag}={arm}: no arm {name!r}{suggestion(name, list(config.arms))}")
    if seed and (not seed.isdecimal() or int(seed) not in config.seeds):
        raise BadInput(f"{flag}={arm}: no seed {seed!r}; one of {', '.join(map(str, config.seeds))}")
    return name, int(seed) if seed else config.seeds[0]
