"""Influence: how the records that a stage of an arm reads moved its answers to an eval.

In: an experiment whose arm is trained, and an eval of choices. Out: `influence.jsonl`, a line for each record, and a page.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from rich.table import Table
from rich.text import Text

from msmjax import artifact, fit, machine
from msmjax.artifact import BadInput
from msmjax.config import IMPORT, ExperimentConfig
from msmjax.corpus import sources
from msmjax.corpus.gates import text_of
from msmjax.data import mixture as mixtures
from msmjax.data import provenance
from msmjax.data.provenance import Corpus
from msmjax.evals import choice
from msmjax.evals.statistics import seed_interval
from msmjax.experiment import stages
from msmjax.experiment.data import Data, make_data, mixture_of, read_items, source_of
from msmjax.experiment.use import parse_arm
from msmjax.influence import gradients, scores
from msmjax.influence.gradients import Example
from msmjax.influence.replay import Stage, states
from msmjax.machine import Machine
from msmjax.model import attention
from msmjax.ranges import suggestion
from msmjax.report import influence as page
from msmjax.report import table as tables
from msmjax.training import weights

ITEMS = 64  # of an eval, that are looked at
POINTS = 4  # of a stage, at which gradients are taken: in the middle of as many equal parts
SIZE = 256  # numbers of each matrix of each layer
ROWS = 32  # gradients that exist at a time
BACKGROUND = 512  # examples of all that a stage reads, of which the Gauss-Newton matrix is
DAMPING = 0.1
METHODS = ("gradient", "adam", "newton", "adam_newton")
METHOD = "adam"  # what the page is sorted by
SHOWN = 10  # records at either end, in the terminal


def influence(config: ExperimentConfig, workdir: Path, arm: str, name: str, only: str | None) -> None:
    """Ranks the records that an arm's last stage, or stage `only`, reads and no stage before it, by how they moved the margins of
    an eval's items: over all seeds of the config, or of one where `arm` is NAME:SEED. Prints the ends, and writes all."""
    if jax.process_count() > 1:
        raise BadInput("--influence: is measured by one process; run it without --distributed")
    is_one, (arm, seed) = ":" in arm, parse_arm(config, arm, "--influence")
    chain = [stage for stage in config.arms[arm] if stage != IMPORT]
    if not chain:
        raise BadInput(f"--influence={arm}: is the imported model itself, which reads nothing here")
    if only is not None and only not in chain:
        raise BadInput(f"--stage={only}: no stage of arm {arm!r}{suggestion(only, chain)}")
    stage_name, seeds = only or chain[-1], [seed] if is_one else list(config.seeds)
    here = machine.this_machine(config)
    data = make_data(config, workdir, set(chain))
    items = items_of(config, data, name)
    corpora = own_corpora(config, data, arm, stage_name)
    records = [(corpus.name, record) for corpus in corpora.values() for record in corpus.records]
    made = [_of_seed(config, workdir, data, here, arm, stage_name, one, corpora, items) for one in seeds]
    # Over items, then over seeds.
    of_seeds = {method: np.stack([np.load(one / "scores.npz")[method].mean(axis=1) for one in made]) for method in METHODS}
    texts = [text_of(record) for corpus in corpora.values() for record in sources.read_corpus(data.corpora[corpus.name])]
    lines = []
    for number, ((corpus, record), text) in enumerate(zip(records, texts, strict=True)):
        over_seeds = seed_interval(of_seeds[METHOD][:, number])
        others = {method: float(values[:, number].mean()) for method, values in of_seeds.items()}
        ends = {"influence": over_seeds.value, "low": over_seeds.low, "high": over_seeds.high}
        per_seed = of_seeds[METHOD][:, number].tolist()
        lines.append({"corpus": corpus, **record, **ends, "per_seed": per_seed, "methods": others, "text": text})
    lines.sort(key=lambda line: -line["influence"])
    directory = workdir / "influence" / f"{arm}-{stage_name}-{name}-{artifact.content_hash([one.name for one in made])}"
    directory.mkdir(parents=True, exist_ok=True)
    artifact.write_jsonl(directory / "influence.jsonl", lines)
    title = f"{arm}, stage {stage_name}, seeds {', '.join(map(str, seeds))}: influence on {name}"
    page.write(title, lines, directory / "report.html")
    _print(title, lines)
    print(f"report: {directory / 'report.html'}")


def _of_seed(config, workdir: Path, data: Data, here: Machine, arm: str, name: str, seed: int, corpora, items) -> Path:
    """The artifact of the scores of one seed, measured now unless it was before."""
    chain = {one: directory for one, _, directory in stages.chain_of(config, workdir, data, arm, seed)}
    stages.find_arm(config, workdir, data, arm, seed)  # refuses an arm that is not trained
    inputs = {
        "stage": chain[name].name,
        "corpora": [corpus.name for corpus in corpora.values()],
        "items": artifact.content_hash(items),
        "prompt": dataclasses.asdict(data.prompt),
        "settings": [POINTS, SIZE, BACKGROUND, DAMPING],
        "code": artifact.code_hash("influence", "experiment/influence.py", "evals/choice.py", "model", "training"),
    }

    def build(directory: Path) -> dict:
        stage = open_stage(config, workdir, data, here, arm, seed, name)
        np.savez(directory / "scores.npz", **measure(data, stage, corpora, items, f"{arm} > {name} seed {seed}"))
        return {}

    return artifact.make(workdir / "influence", f"scores-{name}-seed{seed}", inputs, build)


def _print(title: str, lines: list[dict]) -> None:
    table = Table(title=Text(title), title_justify="left")
    for column in ("influence", "over seeds", "corpus", "record", "its first words"):
        table.add_column(column, justify="right" if column == "influence" else "left", overflow="fold")
    ends = lines if len(lines) <= 2 * SHOWN else [*lines[:SHOWN], None, *lines[-SHOWN:]]
    for line in ends:
        if line is None:
            table.add_section()
            continue
        interval = "" if line["low"] is None else f"[{line['low']:+.3g}, {line['high']:+.3g}]"
        words = " ".join(line["text"].split())[:80]
        table.add_row(f"{line['influence']:+.3g}", Text(interval), Text(line["corpus"]), Text(line["id"]), Text(words))
    tables.make_console().print(table)


def open_stage(config: ExperimentConfig, workdir: Path, data: Data, here: Machine, arm: str, seed: int, name: str) -> Stage:
    """A stage of an arm as it was trained. Raises BadInput where its parent is not trained yet."""
    parent = None
    for one, _, directory in stages.chain_of(config, workdir, data, arm, seed):
        if one == name:
            break
        parent = directory
    settings, mixture = config.stages[name], mixture_of(config, data, name, seed)
    fitted = fit.fit(config, settings, here, attention.place_for(mixture.segments, config.row_length))
    return Stage(fitted.model, fitted.optimizer, settings, mixture, here.mesh, source_of(config), parent, seed)


def own_corpora(config: ExperimentConfig, data: Data, arm: str, name: str) -> dict[int, Corpus]:
    """What a stage reads that no stage before it in the arm does, by its place in the mixture."""
    chain = [stage for stage in config.arms[arm] if stage != IMPORT]
    before = {corpus for stage in chain[: chain.index(name)] for corpus, _ in config.stages[stage].data}
    return {
        place: provenance.open_corpus(corpus, data.rows[corpus], data.corpora[corpus])
        for place, (corpus, _) in enumerate(config.stages[name].data)
        if corpus not in before
    }


def items_of(config: ExperimentConfig, data: Data, name: str) -> list[dict]:
    """Up to ITEMS of the items of an eval of choices, evenly over the file. Raises BadInput for an eval of another kind."""
    of_kind = [key for key, one in config.evals.items() if isinstance(one, choice.MicroworldEval | choice.ChoiceEval)]
    all_of = [item for items in read_items({key: data.items[key] for key in of_kind}).values() for item in items or []]
    found = [item for item in all_of if item["eval"] == name]
    if not found:
        names = ", ".join(dict.fromkeys(item["eval"] for item in all_of))
        raise BadInput(f"--eval={name}: no choice between two options; one of {names or '(the config has none)'}")
    return [found[index] for index in np.unique(np.linspace(0, len(found) - 1, min(ITEMS, len(found))).astype(int))]


def segments_of(stage: Stage, corpora: dict[int, Corpus]) -> list[tuple[int, int, np.void]]:
    """Of each segment of those corpora's rows: the corpus' place, the record's number among all, and the segment."""
    out, first = [], 0
    for place, corpus in corpora.items():
        out += [(place, first + int(segment["record"]), segment) for segment in corpus.segments]
        first += len(corpus.records)
    return out


def measure(data: Data, stage: Stage, corpora: dict[int, Corpus], items: list[dict], label: str) -> dict[str, np.ndarray]:
    """By method the influence of each record on the margin of each item, [records, items]: summed over points of the stage,
    weighted by the learning rate there and by how often the stage reads the record."""
    count = sum(len(corpus.records) for corpus in corpora.values())
    base = weights.base(stage.model, stage.mesh, stage.source)
    of = stage.settings
    times = mixtures.times_read(stage.mixture, of.steps * of.batch_rows)
    segments = segments_of(stage, corpora)
    asked = [Example.answer(*example) for item in items for example in choice.ask(item, data.prompt, data.tokenizer)]
    total = {method: np.zeros((count, len(items))) for method in METHODS}
    points = [int((point + 0.5) * of.steps / POINTS) for point in range(POINTS)]
    for step, state in states(stage, base, points, f"{label}: influence"):
        for method in ("gradient", "adam"):
            scale = gradients.preconditioner(state, stage.optimizer.epsilon, stage.optimizer.b2) if method == "adam" else None

            def features(examples: list[Example], state=state, scale=scale) -> np.ndarray:
                return gradients.features(stage.model, state["params"], base, scale, stage.mesh, examples, SIZE, ROWS)

            nats = features(asked).reshape(len(items), 2, 2, -1)  # item, order, option
            margins_IF = (nats[:, :, 1] - nats[:, :, 0]).mean(axis=1)
            by_newton_IF = scores.newton(margins_IF, features(background(stage)), DAMPING)
            for start in range(0, len(segments), 32 * ROWS):
                part = segments[start : start + 32 * ROWS]
                train_ZF = features([_example(stage, place, segment) for place, _, segment in part])
                often = np.array([times[place][segment["row"]] for place, _, segment in part])[:, None] * stage.rate(step)
                numbers = [record for _, record, _ in part]
                np.add.at(total[method], numbers, -often * (train_ZF @ margins_IF.T))
                name = "newton" if method == "gradient" else "adam_newton"
                np.add.at(total[name], numbers, -often * (train_ZF @ by_newton_IF.T))
    return total


def background(stage: Stage) -> list[Example]:
    """Segments of the rows of the stage, one of each of BACKGROUND rows that are spread over it."""
    rows = stage.settings.steps * stage.settings.batch_rows
    rng, out = np.random.default_rng(0), []
    for index in np.linspace(0, rows - 1, min(rows, BACKGROUND)).astype(int):
        place, row = mixtures.locate(stage.mixture, int(index))
        arrays = stage.mixture.sources[place][row]
        trained = np.unique(arrays["segment_ids"][arrays["loss_mask"]])
        if len(trained):
            out.append(_cut(arrays, rng.choice(trained)))
    return out


def _example(stage: Stage, place: int, segment: np.void) -> Example:
    return _cut(stage.mixture.sources[place][int(segment["row"])], segment["segment"])


def _cut(arrays: dict[str, np.ndarray], number: int) -> Example:
    here = arrays["segment_ids"] == number
    return Example(arrays["tokens"][here], arrays["loss_mask"][here])
