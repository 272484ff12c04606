"""The one loop that pretrains, midtrains and fine-tunes.

In: a stage (its config, its mixture, its parent's parameters, a seed). Out: a stage directory with checkpoints,
`metrics.jsonl`, TensorBoard events and, once it is finished, a manifest. Interrupted, it continues from its last checkpoint.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import mixture as mixtures
from msmjax.data.mixture import Mixture
from msmjax.model.transformer import ModelConfig
from msmjax.training import checkpoint, sharding
from msmjax.training import step as steps
from msmjax.training.step import StepConfig

FEWEST_UPDATES = 20  # below this, a stage has hardly begun: reproductions took such a null for a result


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """What a stage trains on and how long: `data` is ((corpus, share of the rows), ...)."""

    data: tuple[tuple[str, float], ...]
    steps: int
    batch_rows: int  # global, before it is cut into micro-batches
    learning_rate: float
    warmup_steps: int
    final_learning_rate: float  # as a share of learning_rate
    allow_few_updates: bool

    def __post_init__(self):
        if self.steps < FEWEST_UPDATES and not self.allow_few_updates:
            raise BadInput(
                f"steps={self.steps}: fewer than {FEWEST_UPDATES} updates train too little to conclude from; "
                "raise steps, lower batch_rows, or set allow_few_updates"
            )
        if not all(isinstance(part, tuple) and [type(x) for x in part] in ([str, float], [str, int]) for part in self.data):
            raise BadInput(f"data={self.data!r}: must be ((corpus, share), ...), e.g. (('base', 1.0),)")
        fewest = 1 / mixtures.CYCLE
        if not self.data or any(share < fewest for _, share in self.data) or abs(sum(s for _, s in self.data) - 1) > 1e-6:
            raise BadInput(f"data={self.data}: shares must be at least {fewest} and sum to 1")
        if self.batch_rows < 1 or self.steps < 1:
            raise BadInput(f"steps={self.steps}, batch_rows={self.batch_rows}: both must be at least 1")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """How often the loop reports and saves, in steps; nothing that is computed depends on it."""

    metrics_every: int
    checkpoint_every: int

    def __post_init__(self):
        for name in ("metrics_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise BadInput(f"log.{name}={getattr(self, name)}: must be at least 1")


def train(
    directory: Path,
    label: str,
    model: ModelConfig,
    step_config: StepConfig,
    stage: StageConfig,
    log: LogConfig,
    mixture: Mixture,
    mesh: jax.sharding.Mesh,
    parent: Path | None,
    seed: int,
) -> dict:
    """Trains the stage to its end and returns what its manifest says. Raises FloatingPointError, naming step and batch,
    where the loss is not finite."""
    started, compiled = time.perf_counter(), COMPILE_SECONDS[0]
    check_batch(stage, step_config, mesh)
    abstract, shardings = steps.state_shardings(model, step_config, mesh)
    abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    directory.mkdir(parents=True, exist_ok=True)

    with checkpoint.open_manager(directory) as manager:
        # Where the state comes from: 1. this stage's own checkpoint; 2. its parent's parameters; 3. the seed.
        if manager.latest_step() is not None:
            state = checkpoint.restore(manager, abstract)
            tqdm.write(f"{label}: continues from step {int(state['step'])}", file=sys.stderr)
        else:
            state = steps.compile_init(model, step_config, mesh)(jax.random.key(seed))
            if parent is not None:
                state = {**state, "params": checkpoint.restore_params(parent, abstract)}
        first = int(state["step"])
        update = steps.compile_step(model, step_config, mesh)
        metrics_path = directory / "metrics.jsonl"
        lines = [line for line in artifact.read_jsonl(metrics_path) if line["step"] <= first] if metrics_path.exists() else []
        waiting: list[tuple[int, dict]] = []  # steps whose metrics have not been fetched from the devices
        tokens_per_step = stage.batch_rows * len(mixture.sources[0][0]["tokens"])
        with (
            _open_tensorboard(directory) as tensorboard,
            tqdm(total=stage.steps, initial=first, desc=label, unit="step", mininterval=_interval(), leave=False) as bar,
        ):
            clock, last = time.perf_counter(), first
            for step in range(first, stage.steps):

                def read(start, stop, step=step):
                    return mixtures.batch(mixture, step, stage.batch_rows, start, stop)

                batch = sharding.place_batch(mesh, stage.batch_rows, read)
                rate = steps.learning_rate(step, stage.steps, stage.learning_rate, stage.warmup_steps, stage.final_learning_rate)
                state, metrics = update(state, batch, np.float32(rate))
                waiting.append((step, {**metrics, "learning_rate": rate}))
                done = step + 1
                is_last, is_save = done == stage.steps, done % log.checkpoint_every == 0
                if done % log.metrics_every and not is_last and not is_save:
                    continue
                fetched = [_line(at, jax.device_get(values)) for at, values in waiting]
                waiting = []
                _refuse_not_finite(label, fetched, mixture, stage)
                now = time.perf_counter()
                speed = (done - last) * tokens_per_step / (now - clock)
                lines.append({**fetched[-1], "tokens": done * tokens_per_step, "tokens_per_second": round(speed),
                              "seconds": round(now - started, 3)})  # fmt: skip
                for name, value in lines[-1].items():
                    tensorboard.add_scalar(name, value, done)
                bar.set_postfix_str(f"loss {fetched[-1]['loss']:.3f}, {speed:,.0f} tokens/s", refresh=False)
                bar.update(done - last)
                clock, last = now, done
                if is_save or is_last:
                    artifact.write_jsonl(metrics_path, lines)
                    checkpoint.save(manager, state)
    compile_seconds = COMPILE_SECONDS[0] - compiled
    seconds = time.perf_counter() - started
    return {
        "label": label,
        "steps": stage.steps,
        "tokens": stage.steps * tokens_per_step,
        "epochs": mixtures.epochs(mixture, stage.steps * stage.batch_rows),
        "seconds": {"compile": round(compile_seconds, 3), "train": round(seconds - compile_seconds, 3)},
        "final": lines[-1],
    }


def check_batch(stage: StageConfig, step_config: StepConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises BadInput where the batch does not divide over micro-batches and devices."""
    if stage.batch_rows % step_config.micro_batches:
        raise BadInput(f"batch_rows={stage.batch_rows}: must be a multiple of optimizer.micro_batches={step_config.micro_batches}")
    sharding.check_divides(mesh, "B", stage.batch_rows // step_config.micro_batches, "a micro-batch")


# Seconds this process has spent tracing and compiling, summed by JAX's own monitoring.
COMPILE_SECONDS = [0.0]


def _add_compile_seconds(event: str, seconds: float, **_) -> None:
    if event.startswith("/jax/core/compile"):
        COMPILE_SECONDS[0] += seconds


jax.monitoring.register_event_duration_secs_listener(_add_compile_seconds)


def _line(step: int, values: dict) -> dict:
    return {"step": step + 1, **{name: float(value) for name, value in values.items()}}


def _refuse_not_finite(label: str, fetched: list[dict], mixture: Mixture, stage: StageConfig) -> None:
    for line in fetched:
        if not np.isfinite([line["loss"], line["gradient_norm"]]).all():
            step = int(line["step"]) - 1
            rows = [mixtures.locate(mixture, step * stage.batch_rows + row) for row in range(stage.batch_rows)]
            named = json.dumps([f"{stage.data[source][0]}[{row}]" for source, row in rows])
            raise FloatingPointError(
                f"{label}: loss {line['loss']}, gradient norm {line['gradient_norm']} at step {step}; its rows: {named}"
            )


def _interval() -> float:
    """Seconds between updates of the progress bar: rare where they are lines of a log."""
    return 0.2 if sys.stderr.isatty() else 15.0


def _open_tensorboard(directory: Path):
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(directory / "tensorboard"))
