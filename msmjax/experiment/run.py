"""The run over seeds and arms: what is missing is made and trained, every arm is evaluated, and the report is written.

In: an `ExperimentConfig` and a working directory. Out: the run directory `<name>-<hash>/` with `results.jsonl`, `answers.jsonl`,
`comparisons.jsonl`, `run.json` and `report.html`.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import time
from pathlib import Path

import jax

from msmjax import artifact, fit, machine
from msmjax.config import IMPORT, ExperimentConfig
from msmjax.data import rows
from msmjax.experiment import plan
from msmjax.experiment.data import Data, make_data
from msmjax.experiment.evaluation import answers_hash, check_judges, check_needs, evaluate, unasked
from msmjax.experiment.findings import read_findings
from msmjax.experiment.stages import run_stage, to_do
from msmjax.model import attention, huggingface_config
from msmjax.report import html, table
from msmjax.training import processes
from msmjax.training import step as steps


def run(config: ExperimentConfig, workdir: Path) -> Path:
    """Runs what is missing of an experiment and returns its run directory. Every process of the run must call it."""
    started = time.perf_counter()
    if processes.is_first():
        artifact.check_writable(workdir)
    check_needs(config)
    here = machine.this_machine(config)
    mesh = here.mesh
    for stage in config.stages.values():
        fit.fit(config, stage, here)
    steps.abstract_state(config.model, config.optimizer, mesh)  # refuses a shape that does not fit the mesh
    if config.weights:
        huggingface_config.check(Path(config.weights), config.model)
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
            table.print_table(read_findings(config, data, workdir, run_directory))
        return run_directory
    if processes.is_first():
        unfinished, last = to_do(config, workdir, data)
        lacking = unasked(config, workdir, data, last)
        if unfinished:  # else what judges said before may be all that is asked of them
            check_judges(config, lacking)
        print(plan.remaining(config, unfinished, lacking, here), flush=True)
    _prove_attention(config)
    with artifact.lock(run_directory) if processes.is_first() else contextlib.nullcontext():
        stages, evaluations, inside = {}, {}, 0.0
        for seed in config.seeds:
            for arm in config.run:
                entered, directory = time.perf_counter(), None
                for depth, name in enumerate(config.arms[arm]):
                    if name == IMPORT:
                        continue  # its files are read by the stages after it
                    chain = config.arms[arm][: depth + 1]
                    directory = run_stage(config, workdir, data, here, chain, seed, directory)
                    stages[f"{' > '.join(chain)} seed {seed}"] = directory
                # An arm without a trained stage is the same model on every seed: it is one result and not one a seed.
                whose = arm, seed if directory else None
                evaluations[whose] = evaluate(config, workdir, data, mesh, directory, f"{arm} seed {seed}" if directory else arm)
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
    evaluations: dict[tuple[str, int | None], dict[str, Path]],
    outside: float,
) -> None:
    """Collects results and answers, and writes and prints the report; `outside` are the seconds not spent in a stage or an eval."""
    directories = [directory for made in evaluations.values() for directory in made.values()]
    for name in ("results.jsonl", "answers.jsonl"):
        lines = (
            {"arm": arm, "seed": seed, **line}
            for (arm, seed), made in evaluations.items()
            for directory in made.values()
            for line in artifact.read_jsonl(directory / name)
            if "bits" not in line  # of which there is one a row
        )
        artifact.write_jsonl(run_directory / name, lines)
    artifact.write_text(run_directory / "config.json", config.source + "\n")
    seconds = _seconds([*stages.values(), *directories], outside)
    said = {
        "seconds": seconds,
        "stages": {label: directory.name for label, directory in stages.items()},
        "evals": [directory.name for directory in directories],
        "versions": {**_versions(config), "answers": answers_hash(directory.name for directory in directories)},
        "computed": {label: artifact.read_manifest(directory)["computed"] for label, directory in stages.items()},
    }
    artifact.write_json(run_directory / "run.json", said)
    findings = read_findings(config, data, workdir, run_directory)
    artifact.write_jsonl(run_directory / "comparisons.jsonl", map(dataclasses.asdict, findings.compared))
    html.write(findings, run_directory / "report.html")
    artifact.write_manifest(run_directory, _identity(config, data), {})
    table.print_table(findings)
    total = sum(seconds.values())
    spent = ", ".join(f"{phase} {taken / total:.0%}" for phase, taken in seconds.items() if phase != "step")
    print(f"{seconds['step'] / total:.0%} of {total:,.0f} s trained ({spent})")
    print(f"report: {run_directory / 'report.html'}")


def _prove_attention(config: ExperimentConfig) -> None:
    """Raises BadInput where the back end of attention, on a device of this process, lets anything pass between documents."""
    model = fit.model_here(config)
    if model.attention != "xla":  # our own: the tests prove it
        device = jax.local_devices()[0]
        attention.prove(model.attention, model.heads, model.kv_heads, model.head_dim, model.compute_dtype, device)


def _seconds(made: list[Path], outside: float) -> dict[str, float]:
    """Where the time of an experiment went, by phase; what an earlier run made counts with the seconds it took then."""
    spent = [artifact.read_manifest(directory)["seconds"] for directory in dict.fromkeys(made)]
    phases = ("step", "compile", "data", "checkpoint", "lost", "eval", "rest")
    seconds = {phase: sum(one.get(phase, 0.0) for one in spent) for phase in phases}
    return {**seconds, "rest": seconds["rest"] + outside}


def _identity(config: ExperimentConfig, data: Data) -> dict:
    made = {"tokenizer": data.tokenizer.name, "items": [items.name for items in data.items.values() if items]}
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
