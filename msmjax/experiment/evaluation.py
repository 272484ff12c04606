"""The evaluation of an arm: what its last checkpoint, or the imported model, answers and scores; each eval once.

In: a config, its data and the directory of a finished stage. Out: for each eval an artifact with `answers.jsonl` and
`results.jsonl`.
"""

import dataclasses
import functools
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from msmjax import artifact, fit
from msmjax.config import IMPORT, ExperimentConfig
from msmjax.corpus.provider import inspect_model
from msmjax.corpus.teacher_config import LOCAL, RECORDED
from msmjax.evals import results
from msmjax.evals.arm import Arm
from msmjax.evals.eval import EXPORT
from msmjax.experiment import export
from msmjax.experiment.data import Data, makers_of, read_items, source_of
from msmjax.training import loop, processes, weights

# What computes answers, beside the file of the eval's kind and the ROOMS that it names: of the rooms to the left, what asks and
# what computes; rows are named by their content.
ROOMS = (
    *("data/chat.py", "data/tokenizer.py", "generation", "model"),
    *(f"evals/{room}.py" for room in ("arm", "eval", "prompt", "results", "scoring", "statistics")),
    *("training/sharding.py", "training/step.py", "training/weights.py"),
)
ROOMS_OF_WEIGHTS = ("data/huggingface.py", "data/proof.py", "data/template.py")  # and where the tokenizer is a published model's


def eval_inputs(config: ExperimentConfig, workdir: Path, data: Data, name: str, stage: Path | None, said: bool = False) -> dict:
    """Everything that the answers to an eval depend on; or, of its own settings, only what decides about what is `said`."""
    one, items = config.evals[name], data.items[name]
    kind = sys.modules[type(one).__module__]
    rooms = (f"evals/{Path(kind.__file__).name}", *getattr(kind, "ROOMS", ()))
    return {
        "checkpoint": stage.name if stage else artifact.read_manifest(data.weights)["content"],
        "eval": {"name": name, **(one.asks if said else one.depends)(makers_of(config, workdir))},
        "items": artifact.files_hash(items, "items.jsonl") if items else None,
        "prompt": {**dataclasses.asdict(data.prompt), "who": config.assistant.name},
        "rows": {corpus: artifact.read_manifest(data.rows[corpus])["content"] for corpus in one.reads()},
        "tokenizer": data.tokenizer.name,
        "model": dataclasses.asdict(config.model),
        "code": artifact.code_hash(*rooms, *ROOMS, *(ROOMS_OF_WEIGHTS if config.weights else ())),
    }


def eval_path(config: ExperimentConfig, workdir: Path, data: Data, name: str, stage: Path | None) -> Path:
    """Where the artifact of a stage's answers to an eval is, or will be."""
    return artifact.path(workdir / "evals", _name(name, stage), eval_inputs(config, workdir, data, name, stage))


def check_needs(config: ExperimentConfig, names: Iterable[str] | None = None) -> None:
    """Raises BadInput where packages or code lack that it takes to ask the evals, or those of `names`."""
    for name in names or config.evals:
        config.evals[name].needs(name)


def check_judges(config: ExperimentConfig, names: Iterable[str]) -> None:
    """Raises BadInput where a judge of these evals cannot be called from here: for want of a package, or of a key."""
    for judge in dict.fromkeys(judge for name in names for judge in config.evals[name].judges()):
        teacher = config.teachers[judge]
        if teacher.model != RECORDED and not teacher.model.startswith(LOCAL):
            inspect_model(teacher)


def unasked(config: ExperimentConfig, workdir: Path, data: Data, stages: Iterable[Path | None]) -> list[str]:
    """The evals that stages were not asked yet, once for each stage."""
    return [name for stage in stages for name in config.evals if not eval_path(config, workdir, data, name, stage).exists()]


def answers_hash(names: Iterable[str]) -> str:
    """Of the names of artifacts of answers: other code, data or settings that decide about an answer give another."""
    return artifact.content_hash(sorted(set(names)))


def _name(name: str, stage: Path | None) -> str:
    return f"{stage.name.rpartition('-')[0] if stage else IMPORT}-{name}"


def evaluate(
    config: ExperimentConfig, workdir: Path, data: Data, mesh, stage: Path | None, label: str, names: Iterable[str] | None = None
) -> dict[str, Path]:
    """For each eval, or for those of `names`, the artifact of answers and results of a stage's checkpoint, or of the imported
    weights themselves; `label` is what progress bars call it."""
    model, makers = fit.model_here(config), makers_of(config, workdir)

    @functools.cache
    def load() -> dict:
        return weights.whole(model, config.optimizer, mesh, source_of(config), stage)

    made = {}
    for name in names or config.evals:
        whose = config, workdir, data, name, stage
        inputs, final = eval_inputs(*whose), eval_path(*whose)
        said = artifact.path(workdir / "evals", f"begun.{_name(name, stage)}", eval_inputs(*whose, said=True))
        measured = None
        if not processes.first_says(final.exists):
            started, compiled = time.perf_counter(), loop.COMPILE_SECONDS[0]
            arm = Arm(
                model=model, load=load, mesh=mesh, tokenizer=data.tokenizer, prompt=data.prompt, who=config.assistant.name,
                rows=data.rows, judge=lambda judge: makers.open_teacher(config.teachers[judge], makers.journals),
                folder=said, label=f"{label}: {name}",
            )  # fmt: skip
            if config.evals[name].exports():
                export.for_server(config, data, stage, arm.folder / EXPORT)
            items = read_items({name: data.items[name]})[name]
            answers = config.evals[name].answer(name, items, arm)
            compile_seconds = loop.COMPILE_SECONDS[0] - compiled
            seconds = {"compile": compile_seconds, "eval": time.perf_counter() - started - compile_seconds}
            measures = config.evals[name].measures(name, items)
            measured = answers, results.lines(answers, measures), seconds
            if processes.is_first():
                for one in measures.keys() - {line["eval"] for line in measured[1]}:
                    print(f"{label}: {one}: no answer has a score")

        def build(directory: Path, measured=measured) -> dict:
            answers, lines, seconds = measured
            artifact.write_jsonl(directory / "answers.jsonl", answers)
            artifact.write_jsonl(directory / "results.jsonl", lines)
            return {"seconds": seconds}

        def write(name=name, inputs=inputs, build=build) -> Path:
            return artifact.make(workdir / "evals", _name(name, stage), inputs, build)

        made[name] = processes.first_then_others("the eval is written", write)
        if processes.is_first():
            shutil.rmtree(said, ignore_errors=True)
    return made
