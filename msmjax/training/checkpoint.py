"""Checkpoints: orbax directories of params, optimizer state and step, each sealed when it is complete.

In: a train state. Out: `checkpoints/<step>/` with the items `params`, `optimizer` and `step`, and `seal.json`, which names every
file of its items with size and sha256. Orbax takes any directory with a number for a name to be a checkpoint, an empty or a
half-copied one too; here only what its seal vouches for is one. Leaves are restored to whatever sharding is asked for.
"""

import functools
import json
import shutil
import sys
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from msmjax import artifact
from msmjax.training import processes

KEEP = 2  # the latest, and the one before it, should the latest turn out damaged
SEAL = "seal.json"


def open_manager(directory: Path) -> ocp.CheckpointManager:
    """The manager of a stage's checkpoints; saves are asynchronous, `close` waits for them and raises what failed.

    What is no whole checkpoint is set aside first, so that the latest step is the last good one.
    """
    checkpoints = (directory / "checkpoints").resolve()
    if processes.is_first():
        checkpoints.mkdir(parents=True, exist_ok=True)
        _set_aside_damaged(checkpoints)
    processes.wait_for_all("checkpoints are checked")
    seal = functools.partial(_seal_new, checkpoints) if processes.is_first() else None
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEEP,
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=seal),
    )
    return ocp.CheckpointManager(checkpoints, options=options)


def save(manager: ocp.CheckpointManager, state: dict) -> None:
    """Starts saving the state under its step. Raises what went wrong with the save before it."""
    step = int(state["step"])
    manager.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state["params"]),
            optimizer=ocp.args.StandardSave(state["optimizer"]),
            step=ocp.args.JsonSave(step),
        ),
    )


def restore(manager: ocp.CheckpointManager, step: int, abstract: dict) -> dict:
    """The state of `step`, each leaf with the shape, dtype and sharding of `abstract`."""
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract["params"]),
            optimizer=ocp.args.StandardRestore(abstract["optimizer"]),
            step=ocp.args.JsonRestore(),
        ),
    )
    step = jax.device_put(jax.numpy.int32(restored["step"]), abstract["step"].sharding)
    return {"params": restored["params"], "optimizer": restored["optimizer"], "step": step}


def restore_params(directory: Path, abstract: dict) -> dict:
    """The parameters of a finished stage: those of its last step and no other."""
    last = artifact.read_manifest(directory)["steps"]
    with ocp.CheckpointManager((directory / "checkpoints").resolve()) as manager:
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
        return manager.restore(last, args=args)["params"]


def last_good_step(directory: Path) -> int | None:
    """The step of the latest whole checkpoint of a stage, None where there is none; every byte of it was read."""
    steps = sorted((int(path.name) for path in (directory / "checkpoints").glob("*") if path.name.isdigit()), reverse=True)
    return next((step for step in steps if not damage(directory / "checkpoints" / str(step))), None)


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint directory, in words; empty where every file is as its seal says."""
    try:
        seal = dict(json.loads((checkpoint / SEAL).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        seal = {}
    if not seal:
        return f"{SEAL} is missing or broken"
    for name, (size, digest) in seal.items():
        path = checkpoint / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            if artifact.file_hash(path) != digest:
                return f"{name} has other content than was saved"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def _set_aside_damaged(checkpoints: Path) -> None:
    """Moves what is no whole checkpoint to `damaged.<name>` beside `checkpoints`, and says so.

    Saves that were cut off, and steps before the last good one whose deletion was, are removed.
    """
    good = last_good_step(checkpoints.parent)
    for path in sorted(path for path in checkpoints.iterdir() if path.is_dir()):
        if not path.name.isdigit() or (good is not None and int(path.name) < good and damage(path)):
            shutil.rmtree(path)
        elif (good is None or int(path.name) > good) and (wrong := damage(path)):
            aside = checkpoints.parent / f"damaged.{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            back = "starts over" if good is None else f"falls back to step {good}"
            print(f"{path}: damaged checkpoint ({wrong}); {back}; what is left of it: {aside}", file=sys.stderr)


def _seal_new(checkpoints: Path) -> None:
    """Seals the one checkpoint that is complete, but not yet renamed to its number: it gets its name and its seal at once."""
    for path in checkpoints.iterdir():
        if not path.name.isdigit():
            # Of the items alone: orbax still adds the time of the commit to its metadata beside them, and reads without it.
            files = sorted(file for file in path.glob("*/**/*") if file.is_file())
            seal = {file.relative_to(path).as_posix(): (file.stat().st_size, artifact.file_hash(file)) for file in files}
            artifact.write_json(path / SEAL, seal)
