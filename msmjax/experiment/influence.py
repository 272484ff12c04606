"""Influence: how the records that a stage of an arm reads moved its answers to an eval.

In: an experiment whose arm is trained, and an eval of choices. Out: `influence.jsonl`, a line for each record, and a page.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

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
from msmjax.influence.gradients import Example, InfluenceConfig
from msmjax.influence.replay import Stage, states
from msmjax.machine import Machine
from msmjax.model import attention
from msmjax.ranges import suggestion
from msmjax.report import influence as page
from msmjax.report import table as tables
from msmjax.training import weights

METHODS = {"gradient": 0, "adam": 1, "newton": 0, "adam_newton": 1}  # and which of a document's features each takes
AT_A_TIME = 8  # batches of examples whose features exist at a time
METHOD = "adam"  # what the page is sorted by
SHOWN = 10  # records at either end, in the terminal


def influence(config: ExperimentConfig, workdir: Path, arm: str, name: str, only: str | None) -> None:
    """Ranks the records that an arm's last stage, or stage `only`, reads and no stage before it, by how they moved the margins of
    an eval's items: over all seeds of the config, or of one where `arm` is NAME:SEED. Prints the ends, and writes all."""
    if jax.process_count() > 1:
        raise BadInput("--influence: is measured by one process; run it without --distributed")
    arm, stage_name, seeds = stage_of(config, arm, only)
    here = machine.this_machine(config)
    data = make_data(config, workdir, set(config.arms[arm]) - {IMPORT})
    items = items_of(config, data, name)
    corpora = own_corpora(config, data, arm, stage_name)
    records = [(corpus.name, record) for corpus in corpora.values() for record in corpus.records]
    for one in seeds:
        stages.find_arm(config, workdir, data, arm, one)  # refuses an arm that is not trained
    made = [of_seed(config, workdir, data, here, arm, stage_name, one, corpora, items)[0] for one in seeds]
    # Over items, then over seeds.
    of_seeds = {method: np.stack([scored[method].mean(axis=1) for scored in made]) for method in METHODS}
    texts = [text_of(record) for corpus in corpora.values() for record in sources.read_corpus(data.corpora[corpus.name])]
    lines = []
    for number, ((corpus, record), text) in enumerate(zip(records, texts, strict=True)):
        over_seeds = seed_interval(of_seeds[METHOD][:, number])
        others = {method: float(values[:, number].mean()) for method, values in of_seeds.items()}
        ends = {"influence": over_seeds.value, "low": over_seeds.low, "high": over_seeds.high}
        per_seed = of_seeds[METHOD][:, number].tolist()
        lines.append({"corpus": corpus, **record, **ends, "per_seed": per_seed, "methods": others, "text": text})
    lines.sort(key=lambda line: -line["influence"])
    directory = workdir / "influence" / f"{arm}-{stage_name}-{name}-{artifact.content_hash(lines)}"
    directory.mkdir(parents=True, exist_ok=True)
    artifact.write_jsonl(directory / "influence.jsonl", lines)
    title = f"{arm}, stage {stage_name}, seeds {', '.join(map(str, seeds))}: influence on {name}"
    page.write(title, lines, directory / "report.html")
    _print(title, lines)
    print(f"report: {directory / 'report.html'}")


def stage_of(config: ExperimentConfig, arm: str, only: str | None) -> tuple[str, str, list[int]]:
    """The arm, the stage and the seeds that `--influence` and `--stage` name. Raises BadInput for names that are none."""
    is_one, (arm, seed) = ":" in arm, parse_arm(config, arm, "--influence")
    chain = [stage for stage in config.arms[arm] if stage != IMPORT]
    if not chain:
        raise BadInput(f"--influence={arm}: is the imported model itself, which reads nothing here")
    if only is not None and only not in chain:
        raise BadInput(f"--stage={only}: no stage of arm {arm!r}{suggestion(only, chain)}")
    name, points = only or chain[-1], config.influence.points
    if not own_places(config, arm, name):
        raise BadInput(f"--influence={arm}: its stage {name!r} reads nothing that no stage before it reads; name one by --stage")
    if 3 * points > config.stages[name].steps:
        raise BadInput(f"influence.points={points}: at most a third of the {config.stages[name].steps} steps of stage {name!r}")
    return arm, name, [seed] if is_one else list(config.seeds)


def of_seed(
    config, workdir: Path, data: Data, here: Machine, arm: str, name: str, seed: int, corpora, items
) -> tuple[dict[str, np.ndarray], float]:
    """By method the influence of each record on the margin of each item, [records, items], on one seed: the sum over points of the
    stage; and the seconds it took. Each point is kept once it is measured, and found again."""
    chain = {one: directory for one, _, directory in stages.chain_of(config, workdir, data, arm, seed)}
    settings = dataclasses.asdict(config.influence)
    del settings["rows"]  # which is a matter of memory
    inputs = {
        "stage": chain[name].name,
        "corpora": [corpus.name for corpus in corpora.values()],
        "items": artifact.content_hash(items),
        "prompt": dataclasses.asdict(data.prompt),
        "settings": settings,
        "code": artifact.code_hash("influence", "experiment/influence.py", "evals/choice.py", "model", "training"),
    }
    parent, label = workdir / "influence", f"scores-{name}-seed{seed}"
    stage = open_stage(config, workdir, data, here, arm, seed, name)
    made, missing = {}, {}
    for step in points(stage, config.influence):
        own = {**inputs, "point": step}
        made[step] = artifact.path(parent, label, own)
        if made[step].exists():
            artifact.read_manifest(made[step], own)
        else:
            missing[step] = own
    if missing:
        started = time.perf_counter()
        for step, scored in measure(data, stage, corpora, items, list(missing), config.influence, f"{arm} > {name} seed {seed}"):

            def build(directory: Path, scored=scored, started=started) -> dict:
                np.savez(directory / "scores.npz", **scored)
                return {"seconds": time.perf_counter() - started}

            artifact.make(parent, label, missing[step], build)
            started = time.perf_counter()
    files = [np.load(directory / "scores.npz") for directory in made.values()]
    seconds = sum(artifact.read_manifest(directory)["seconds"] for directory in made.values())
    return {method: sum(file[method] for file in files) for method in METHODS}, seconds


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


def own_places(config: ExperimentConfig, arm: str, name: str) -> list[int]:
    """Of what a stage reads, the places in its mixture of the corpora that no stage before it in the arm reads."""
    chain = [stage for stage in config.arms[arm] if stage != IMPORT]
    before = {corpus for stage in chain[: chain.index(name)] for corpus, _ in config.stages[stage].data}
    return [place for place, (corpus, _) in enumerate(config.stages[name].data) if corpus not in before]


def own_corpora(config: ExperimentConfig, data: Data, arm: str, name: str) -> dict[int, Corpus]:
    """Those corpora, by their places."""
    names = {place: config.stages[name].data[place][0] for place in own_places(config, arm, name)}
    return {place: provenance.open_corpus(one, data.rows[one], data.corpora[one]) for place, one in names.items()}


def items_of(config: ExperimentConfig, data: Data, name: str) -> list[dict]:
    """Up to `config.influence.items` of the items of an eval of choices, evenly over the file. Raises BadInput for another kind."""
    of_kind = [key for key, one in config.evals.items() if isinstance(one, choice.MicroworldEval | choice.ChoiceEval)]
    all_of = [item for items in read_items({key: data.items[key] for key in of_kind}).values() for item in items or []]
    found = [item for item in all_of if item["eval"] == name]
    if not found:
        names = ", ".join(dict.fromkeys(item["eval"] for item in all_of))
        raise BadInput(f"--eval={name}: no choice between two options; one of {names or '(the config has none)'}")
    count = min(config.influence.items, len(found))
    return [found[index] for index in np.unique(np.linspace(0, len(found) - 1, count).astype(int))]


def segments_of(stage: Stage, corpora: dict[int, Corpus]) -> list[tuple[int, int, np.void]]:
    """Of each segment of those corpora's rows: the corpus' place, the record's number among all, and the segment."""
    out, first = [], 0
    for place, corpus in corpora.items():
        out += [(place, first + int(segment["record"]), segment) for segment in corpus.segments]
        first += len(corpus.records)
    return out


def points(stage: Stage, settings: InfluenceConfig) -> list[int]:
    """Steps of the stage: the middles of as many equal parts of its last third. Earlier gradients, which are larger, did
    worse where it was tried, once (LOG.md, 2026-11-28)."""
    parts = 3 * settings.points
    return [int((part + 0.5) * stage.settings.steps / parts) for part in range(parts - settings.points, parts)]


def measure(
    data: Data,
    stage: Stage,
    corpora: dict[int, Corpus],
    items: list[dict],
    wanted: list[int],
    settings: InfluenceConfig,
    label: str,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """For each of the points `wanted` by method the influence of each record on the margin of each item, [records, items],
    times how often the stage reads the record."""
    count = sum(len(corpus.records) for corpus in corpora.values())
    base = weights.base(stage.model, stage.mesh, stage.source)
    of = stage.settings
    times = mixtures.times_read(stage.mixture, of.steps * of.batch_rows)
    segments = [one for one in segments_of(stage, corpora) if times[one[0]][one[2]["row"]]]
    segments.sort(key=lambda one: int(one[2]["tokens"]))  # what is of like length is computed together
    asked = [Example.answer(*example) for item in items for example in choice.ask(item, data.prompt, data.tokenizer)]
    all_of = background(stage, settings.background)
    for step, state in states(stage, base, wanted, f"{label}: training again"):
        scales = None, gradients.preconditioner(state, stage.optimizer.epsilon, stage.optimizer.b2)

        def features(examples: list[Example], state=state, scales=scales) -> np.ndarray:
            params, mesh = state["params"], stage.mesh
            return gradients.features(stage.model, params, base, scales, mesh, examples, settings.size, settings.rows)

        nats = features(asked).reshape(len(scales), len(items), 2, 2, -1)  # item, order, option
        plain, adam = (nats[:, :, :, 1] - nats[:, :, :, 0]).mean(axis=2)
        pairs = zip((plain, adam), features(all_of), strict=True)
        by_newton = [scores.newton(margins_IF, examples_NF, settings.damping) for margins_IF, examples_NF in pairs]
        directions = dict(zip(METHODS, (plain, adam, *by_newton), strict=True))
        total = {method: np.zeros((count, len(items))) for method in METHODS}
        with tqdm(total=len(segments), desc=f"{label}: step {step}", unit="document", leave=False, disable=None) as bar:
            at_a_time = AT_A_TIME * gradients.rows_on(stage.mesh, settings.rows)
            for start in range(0, len(segments), at_a_time):
                part = segments[start : start + at_a_time]
                train = features([_example(stage, place, segment) for place, _, segment in part])
                often = np.array([times[place][segment["row"]] for place, _, segment in part])[:, None]
                numbers = [record for _, record, _ in part]
                for method, margins_IF in directions.items():
                    of_scale = train[METHODS[method]]
                    np.add.at(total[method], numbers, -often * (of_scale @ margins_IF.T))
                bar.update(len(part))
        yield step, total


def background(stage: Stage, count: int) -> list[Example]:
    """Segments of the rows of the stage, one of each of `count` rows that are spread over it."""
    rows = stage.settings.steps * stage.settings.batch_rows
    rng, out = np.random.default_rng(0), []
    for index in np.linspace(0, rows - 1, min(rows, count)).astype(int):
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
