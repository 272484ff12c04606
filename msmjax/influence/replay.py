"""A stage trained again: to look at it on the way, and without some of its documents.

In: a stage, its mixture and where it starts. Out: its state before chosen steps, and what is trained where segments of rows are
left out. What a stage computes follows from what it is given, so nothing needs to have been kept of it.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from msmjax.data import mixture as mixtures
from msmjax.data.mixture import Mixture
from msmjax.model.transformer import ModelConfig
from msmjax.training import sharding, weights
from msmjax.training import step as steps
from msmjax.training.loop import IN_FLIGHT, StageConfig
from msmjax.training.step import StepConfig
from msmjax.training.weights import Source


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """What training/loop.py trains: the stage, where it starts, and the seed."""

    model: ModelConfig
    optimizer: StepConfig
    settings: StageConfig
    mixture: Mixture
    mesh: Mesh
    source: Source | None
    parent: Path | None
    seed: int

    def initial_state(self) -> dict:
        return weights.initial_state(self.model, self.optimizer, self.mesh, self.source, self.parent, self.seed)

    def rate(self, step: int) -> float:
        of = self.settings
        return steps.learning_rate(step, of.steps, of.learning_rate, of.warmup_steps, of.final_learning_rate)


def states(stage: Stage, base: dict, wanted: list[int], label: str) -> Iterator[tuple[int, dict]]:
    """(step, state before it) for each wanted step, in order; the number of steps stands for the end. A state is given up when the
    next is asked for."""
    update = steps.compile_step(stage.model, stage.optimizer, stage.mesh)
    state, rows = stage.initial_state(), stage.settings.batch_rows
    waiting: list = []
    with tqdm(total=max(wanted), desc=label, unit="step", leave=False, disable=None) as bar:
        for step in range(max(wanted) + 1):
            if step in wanted:
                yield step, state
            if step == max(wanted):
                return

            def read(start, stop, step=step):
                return mixtures.batch(stage.mixture, step, rows, start, stop)

            batch = sharding.place_batch(stage.mesh, rows, read)
            state, metrics = update(state, base, batch, np.float32(stage.rate(step)))
            waiting.append(metrics["loss"])
            if len(waiting) > IN_FLIGHT:
                jax.block_until_ready(waiting.pop(0))
            bar.update()


def without(stage: Stage, base: dict, removed: list[dict[tuple[int, int], set[int]]], label: str) -> list[dict]:
    """What the stage trains, for each subset, where the segments `removed[subset][source, row]` predict nothing: all else, and all
    other batches, are as they were.

    The models of all subsets take each step one after the other: with `vmap`, a CPU takes 1.4 to 1.7 times as long (LOG.md).
    """
    update = steps.compile_step(stage.model, stage.optimizer, stage.mesh)
    models, rows = [stage.initial_state() for _ in removed], stage.settings.batch_rows
    for step in tqdm(range(stage.settings.steps), desc=label, unit="step", leave=False, disable=None):
        batch = mixtures.batch(stage.mixture, step, rows)
        places = [mixtures.locate(stage.mixture, step * rows + row) for row in range(rows)]
        for index, of_subset in enumerate(removed):
            mask_BT = batch["loss_mask"].copy()
            for row, place in enumerate(places):
                if gone := of_subset.get(place):
                    mask_BT[row] &= ~np.isin(batch["segment_ids"][row], list(gone))
            own = {**batch, "loss_mask": mask_BT}
            placed = sharding.place_batch(stage.mesh, rows, lambda a, b, own=own: {name: x[a:b] for name, x in own.items()})
            models[index], metrics = update(models[index], base, placed, np.float32(stage.rate(step)))
        jax.block_until_ready(metrics["loss"])
    return [state["params"] for state in models]
