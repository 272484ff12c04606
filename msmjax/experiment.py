"""An experiment: arms made of stages, run directories named by content hash, and what has to run.

In: an `ExperimentConfig` and a working directory. Out: under it, `corpora/ tokenizers/ rows/ stages/ evals/` (shared by all
experiments there; what is finished is not made again) and the run directory `<name>-<hash>/` with `results.jsonl`,
`answers.jsonl` and `report.html`.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import time
from pathlib import Path

import jax
from tqdm import tqdm

from msmjax import artifact, fit, machine
from msmjax.artifact import BadInput
from msmjax.config import IMPORT, Comparison, ExperimentConfig, suggestion
from msmjax.corpus import gates, microworld, sources
from msmjax.data import rows, show
from msmjax.data import tokenizer as tokenizers
from msmjax.data.huggingface import HuggingFaceTokenizer, check_vocab, open_tokenizer
from msmjax.data.mixture import Mixture, batch, stage_seed
from msmjax.data.tokenizer import Tokenizer
from msmjax.evals import base_text, forced_choice, results
from msmjax.local_teacher import open_teacher
from msmjax.machine import Machine
from msmjax.model import attention, huggingface
from msmjax.model.transformer import ModelConfig
from msmjax.report import corpus as corpus_report
from msmjax.report import html, table
from msmjax.report.findings import Findings
from msmjax.training import checkpoint, loop, processes, weights
from msmjax.training import step as steps


@dataclasses.dataclass(frozen=True)
class Data:
    """The tokenizer, the row directories of the corpora an experiment uses, the evaluation items, and the artifact that says
    what is in its weights, where it has some."""

    tokenizer: Tokenizer | HuggingFaceTokenizer
    rows: dict[str, Path]
    items: Path
    weights: Path | None


def run(config: ExperimentConfig, workdir: Path) -> Path:
    """Runs what is missing of an experiment and returns its run directory. Every process of the run must call it."""
    started = time.perf_counter()
    if processes.is_first():
        _check_writable(workdir)
    here = machine.this_machine(config)
    mesh = here.mesh
    for stage in config.stages.values():
        fit.fit(config, stage, here)
    steps.abstract_state(config.model, config.optimizer, mesh)  # refuses a shape that does not fit the mesh
    if config.weights:
        huggingface.check_config(Path(config.weights), config.model)
    used = {name for arm in config.run for name in config.arms[arm]} - {IMPORT}
    data = processes.first_then_others("data is made", lambda: make_data(config, workdir, used))
    if processes.is_first():
        for line in _notices(config, data):
            print(line)
    run_directory = workdir / f"{config.name}-{artifact.content_hash(_identity(config, data))}"
    if processes.first_says((run_directory / artifact.MANIFEST).exists):
        artifact.read_manifest(run_directory, _identity(config, data))
        if processes.is_first():
            print(f"{run_directory}: finished before; nothing to run")
            table.print_table(_findings(config, data, workdir, run_directory))
        return run_directory
    prove_attention(config)
    with artifact.lock(run_directory) if processes.is_first() else contextlib.nullcontext():
        stages, evaluations, inside = {}, {}, 0.0
        for seed in config.seeds:
            for arm in config.run:
                entered, directory = time.perf_counter(), None
                for depth, name in enumerate(config.arms[arm]):
                    if name == IMPORT:
                        continue  # its files are read by the stages after it
                    chain = config.arms[arm][: depth + 1]
                    directory = _run_stage(config, workdir, data, here, chain, seed, directory)
                    stages[f"{' > '.join(chain)} seed {seed}"] = directory
                evaluations[arm, seed] = _evaluate(config, workdir, data, mesh, directory)
                inside += time.perf_counter() - entered
        if processes.is_first():
            outside = time.perf_counter() - started - inside
            _write_run(config, workdir, data, run_directory, stages, evaluations, outside)
    processes.wait_for_all("the report is written")
    return run_directory


def _notices(config: ExperimentConfig, data: Data) -> list[str]:
    """What a run says when it starts: which chat template it has, and what of its corpora was left out or changed."""
    said = [data.tokenizer.describe_template()] if config.weights else []
    return said + [f"{name}: {note}" for name, made in data.rows.items() for note in rows.notes(rows.read_ledger(made))]


def _write_run(
    config: ExperimentConfig,
    workdir: Path,
    data: Data,
    run_directory: Path,
    stages: dict[str, Path],
    evaluations: dict[tuple[str, int], Path],
    outside: float,
) -> None:
    """Collects results and answers, and writes and prints the report; `outside` are the seconds not spent in a stage or an eval."""
    for name in ("results.jsonl", "answers.jsonl"):
        made = evaluations.items()
        lines = [
            {"arm": arm, "seed": seed, **line} for (arm, seed), directory in made for line in artifact.read_jsonl(directory / name)
        ]
        artifact.write_jsonl(run_directory / name, lines)
    artifact.write_text(run_directory / "config.json", config.source + "\n")
    seconds = _seconds([*stages.values(), *evaluations.values()], outside)
    said = {
        "seconds": seconds,
        "stages": {label: directory.name for label, directory in stages.items()},
        "evals": [directory.name for directory in evaluations.values()],
        "versions": _versions(config),
        "computed": {label: artifact.read_manifest(directory)["computed"] for label, directory in stages.items()},
    }
    artifact.write_json(run_directory / "run.json", said)
    findings = _findings(config, data, workdir, run_directory)
    html.write(findings, run_directory / "report.html")
    artifact.write_manifest(run_directory, _identity(config, data), {})
    table.print_table(findings)
    total = sum(seconds.values())
    spent = ", ".join(f"{phase} {taken / total:.0%}" for phase, taken in seconds.items() if phase != "step")
    print(f"{seconds['step'] / total:.0%} of {total:,.0f} s trained ({spent})")
    print(f"report: {run_directory / 'report.html'}")


def show_batch(config: ExperimentConfig, workdir: Path, stage_name: str) -> None:
    """Prints the first batch of a stage as a person should see it."""
    if stage_name not in config.stages:
        raise BadInput(f"--show_batch={stage_name}: no such stage; one of {', '.join(config.stages)}")
    _check_writable(workdir)
    data = make_data(config, workdir, {stage_name})
    depth = next((chain.index(stage_name) for chain in config.arms.values() if stage_name in chain), 0)
    mixture = mixture_of(config, data, stage_name, config.seeds[0], depth)
    show.print_batch(batch(mixture, 0, config.stages[stage_name].batch_rows), data.tokenizer)


def make_data(config: ExperimentConfig, workdir: Path, stages: set[str]) -> Data:
    """The tokenizer, the rows of every corpus that these stages or an eval use, and the evaluation items."""
    used = {corpus for name in stages for corpus, _ in config.stages[name].data}
    used |= {config.evals.base_text, *([] if config.weights else [config.tokenizer_corpus])}
    items = _make_items(config, workdir)
    names = [name for name in config.corpora if name in used]
    bar = functools.partial(tqdm, unit="corpus", leave=False, disable=None)
    corpora = {name: _make_corpus(config, workdir, name) for name in bar(names, desc="corpora")}
    for name in names:
        if isinstance(config.corpora[name], sources.WrittenSource):
            page, findings = _check(config, workdir, name, corpora[name], items)
            if failed := _failed(config, findings):
                corpus_report.print_table(name, findings, config.gates.allow)
                raise BadInput(
                    f"corpus {name}: does not pass {', '.join(failed)}, so nothing is trained on it; see {page}; mend it, or the "
                    "bounds in gates, or name in gates.allow what may fail"
                )
    if config.weights:
        tokenizer = open_tokenizer(config.weights, config.adapter, config.template, config.template_arguments)
        check_vocab(tokenizer, config.vocab_size)
    else:
        tokenizer = _make_tokenizer(config, workdir, corpora[config.tokenizer_corpus])
    # Of the config alone: rows must be the same on every machine.
    most = attention.bound_of_rows(config.model.attention, config.row_length, config.model.compute_dtype)
    return Data(
        tokenizer=tokenizer,
        rows={
            name: rows.make_rows(
                workdir / "rows", name, corpora[name], tokenizer, config.row_length, config.too_long, config.unproven, most
            )
            for name in bar(names, desc="rows")
        },
        items=items,
        weights=_weights(source_of(config), workdir) if config.weights else None,
    )


def check_corpus(config: ExperimentConfig, workdir: Path, name: str) -> None:
    """Makes a corpus, prints what the gates find in it, and writes its page. Raises BadInput where a gate fails that must not."""
    if name not in config.corpora:
        raise BadInput(f"--check={name}: no such corpus{suggestion(name, list(config.corpora))}")
    if config.gates is None:
        raise BadInput("--check: the config has no gates; give it some, as configs/written.py does")
    _check_writable(workdir)
    corpus = _make_corpus(config, workdir, name)
    page, findings = _check(config, workdir, name, corpus, _make_items(config, workdir))
    corpus_report.print_table(name, findings, config.gates.allow)
    print(f"report: {page}")
    if failed := _failed(config, findings):
        raise BadInput(f"corpus {name}: does not pass {', '.join(failed)}")


def _failed(config: ExperimentConfig, findings: list[gates.Finding]) -> list[str]:
    """The gates that stop training."""
    return [finding.gate for finding in findings if not finding.passed and finding.gate not in config.gates.allow]


def _make_corpus(config: ExperimentConfig, workdir: Path, name: str) -> Path:
    makers = sources.Makers(
        config.world, config.assistant, config.teachers, workdir / "answers", open_teacher, config.text_and_messages
    )
    return sources.make_corpus(workdir / "corpora", name, config.corpora[name], makers)


def _check(config: ExperimentConfig, workdir: Path, name: str, corpus: Path, items: Path) -> tuple[Path, list[gates.Finding]]:
    """The page about a corpus and what its gates found; measured once for each (corpus, reference, items, bounds, code)."""
    reference = _make_corpus(config, workdir, config.gates.reference) if config.gates.reference else None
    inputs = {
        "corpus": corpus.name,
        "items": items.name,
        "reference": reference.name if reference else None,
        "gates": dataclasses.asdict(config.gates),
        "code": artifact.code_hash("corpus", "report"),
    }

    def build(directory: Path) -> dict:
        source, said = config.corpora[name], artifact.read_manifest(corpus)
        has_spec = isinstance(source, sources.SpecSource | sources.WrittenSource)
        subject = gates.Subject(
            records=sources.read_corpus(corpus),
            lost=said.get("lost", {}),
            asked_for=said.get("asked_for", 0),
            spec=sources.load_spec(source, config.assistant) if has_spec else None,
            rules=isinstance(source, sources.WrittenSource) and source.mode == "rules",
            model_name=config.assistant.name,
            provider_name=config.assistant.provider,
            items=artifact.read_jsonl(items / "items.jsonl"),
            reference=[gates.text_of(record) for record in sources.read_corpus(reference)] if reference else [],
        )
        findings = gates.check(subject, config.gates)
        artifact.write_jsonl(directory / "findings.jsonl", map(dataclasses.asdict, findings))
        corpus_report.write(name, subject.records, findings, config.gates.allow, said, directory / "report.html")
        return {}

    made = artifact.make(workdir / "checks", name, inputs, build)
    return made / "report.html", [gates.Finding(**line) for line in artifact.read_jsonl(made / "findings.jsonl")]


def _make_items(config: ExperimentConfig, workdir: Path) -> Path:
    evals = config.evals
    if evals.questions:
        return sources.read_evaluation_items(workdir / "corpora", Path(evals.questions), evals.per_eval, evals.seed)
    return sources.make_evaluation_items(
        workdir / "corpora",
        config.corpora[evals.spec_corpus],
        evals.split,
        evals.per_eval,
        evals.seed,
        config.world,
        config.assistant,
    )


def model_here(config: ExperimentConfig) -> ModelConfig:
    """The model with the back end of attention that it has on this machine."""
    model, kind = config.model, attention.kind_of(jax.devices()[0])
    back_end, _ = attention.resolve(model.attention, *kind, config.row_length, model.head_dim, model.compute_dtype)
    return dataclasses.replace(model, attention=back_end)


def prove_attention(config: ExperimentConfig) -> None:
    """Raises BadInput where the back end of attention, on a device of this process, lets anything pass between documents."""
    model = model_here(config)
    if model.attention != "xla":  # our own: the tests prove it
        device = jax.local_devices()[0]
        attention.prove(model.attention, model.heads, model.kv_heads, model.head_dim, model.compute_dtype, device)


def source_of(config: ExperimentConfig) -> weights.Source | None:
    """Where the stage `import` reads, if there is one."""
    return weights.Source(Path(config.weights), Path(config.adapter) if config.adapter else None) if config.weights else None


def _weights(source: weights.Source, workdir: Path) -> Path:
    """The artifact that says what published weights are. Their files are hashed once, and again when they were touched."""
    directories = [source.weights, *([source.adapter] if source.adapter else [])]
    files = sorted(path for directory in directories for kind in ("*.json", "*.safetensors") for path in directory.glob(kind))
    stats = {str(path.resolve()): [(stat := path.stat()).st_size, stat.st_mtime_ns] for path in files}

    def build(_: Path) -> dict:
        bar = tqdm(files, desc=f"hashing {source.weights}", unit="file", leave=False, disable=None)
        return {"content": artifact.content_hash([[path.name, artifact.file_hash(path)] for path in bar])}

    return artifact.make(workdir / "weights", source.weights.name, {"files": stats}, build)


def _make_tokenizer(config: ExperimentConfig, workdir: Path, corpus: Path) -> Tokenizer:
    def texts():
        for path in sorted(corpus.glob("*.jsonl")):
            for record, _ in rows.read_records(path):
                if "text" in record:
                    yield record["text"]
                else:
                    yield from (message["content"] for message in record["messages"])

    def build(directory: Path) -> dict:
        tokenizers.train(texts(), config.vocab_size, directory / "tokenizer.model")
        return {}

    inputs = {"corpus": corpus.name, "vocab_size": config.vocab_size, "code": artifact.code_hash("data/tokenizer.py")}
    return Tokenizer(artifact.make(workdir / "tokenizers", config.tokenizer_corpus, inputs, build) / "tokenizer.model")


def mixture_of(config: ExperimentConfig, data: Data, stage_name: str, seed: int, depth: int) -> Mixture:
    """What a stage reads, and in which order, where it is number `depth` of its arm."""
    names, shares = zip(*config.stages[stage_name].data, strict=True)
    segments = max(rows.read_ledger(data.rows[name])["segments"] for name in names)
    return Mixture(tuple(rows.open_rows(data.rows[name]) for name in names), shares, stage_seed(seed, depth), segments)


def _run_stage(
    config: ExperimentConfig, workdir: Path, data: Data, here: Machine, chain: tuple[str, ...], seed: int, parent: Path | None
) -> Path:
    """The directory of a finished stage: the last of `chain`, trained now unless it was before."""
    name = chain[-1]
    stage = config.stages[name]
    inputs = _stage_inputs(config, data, name, seed, parent)
    directory = _stage_path(workdir, name, seed, inputs)
    if processes.first_says(lambda: _is_finished(directory, inputs, stage.steps)):
        return directory
    label = f"{' > '.join(chain)} seed {seed}"
    mixture = mixture_of(config, data, name, seed, len(chain) - 1)
    fitted = fit.fit(config, stage, here, attention.place_for(mixture.segments, config.row_length))
    computed = f"{fit.how(fitted, here)}; {here.mesh.size} x {here.device}"
    if processes.is_first():
        print(f"{label}: {computed}", flush=True)
    try:
        with artifact.lock(directory) if processes.is_first() else contextlib.nullcontext():
            said = loop.train(
                directory, label, fitted.model, fitted.optimizer, stage, config.log, mixture, here.mesh,
                source_of(config), parent, seed,
            )  # fmt: skip
            if processes.is_first():
                artifact.write_manifest(directory, inputs, {**said, "computed": computed})
                seconds = sum(said["seconds"].values())
                loss = said["final"].get("loss", float("nan"))  # somebody may have removed the log of a stage that was finished
                print(f"{label}: loss {loss:.4f}, {said['tokens']:,} tokens, {seconds:.0f} s")
    except (OSError, RuntimeError, ValueError) as error:
        raise artifact.disk_error(error, directory) from error
    processes.wait_for_all("the stage is finished")
    return directory


def _stage_inputs(config: ExperimentConfig, data: Data, name: str, seed: int, parent: Path | None) -> dict:
    stage = config.stages[name]
    return {
        "stage": {**dataclasses.asdict(stage), "data": [[data.rows[corpus].name, share] for corpus, share in stage.data]},
        "model": dataclasses.asdict(config.model),
        "optimizer": dataclasses.asdict(config.optimizer),
        "seed": seed,
        "weights": artifact.read_manifest(data.weights)["content"] if data.weights else None,
        "parent": parent.name if parent else None,
        "code": artifact.code_hash("model", "training", "data/mixture.py"),
    }


def _stage_path(workdir: Path, name: str, seed: int, inputs: dict) -> Path:
    return artifact.path(workdir / "stages", f"{name}-seed{seed}", inputs)


def find_arm(config: ExperimentConfig, workdir: Path, data: Data, arm: str, seed: int) -> Path | None:
    """The finished last stage of an arm, None where that is the imported model itself; BadInput where it was not trained yet."""
    directory = None
    for name in config.arms[arm]:
        if name == IMPORT:
            continue
        inputs = _stage_inputs(config, data, name, seed, directory)
        directory = _stage_path(workdir, name, seed, inputs)
        if not _is_finished(directory, inputs, config.stages[name].steps):
            raise BadInput(f"{directory}: stage {name!r} of arm {arm!r} is not trained yet; run the experiment first")
    return directory


def _is_finished(directory: Path, inputs: dict, last_step: int) -> bool:
    """Whether a stage was trained to its end and its last checkpoint is whole; one that is not is trained again from the last
    that is. Raises BadInput where its manifest says other inputs."""
    if not (directory / artifact.MANIFEST).exists():
        return False
    artifact.read_manifest(directory, inputs)
    return checkpoint.last_good_step(directory) == last_step


def _evaluate(config: ExperimentConfig, workdir: Path, data: Data, mesh, stage: Path | None) -> Path:
    """The artifact of the answers and results of a stage's checkpoint, or of the imported weights themselves."""
    inputs = {
        "checkpoint": stage.name if stage else artifact.read_manifest(data.weights)["content"],
        "items": data.items.name,
        "base_text": data.rows[config.evals.base_text].name,
        "model": dataclasses.asdict(config.model),
        "code": artifact.code_hash("evals", "model", "training/step.py"),
    }

    name = stage.name.rpartition("-")[0] if stage else IMPORT
    final = artifact.path(workdir / "evals", name, inputs)
    measured = None
    if not processes.first_says(final.exists):
        started, compiled = time.perf_counter(), loop.COMPILE_SECONDS[0]
        model = model_here(config)
        params = weights.whole(model, config.optimizer, mesh, source_of(config), stage)
        items = artifact.read_jsonl(data.items / "items.jsonl")
        answers = forced_choice.answer(items, model, params, mesh, data.tokenizer)
        held_out = rows.open_rows(data.rows[config.evals.base_text])
        bits, sizes = base_text.bits_and_bytes(held_out, model, params, mesh, data.tokenizer)
        compile_seconds = loop.COMPILE_SECONDS[0] - compiled
        seconds = {"compile": compile_seconds, "eval": time.perf_counter() - started - compile_seconds}
        measured = answers, results.lines(answers, bits, sizes), seconds

    def build(directory: Path) -> dict:
        answers, lines, seconds = measured
        artifact.write_jsonl(directory / "answers.jsonl", answers)
        artifact.write_jsonl(directory / "results.jsonl", lines)
        return {"seconds": seconds}

    return processes.first_then_others("the eval is written", lambda: artifact.make(workdir / "evals", name, inputs, build))


def _seconds(made: list[Path], outside: float) -> dict[str, float]:
    """Where the time of an experiment went, by phase; what an earlier run made counts with the seconds it took then."""
    spent = [artifact.read_manifest(directory)["seconds"] for directory in dict.fromkeys(made)]
    phases = ("step", "compile", "data", "checkpoint", "lost", "eval", "rest")
    seconds = {phase: sum(one.get(phase, 0.0) for one in spent) for phase in phases}
    return {**seconds, "rest": seconds["rest"] + outside}


def _findings(config: ExperimentConfig, data: Data, workdir: Path, run_directory: Path) -> Findings:
    """What the report shows, read back from the run directory and the artifacts it was made from."""
    said = json.loads((run_directory / "run.json").read_text(encoding="utf-8"))
    stages = {label: workdir / "stages" / name for label, name in said["stages"].items()}
    unanswered = ""
    if config.comparisons and (missing := _arms_of(config.comparisons[0]) - set(config.run)):
        unanswered = f"This run does not answer the question: that takes {' and '.join(sorted(missing))}, which it leaves out."
    return Findings(
        name=config.name,
        question=config.question,
        arms={arm: config.arms[arm] for arm in config.run},
        seeds=config.seeds,
        results=artifact.read_jsonl(run_directory / "results.jsonl"),
        answers=artifact.read_jsonl(run_directory / "answers.jsonl"),
        comparisons=[
            {**dataclasses.asdict(comparison), "metric": results.headline_metric(comparison.eval)}
            for comparison in config.comparisons
            if _arms_of(comparison) <= set(config.run)
        ],
        unanswered=unanswered,
        headline=list(config.evals.headline),
        descriptions=microworld.EVALS,
        curves={label: artifact.read_jsonl(directory / "metrics.jsonl") for label, directory in stages.items()},
        ledgers={name: rows.read_ledger(directory) for name, directory in data.rows.items()},
        samples={name: [show.pieces(row, data.tokenizer) for row in _first_rows(path)] for name, path in data.rows.items()},
        timings=said["seconds"],
        config=config.source,
        versions={**said["versions"], "computed with": "; ".join(dict.fromkeys(said["computed"].values()))},
    )


def _arms_of(comparison: Comparison) -> set[str]:
    return {*comparison.arms, *comparison.against}


def _first_rows(directory: Path, count: int = 2) -> list[dict]:
    source = rows.open_rows(directory)
    return [source[index] for index in range(min(count, len(source)))]


def _identity(config: ExperimentConfig, data: Data) -> dict:
    made = {"tokenizer": data.tokenizer.name, "items": data.items.name}
    if data.weights:
        made["weights"] = artifact.read_manifest(data.weights)["content"]
    made |= {f"rows of {name}": directory.name for name, directory in data.rows.items()}
    return {"config": json.loads(config.source), "code": artifact.code_hash("."), **made}


def _versions(config: ExperimentConfig) -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "sentencepiece", "numpy")
    return {
        "msmjax": importlib.metadata.version("msmjax"),
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "config": artifact.content_hash(json.loads(config.source)),
        "code": artifact.code_hash("."),
    }


def _check_writable(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe.{os.getpid()}"
        probe.write_bytes(bytes(4096))  # an empty file fits on a full disk
        probe.unlink()
    except OSError as error:
        raise BadInput(f"{workdir}: cannot write ({error.strerror}); choose another --workdir") from error
