"""The evaluation of an arm: what its last checkpoint, or the imported model, answers and scores; measured once.

In: a config, its data and the directory of a finished stage. Out: an artifact with `answers.jsonl` and `results.jsonl`.
"""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

from msmjax import artifact, fit
from msmjax.config import IMPORT, ExperimentConfig
from msmjax.data import rows
from msmjax.evals import base_text, forced_choice, results
from msmjax.experiment.data import Data, source_of
from msmjax.training import loop, processes, weights

# What computes answers: of the rooms to the left, what asks and what computes; rows are named by their content.
ROOMS = (
    *("data/chat.py", "data/tokenizer.py", "evals", "model"),
    *("training/sharding.py", "training/step.py", "training/weights.py"),
)
ROOMS_OF_WEIGHTS = ("data/huggingface.py", "data/proof.py", "data/template.py")  # and where the tokenizer is a published model's


def eval_inputs(config: ExperimentConfig, data: Data, stage: Path | None) -> dict:
    """Everything that answers depend on."""
    return {
        "checkpoint": stage.name if stage else artifact.read_manifest(data.weights)["content"],
        "items": artifact.files_hash(data.items, "items.jsonl"),
        "prompt": dataclasses.asdict(data.prompt),
        "base_text": artifact.read_manifest(data.rows[config.evals.base_text])["content"],
        "tokenizer": data.tokenizer.name,
        "model": dataclasses.asdict(config.model),
        "code": artifact.code_hash(*ROOMS, *(ROOMS_OF_WEIGHTS if config.weights else ())),
    }


def eval_path(config: ExperimentConfig, workdir: Path, data: Data, stage: Path | None) -> Path:
    """Where the artifact of a stage's answers is, or will be."""
    return artifact.path(workdir / "evals", _name(stage), eval_inputs(config, data, stage))


def answers_hash(names: Iterable[str]) -> str:
    """Of the names of artifacts of answers: other code, data or settings that decide about an answer give another."""
    return artifact.content_hash(sorted(set(names)))


def _name(stage: Path | None) -> str:
    return stage.name.rpartition("-")[0] if stage else IMPORT


def evaluate(config: ExperimentConfig, workdir: Path, data: Data, mesh, stage: Path | None) -> Path:
    """The artifact of the answers and results of a stage's checkpoint, or of the imported weights themselves."""
    inputs, final = eval_inputs(config, data, stage), eval_path(config, workdir, data, stage)
    measured = None
    if not processes.first_says(final.exists):
        started, compiled = time.perf_counter(), loop.COMPILE_SECONDS[0]
        model = fit.model_here(config)
        params = weights.whole(model, config.optimizer, mesh, source_of(config), stage)
        items = artifact.read_jsonl(data.items / "items.jsonl")
        answers = forced_choice.answer(items, data.prompt, model, params, mesh, data.tokenizer)
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

    return processes.first_then_others("the eval is written", lambda: artifact.make(workdir / "evals", _name(stage), inputs, build))
