"""Stages: each is trained once, in a directory named by what it depends on, and found there again.

In: a config, its data, the chain of stages to train and the directory of the parent. Out: the directory of a finished stage: its
checkpoints, its log, and a manifest.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from msmjax import artifact, fit
from msmjax.artifact import BadInput
from msmjax.config import IMPORT, ExperimentConfig
from msmjax.experiment.data import Data, mixture_of, source_of
from msmjax.machine import Machine
from msmjax.model import attention
from msmjax.training import checkpoint, loop, processes


def run_stage(
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
    mixture = mixture_of(config, data, name, seed)
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
    read = [[artifact.read_manifest(data.rows[corpus])["content"], share] for corpus, share in stage.data]
    return {
        "stage": {**dataclasses.asdict(stage), "data": read},
        "model": dataclasses.asdict(config.model),
        "optimizer": dataclasses.asdict(config.optimizer),
        "seed": seed,
        "weights": artifact.read_manifest(data.weights)["content"] if data.weights else None,
        "parent": parent.name if parent else None,
        "code": artifact.code_hash("model", "training", "data/mixture.py"),
    }


def _stage_path(workdir: Path, name: str, seed: int, inputs: dict) -> Path:
    return artifact.path(workdir / "stages", f"{name}-seed{seed}", inputs)


def to_do(config: ExperimentConfig, workdir: Path, data: Data) -> tuple[list[str], list[Path | None]]:
    """Of an experiment, the stages that are not finished, by name, once for each seed and each parent; and the last stage of each
    arm and seed, finished or not, None where that is the imported model."""
    unfinished, last = {}, []
    for seed in config.seeds:
        for arm in config.run:
            directory = None
            for name, inputs, directory in chain_of(config, workdir, data, arm, seed):
                if directory not in unfinished and not _is_finished(directory, inputs, config.stages[name].steps):
                    unfinished[directory] = name
            last.append(directory)
    return list(unfinished.values()), list(dict.fromkeys(last))


def find_arm(config: ExperimentConfig, workdir: Path, data: Data, arm: str, seed: int) -> Path | None:
    """The finished last stage of an arm, None where that is the imported model itself; BadInput where it was not trained yet."""
    directory = None
    for name, inputs, directory in chain_of(config, workdir, data, arm, seed):
        if not _is_finished(directory, inputs, config.stages[name].steps):
            raise BadInput(f"{directory}: stage {name!r} of arm {arm!r} is not trained yet; run the experiment first")
    return directory


def chain_of(config: ExperimentConfig, workdir: Path, data: Data, arm: str, seed: int) -> Iterator[tuple[str, dict, Path]]:
    """The trained stages of an arm in order, each with what it depends on and its directory, whether they are there or not."""
    directory = None
    for name in config.arms[arm]:
        if name != IMPORT:
            inputs = _stage_inputs(config, data, name, seed, directory)
            directory = _stage_path(workdir, name, seed, inputs)
            yield name, inputs, directory


def _is_finished(directory: Path, inputs: dict, last_step: int) -> bool:
    """Whether a stage was trained to its end and its last checkpoint is whole; one that is not is trained again from the last
    that is. Raises BadInput where its manifest says other inputs."""
    if not (directory / artifact.MANIFEST).exists():
        return False
    artifact.read_manifest(directory, inputs)
    return checkpoint.last_good_step(directory) == last_step
