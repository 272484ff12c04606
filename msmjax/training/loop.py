"""The one loop that pretrains, midtrains and fine-tunes.

In: a stage (its config, its mixture, its parent's parameters, a seed). Out: a stage directory with checkpoints,
`metrics.jsonl`, TensorBoard events and, once it is finished, a manifest. Interrupted, it continues from its last checkpoint.
"""

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from msmjax import artifact
from msmjax.artifact import BadInput, Diverged
from msmjax.data import mixture as mixtures
from msmjax.data.mixture import Mixture
from msmjax.model import attention
from msmjax.model.transformer import ModelConfig
from msmjax.ranges import Count, Natural, Positive, Share
from msmjax.training import checkpoint, preemption, processes, sharding, weights
from msmjax.training import step as steps
from msmjax.training.step import StepConfig
from msmjax.training.weights import Source

PHASES = ("compile", "data", "step", "checkpoint")
# Steps that the host may be ahead of the devices: enough to keep them busy. With hundreds, batches pile up, and several CPU devices
# of one process wait for each other for ever.
IN_FLIGHT = 8
FEWEST_UPDATES = 20  # below this, a stage has hardly begun: reproductions took such a null for a result


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """What a stage trains on and how long: `data` is ((corpus, share of the rows), ...).

    Stages of one `shuffle` read what they share in the same order; two of one arm that share a corpus have different ones.
    """

    data: tuple[tuple[str, Positive], ...]
    shuffle: Natural
    steps: Count
    batch_rows: Count  # of a step, global, before it is cut into micro-batches; in a config, tokens_per_step says it
    learning_rate: Positive
    warmup_steps: Natural
    final_learning_rate: Share  # as a share of learning_rate
    allow_few_updates: bool

    def __post_init__(self):
        if self.steps < FEWEST_UPDATES and not self.allow_few_updates:
            raise BadInput(
                f"steps={self.steps}: fewer than {FEWEST_UPDATES} updates train too little to conclude from; "
                "raise steps, lower tokens_per_step, or set allow_few_updates"
            )
        if abs(sum(share for _, share in self.data) - 1) > 1e-6:
            raise BadInput(f"data={self.data}: must be ((corpus, share), ...), shares that sum to 1")
        rows = self.steps * self.batch_rows
        if never := [corpus for corpus, share in self.data if share * rows < 1]:
            raise BadInput(f"data={self.data}: of {rows:,} rows, none is of {', '.join(never)}; raise its share, or leave it out")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """How often the loop reports and saves, in steps; nothing that is computed depends on it."""

    metrics_every: Count
    checkpoint_every: Count


def train(
    directory: Path,
    label: str,
    model: ModelConfig,
    step_config: StepConfig,
    stage: StageConfig,
    log: LogConfig,
    mixture: Mixture,
    mesh: jax.sharding.Mesh,
    source: Source | None,
    parent: Path | None,
    seed: int,
) -> dict:
    """Trains the stage to its end and returns what its manifest says; `weights.initial_state` says where it starts.

    Raises Diverged, naming step and batch, where the loss is not finite, BadInput where a batch has nothing to learn, and
    Preempted after SIGTERM or Ctrl-C, once the state is saved.
    """
    check_batch(stage, step_config, mesh)
    clock = Clock()
    directory.mkdir(parents=True, exist_ok=True)

    with preemption.saving(), checkpoint.open_manager(directory) as manager:
        first = processes.first_says(lambda: manager.latest_step() or 0)
        with clock.spend("checkpoint"):
            if first:
                state = checkpoint.restore(manager, first, steps.abstract_state(model, step_config, mesh))
            else:
                state = weights.initial_state(model, step_config, mesh, source, parent, seed)
            base = weights.base(model, mesh, source)
        # cuDNN alone is compiled for a number of segments; for the others, stages share what is compiled whatever their rows have.
        length = len(mixture.sources[0][0]["tokens"])
        segments = attention.place_for(mixture.segments, length) if mixture.segments and model.attention == "cudnn" else 0
        update = steps.compile_step(model, step_config, mesh, segments)
        tokens_per_step = stage.batch_rows * length
        with (
            _Log(directory, first, clock) as log_file,
            tqdm(total=stage.steps, initial=first, desc=label, unit="step", mininterval=_interval(), leave=False,
                 disable=not processes.is_first()) as bar,
        ):  # fmt: skip
            if first and processes.is_first():
                tqdm.write(f"{label}: continues from step {first}; {clock.lost_now:.0f} s of work lost", file=sys.stderr)
            waiting: list[tuple[int, dict]] = []  # steps whose metrics have not been fetched from the devices
            then, last = time.perf_counter(), first
            for step in range(first, stage.steps):

                def read(start, stop, step=step):
                    rows = mixtures.batch(mixture, step, stage.batch_rows, start, stop)
                    attention.check_segments(model.attention, rows["segment_ids"], segments)
                    return rows

                with clock.spend("data"):
                    batch = sharding.place_batch(mesh, stage.batch_rows, read)
                rate = steps.learning_rate(step, stage.steps, stage.learning_rate, stage.warmup_steps, stage.final_learning_rate)
                with clock.spend("step"):
                    if len(waiting) >= IN_FLIGHT:
                        jax.block_until_ready(waiting[-IN_FLIGHT][1])
                    state, metrics = update(state, base, batch, np.float32(rate))
                waiting.append((step, {**metrics, "learning_rate": rate}))
                done = step + 1
                is_last = done == stage.steps
                is_save = done % log.checkpoint_every == 0 or is_last
                is_pause = is_save or done % log.metrics_every == 0
                # All processes stop after the same step: they ask each other where they wait for the devices anyway.
                stop = processes.largest(preemption.requested()) if is_pause or jax.process_count() == 1 else 0
                if not (is_pause or stop):
                    continue
                with clock.spend("step"):
                    lines = [_line(at, jax.device_get(values)) for at, values in waiting]
                waiting = []
                _refuse(label, lines, mixture, stage)
                now = time.perf_counter()
                speed = (done - last) * tokens_per_step / (now - then)
                lines[-1] |= {"tokens": done * tokens_per_step, "tokens_per_second": round(speed), "seconds": clock.read()}
                log_file.write(lines)
                bar.set_postfix_str(
                    f"loss {lines[-1]['loss']:.3f}, {speed:,.0f} tokens/s, {clock.goodput():.0%} training", refresh=False
                )
                bar.update(done - last)
                then, last = now, done
                if is_save or stop:
                    with clock.spend("checkpoint"):
                        checkpoint.save(manager, state)
                if stop and not is_last:
                    with clock.spend("checkpoint"):
                        manager.wait_until_finished()
                    raise preemption.stopped(stop, f"{label}: ", f", saved at step {done}")
        with clock.spend("checkpoint"):
            manager.wait_until_finished()
    return {
        "label": label,
        "steps": stage.steps,
        "tokens": stage.steps * tokens_per_step,
        "epochs": mixtures.epochs(mixture, stage.steps * stage.batch_rows),
        "seconds": clock.read(),
        "final": {name: value for name, value in log_file.last.items() if name != "seconds"},
    }


class Clock:
    """Where the wall time of a stage went, in seconds: `compile`, `data` (the host prepares batches), `step` (the devices compute),
    `checkpoint` (training waits for one), `lost` (logged, but not saved before a restart), `rest`. Restarts are included, but for
    what a run did after its last line in the log.
    """

    def __init__(self):
        self.seconds = dict.fromkeys((*PHASES, "lost"), 0.0)
        self.started = time.perf_counter()
        self.before = 0.0  # what earlier runs of this stage took
        self.lost_now = 0.0  # of it, what was lost in the last restart

    @contextlib.contextmanager
    def spend(self, phase: str):
        """What passes within is of this phase, but for what is compiled meanwhile."""
        started, compiled = time.perf_counter(), COMPILE_SECONDS[0]
        try:
            yield
        finally:
            compiling = COMPILE_SECONDS[0] - compiled
            self.seconds["compile"] += compiling
            self.seconds[phase] += max(time.perf_counter() - started - compiling, 0.0)

    def read(self) -> dict[str, float]:
        """Seconds by phase; they add up to the wall time."""
        total = self.before + time.perf_counter() - self.started
        rest = max(total - sum(self.seconds.values()), 0.0)
        return {phase: round(seconds, 3) for phase, seconds in (self.seconds | {"rest": rest}).items()}

    def goodput(self) -> float:
        """The share of the time so far that trained."""
        seconds = self.read()
        return seconds["step"] / max(sum(seconds.values()), 1e-9)

    def continue_from(self, kept: dict[str, float], reached: dict[str, float]) -> None:
        """Takes over the clock of earlier runs: as it was at the checkpoint, and how far it got before the end."""
        self.lost_now = sum(reached.values()) - sum(kept.values())
        for phase in self.seconds:
            self.seconds[phase] += kept[phase]
        self.seconds["lost"] += self.lost_now
        self.before = sum(kept.values()) + self.lost_now


class _Log:
    """`metrics.jsonl`, a line a step with the hash of its batch, and TensorBoard; process 0 alone writes them.

    Lines after the step that a run continues from are of work that was lost: they are removed, and their time is counted.
    """

    def __init__(self, directory: Path, first: int, clock: Clock):
        self.path = directory / "metrics.jsonl"
        self.last: dict = {}  # the last line
        if not self.path.exists():
            return
        lines = []
        with contextlib.suppress(ValueError):  # a killed run may leave half a line
            for line in self.path.read_text(encoding="utf-8").splitlines():
                lines.append(json.loads(line))
        timed = [line for line in lines if "seconds" in line]
        kept = [line["seconds"] for line in timed if line["step"] <= first]
        if timed:
            clock.continue_from(kept[-1] if kept else dict.fromkeys(timed[-1]["seconds"], 0.0), timed[-1]["seconds"])
        lines = [line for line in lines if line["step"] <= first]
        self.last = lines[-1] if lines else {}
        if processes.is_first():
            artifact.write_jsonl(self.path, lines)

    def __enter__(self):
        if processes.is_first():
            self.file = self.path.open("a", encoding="utf-8")
            self.tensorboard = _summary_writer(self.path.parent / "tensorboard")
        return self

    def __exit__(self, *_):
        if processes.is_first():
            self.file.close()
            self.tensorboard.close()

    def write(self, lines: list[dict]) -> None:
        self.last = lines[-1]
        if not processes.is_first():
            return
        self.file.write("".join(json.dumps(line) + "\n" for line in lines))
        self.file.flush()
        seconds = {f"seconds/{phase}": taken for phase, taken in self.last["seconds"].items()}
        for name, value in {**self.last, **seconds}.items():
            if isinstance(value, int | float):
                self.tensorboard.add_scalar(name, value, self.last["step"])


def _summary_writer(directory: Path):
    """TensorBoard's files. Where torch is installed, tensorboardX would import it, for seconds and for nothing."""
    hide = {} if "torch" in sys.modules else {"torch": None}
    sys.modules.update(hide)
    try:
        from tensorboardX import SummaryWriter
    finally:
        for name in hide:
            del sys.modules[name]
    return SummaryWriter(str(directory))


def check_batch(stage: StageConfig, step_config: StepConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises BadInput where the batch does not divide over micro-batches and devices."""
    if stage.batch_rows % step_config.micro_batches:
        raise BadInput(f"{stage.batch_rows} rows a step: must be a multiple of optimizer.micro_batches={step_config.micro_batches}")
    rows = stage.batch_rows // step_config.micro_batches
    what = f"a micro-batch ({stage.batch_rows} rows a step, optimizer.micro_batches={step_config.micro_batches})"
    sharding.check_divides(mesh, "B", rows, what, sharding.RULES["B"])


# Seconds this process has spent tracing and compiling, summed by JAX's own monitoring.
COMPILE_SECONDS = [0.0]


def _add_compile_seconds(event: str, seconds: float, **_) -> None:
    if event.startswith("/jax/core/compile"):
        COMPILE_SECONDS[0] += seconds


jax.monitoring.register_event_duration_secs_listener(_add_compile_seconds)


def _line(step: int, values: dict) -> dict:
    hashed = "".join(f"{word:08x}" for word in values["batch"].tolist())
    return {"step": step + 1, **{name: float(value) for name, value in values.items() if name != "batch"}, "batch": hashed}


def _refuse(label: str, fetched: list[dict], mixture: Mixture, stage: StageConfig) -> None:
    """Raises where a step's loss is not finite, or where its batch had nothing to learn; the error names step and rows."""
    for line in fetched:
        finite = np.isfinite([line["loss"], line["gradient_norm"]]).all()
        if finite and line["supervised_tokens"]:
            continue
        step = int(line["step"])  # counted from 1
        rows = [mixtures.locate(mixture, (step - 1) * stage.batch_rows + row) for row in range(stage.batch_rows)]
        named = json.dumps([f"{stage.data[source][0]}[{row}]" for source, row in rows])
        if finite:
            raise BadInput(f"{label}: all-zero loss mask in the batch of step {step}; raise tokens_per_step; its rows: {named}")
        raise Diverged(f"{label}: loss {line['loss']}, gradient norm {line['gradient_norm']} at step {step}; its rows: {named}")


def _interval() -> float:
    """Seconds between updates of the progress bar: rare where they are lines of a log."""
    return 0.2 if sys.stderr.isatty() else 15.0
