"""Checkpoints: orbax directories of params, optimizer state and step, and what is read back from them.

In: a train state. Out: `checkpoints/<step>/` with the items `params`, `optimizer` and `step`; leaves are restored to whatever
sharding is asked for.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

KEEP = 2  # the latest, and the one before it while the latest is being written


def open_manager(directory: Path) -> ocp.CheckpointManager:
    """The manager of a stage's checkpoints; saves are asynchronous, `close` waits for them."""
    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, enable_async_checkpointing=True)
    return ocp.CheckpointManager((directory / "checkpoints").resolve(), options=options)


def save(manager: ocp.CheckpointManager, state: dict) -> None:
    """Starts saving the state under its step."""
    step = int(state["step"])
    manager.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state["params"]),
            optimizer=ocp.args.StandardSave(state["optimizer"]),
            step=ocp.args.JsonSave(step),
        ),
    )


def restore(manager: ocp.CheckpointManager, abstract: dict) -> dict:
    """The latest state, each leaf with the shape, dtype and sharding of `abstract`."""
    restored = manager.restore(
        manager.latest_step(),
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract["params"]),
            optimizer=ocp.args.StandardRestore(abstract["optimizer"]),
            step=ocp.args.JsonRestore(),
        ),
    )
    step = jax.device_put(jax.numpy.int32(restored["step"]), abstract["step"].sharding)
    return {"params": restored["params"], "optimizer": restored["optimizer"], "step": step}


def restore_params(directory: Path, abstract: dict) -> dict:
    """The parameters of a finished stage's last checkpoint."""
    with open_manager(directory) as manager:
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract["params"]))
        return manager.restore(manager.latest_step(), args=args)["params"]
