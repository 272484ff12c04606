"""The loop: interrupted equals uninterrupted, whatever interrupted it; one compilation for all stages; it stops where it must."""

import asyncio
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from msmjax import artifact
from msmjax.artifact import BadInput, Diverged, Interrupted, Preempted
from msmjax.data.mixture import Mixture
from msmjax.model import transformer
from msmjax.training import checkpoint, loop, preemption, weights
from msmjax.training import step as steps
from msmjax.training.loop import LogConfig, StageConfig
from msmjax.training.sharding import MeshConfig, make_mesh

STAGE = StageConfig(
    data=(("base", 1.0),),
    steps=24,
    batch_rows=8,
    shuffle=0,
    learning_rate=1e-2,
    warmup_steps=4,
    final_learning_rate=0.1,
    allow_few_updates=False,
)
LOG = LogConfig(metrics_every=4, checkpoint_every=8)


def pull_the_plug():
    raise KeyboardInterrupt


class Rows:
    """Random rows; after `fails_after` reads, something happens."""

    def __init__(self, fails_after=None, happens=pull_the_plug):
        self.reads, self.fails_after, self.happens = 0, fails_after, happens

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.reads += 1
        if self.fails_after is not None and self.reads == self.fails_after + 1:
            self.happens()
        rng = np.random.default_rng(index)
        segment_ids = np.repeat([1, 2], [10, 14]).astype(np.int32)
        return {"tokens": rng.integers(4, 96, 24).astype(np.int32), "segment_ids": segment_ids, "loss_mask": rng.random(24) < 0.7}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(2, 2, 2))


def train(directory, model, step_config, mesh, rows=None, stage=STAGE, log=LOG, parent=None, seed=0):
    rows = Rows() if rows is None else rows
    said = loop.train(directory, "stage", model, step_config, stage, log, Mixture((rows,), (1.0,), seed), mesh, None, parent, seed)
    artifact.write_manifest(directory, {}, said)
    return said


def state_of(directory, model, step_config, mesh):
    abstract = steps.abstract_state(model, step_config, mesh)
    with checkpoint.open_manager(directory) as manager:
        return jax.device_get(checkpoint.restore(manager, manager.latest_step(), abstract))


COMPUTED = ("step", "loss", "gradient_norm", "supervised_tokens", "learning_rate", "batch")


def assert_same_run(one, other, model, step_config, mesh):
    """Parameters, optimizer state, and every step's loss and batch hash: the same bits."""
    jax.tree.map(np.testing.assert_array_equal, *(state_of(directory, model, step_config, mesh) for directory in (one, other)))
    logs = [artifact.read_jsonl(directory / "metrics.jsonl") for directory in (one, other)]
    computed = [[{name: line[name] for name in COMPUTED} for line in log] for log in logs]
    assert computed[0] == computed[1]
    assert [line["step"] for line in logs[0]] == list(range(1, 25))
    assert len({line["batch"] for line in logs[0]}) == 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, step_config, mesh):
    """A stage that nothing disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "stage"
    train(directory, model, step_config, mesh)
    return directory


def test_interrupted_equals_uninterrupted(tmp_path, whole, model, step_config, mesh):
    """Stopped between two checkpoints and started again: the same state, bit for bit, and the same log."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", model, step_config, mesh, rows=Rows(fails_after=1 + 13 * 8))
    with checkpoint.open_manager(tmp_path / "parts") as manager:
        assert manager.latest_step() == 8
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 13, "lo')  # as a killed process may leave it
    said = train(tmp_path / "parts", model, step_config, mesh)
    assert_same_run(whole, tmp_path / "parts", model, step_config, mesh)
    # The clock goes on: what steps 9 to 12 took is lost, and nothing is forgotten.
    assert said["seconds"]["lost"] > 0
    assert said["seconds"]["step"] > 0
    assert set(said["seconds"]) == {"compile", "data", "step", "checkpoint", "lost", "rest"}
    timed = [line["seconds"] for line in artifact.read_jsonl(tmp_path / "parts" / "metrics.jsonl") if "seconds" in line]
    totals = [sum(seconds.values()) for seconds in timed]
    assert totals == sorted(totals)


def test_an_adapter_resumes_exactly(tmp_path, model, step_config, mesh, monkeypatch):
    """With LoRA a checkpoint holds the adapter alone, and the base comes from where it came from before."""
    lora = dataclasses.replace(model, lora_rank=4, lora_alpha=8.0)
    abstract = steps.abstract_base(lora, mesh)
    base = jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), transformer.init_params(model, jax.random.key(9)), abstract)
    monkeypatch.setattr(weights, "base", lambda *_: base)
    train(tmp_path / "whole", lora, step_config, mesh)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", lora, step_config, mesh, rows=Rows(fails_after=1 + 13 * 8))
    train(tmp_path / "parts", lora, step_config, mesh)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", lora, step_config, mesh)
    saved = jax.tree.leaves(state_of(tmp_path / "whole", lora, step_config, mesh)["params"])
    assert sum(leaf.size for leaf in saved) == transformer.count_adapter(lora)


def test_killed_between_its_last_checkpoint_and_its_manifest(tmp_path, whole, model, step_config, mesh):
    shutil.copytree(whole, tmp_path / "stage")
    before = json.loads((whole / artifact.MANIFEST).read_text())
    (tmp_path / "stage" / artifact.MANIFEST).unlink()
    said = train(tmp_path / "stage", model, step_config, mesh)
    assert said["final"] == before["final"]
    assert_same_run(whole, tmp_path / "stage", model, step_config, mesh)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 1, 1)])
def test_continued_on_another_mesh(tmp_path, whole, model, step_config, mesh, shape):
    """The batches are the same to the bit, and the first loss after the restart to 1e-5."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stage", model, step_config, mesh, rows=Rows(fails_after=13 * 8))
    devices = jax.devices()[: np.prod(shape)]
    other = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)
    train(tmp_path / "stage", model, step_config, other)
    logs = [artifact.read_jsonl(directory / "metrics.jsonl") for directory in (whole, tmp_path / "stage")]
    assert [line["batch"] for line in logs[0]] == [line["batch"] for line in logs[1]]
    assert logs[1][8]["loss"] == pytest.approx(logs[0][8]["loss"], rel=1e-5)


def test_accumulation_and_a_mixture_resume_exactly(tmp_path, model, step_config, mesh):
    """Two sources, one read more than once, micro-batches: interrupted twice, the same run."""
    config = dataclasses.replace(step_config, micro_batches=2)
    stage = dataclasses.replace(STAGE, data=(("base", 0.75), ("spec", 0.25)))

    def run(name, **happens):
        mixture = Mixture((Rows(**happens), Rows()), (0.75, 0.25), 5)
        said = loop.train(tmp_path / name, "stage", model, config, stage, LOG, mixture, mesh, None, None, 0)
        artifact.write_manifest(tmp_path / name, {}, said)

    run("whole")
    for reads in (60, 70):
        with pytest.raises(KeyboardInterrupt):
            run("parts", fails_after=reads)
    run("parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts", model, config, mesh)


@pytest.mark.parametrize(
    ("number", "kind", "name"), [(signal.SIGTERM, Preempted, "SIGTERM"), (signal.SIGINT, Interrupted, "Ctrl-C")]
)
def test_a_signal_saves_and_stops(tmp_path, whole, model, step_config, mesh, monkeypatch, number, kind, name):
    monkeypatch.setattr(preemption, "_end_at_the_second", lambda _: None)  # two come here
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background have it ignored
    preemption.watch()
    try:
        stop = lambda: os.kill(os.getpid(), number)  # noqa: E731
        with pytest.raises(Preempted, match=rf"stage: stopped by {name}, saved at step 1[34]; run the same command to") as caught:
            train(tmp_path / "stage", model, step_config, mesh, rows=Rows(fails_after=13 * 8 + 3, happens=stop))
        assert type(caught.value) is kind
        preemption._state["requested"] = 0
        with pytest.raises(kind, match=f"stopped by {name}; run"):  # nothing to save outside of the loop
            stop()
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(-1)
        preemption._state["requested"] = 0
    assert checkpoint.last_good_step(tmp_path / "stage") in (13, 14)
    said = train(tmp_path / "stage", model, step_config, mesh)
    assert said["seconds"]["lost"] == pytest.approx(0, abs=0.05)
    assert_same_run(whole, tmp_path / "stage", model, step_config, mesh)


WAITS = """
import ctypes, signal
from msmjax.training import preemption
preemption.watch()
with preemption.saving():
    # As while it compiles: the main thread is in C, where no signal is heeded until it comes back.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    print("ready", flush=True)
    ctypes.CDLL(None).sleep(30)
"""


def test_a_second_ctrl_c_does_not_wait():
    """Neither for what has to be saved nor for what is being compiled; and whatever came between."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        assert process.poll() is None
        process.send_signal(number)
        time.sleep(0.2)
    assert process.wait(timeout=4) == 130


def test_a_signal_ends_what_asyncio_runs_at_once(monkeypatch):
    """In a task as well as in a callback; a teacher is paid for nothing that comes after."""
    monkeypatch.setattr(preemption, "_state", {"requested": 0, "saves": False})
    handler, done = signal.signal(signal.SIGTERM, preemption._heed), []

    async def write(number):
        await asyncio.sleep(0.01 * number)
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(number)

    async def all_of(count):
        await asyncio.gather(*map(write, range(count)), return_exceptions=True)

    try:
        with pytest.raises(Preempted):
            asyncio.run(all_of(40))
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert len(done) < 20


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def half_copied(directory):
    shutil.rmtree(directory / "optimizer")


def unsealed(directory):
    (directory / checkpoint.SEAL).unlink()


def largest(directory):
    return max((file for file in directory.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def truncated(directory):
    os.truncate(largest(directory), 10)


def flipped(directory):
    data = bytearray(largest(directory).read_bytes())
    data[len(data) // 2] ^= 1
    largest(directory).write_bytes(data)


def extra(directory):
    (directory.parent / "99").mkdir()


@pytest.mark.parametrize("harm", [empty, half_copied, unsealed, truncated, flipped, extra], ids=lambda harm: harm.__name__)
def test_damaged_checkpoints_are_set_aside(tmp_path, whole, model, step_config, mesh, harm, capsys):
    """Whatever happened to the latest checkpoint, the run falls back to the last good one, says so, and ends the same."""
    shutil.copytree(whole, tmp_path / "stage")
    (tmp_path / "stage" / artifact.MANIFEST).unlink()
    assert checkpoint.last_good_step(tmp_path / "stage") == 24
    harm(tmp_path / "stage" / "checkpoints" / "24")
    good = 24 if harm is extra else 16
    assert checkpoint.last_good_step(tmp_path / "stage") == good
    train(tmp_path / "stage", model, step_config, mesh)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "damaged checkpoint" in line]
    assert f"falls back to step {good}" in line
    assert (tmp_path / "stage" / ("damaged.99" if harm is extra else "damaged.24")).is_dir()
    assert_same_run(whole, tmp_path / "stage", model, step_config, mesh)


def test_a_failed_save_is_raised(tmp_path, model, step_config, mesh, monkeypatch):
    """Saves are asynchronous; one that fails stops the run at the next one, or at the end, and leaves the last good one."""

    def full(checkpoints):
        if len(list(checkpoints.iterdir())) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(checkpoints)

    seal = checkpoint._seal_new
    monkeypatch.setattr(checkpoint, "_seal_new", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path / "stage", model, step_config, mesh)
    assert checkpoint.last_good_step(tmp_path / "stage") == 8
    assert not (tmp_path / "stage" / artifact.MANIFEST).exists()


def test_a_second_process_is_refused(tmp_path):
    with (
        artifact.lock(tmp_path / "stage"),
        pytest.raises(BadInput, match=rf"stage: another run \(process {os.getpid()} on .*\) writes there"),
        artifact.lock(tmp_path / "stage"),
    ):
        pass
    with artifact.lock(tmp_path / "stage"):  # free again
        pass


def test_the_loss_falls_and_the_log_does_not_matter(tmp_path, model, step_config, mesh):
    """How often is logged and saved changes nothing that is computed."""
    said = train(tmp_path / "often", model, step_config, mesh, log=LogConfig(1, 2))
    rarely = train(tmp_path / "rarely", model, step_config, mesh, log=LogConfig(1000, 1000))
    assert said["final"]["loss"] == rarely["final"]["loss"]
    logs = [artifact.read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("often", "rarely")]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
    assert said["final"]["loss"] < logs[0][0]["loss"] - 0.1
    assert said["tokens"] == 24 * 8 * 24
    assert said["epochs"] == (24 * 8 / 40,)
    assert list((tmp_path / "often" / "tensorboard").glob("events.out.*"))


def test_the_host_is_few_steps_ahead(tmp_path, model, step_config, mesh, monkeypatch):
    """However seldom it logs: hundreds of steps that wait for several CPU devices of one process never end."""
    compile_step, losses, awaited = steps.compile_step, [], []

    def watched(*arguments):
        update = compile_step(*arguments)

        def step(*inputs):
            # Before a step, the one that is so many before it has ended.
            assert len(awaited) == max(len(losses) + 1 - loop.IN_FLIGHT, 0)
            state, metrics = update(*inputs)
            losses.append(metrics["loss"])
            return state, metrics

        return step

    monkeypatch.setattr(steps, "compile_step", watched)
    monkeypatch.setattr(jax, "block_until_ready", lambda metrics: awaited.append(metrics["loss"]))
    train(tmp_path, model, step_config, mesh, log=LogConfig(metrics_every=24, checkpoint_every=24))
    assert len(losses) == STAGE.steps
    assert all(one is other for one, other in zip(awaited, losses, strict=False))


def test_one_compilation_for_all_stages(tmp_path, model, step_config, mesh):
    """Stages of other length, rate and parent run the step that was compiled once."""
    steps.compile_step.cache_clear()
    train(tmp_path / "first", model, step_config, mesh)
    other = dataclasses.replace(STAGE, steps=30, learning_rate=1e-3, warmup_steps=0)
    train(tmp_path / "second", model, step_config, mesh, stage=other, parent=tmp_path / "first", seed=3)
    assert steps.compile_step.cache_info().misses == 1
    assert steps.compile_step(model, step_config, mesh, 0)._cache_size() == 1


def test_a_stage_starts_from_its_parents_parameters(tmp_path, model, step_config, mesh):
    still = dataclasses.replace(STAGE, learning_rate=0.0)
    train(tmp_path / "parent", model, step_config, mesh, seed=1)
    train(tmp_path / "child", model, step_config, mesh, stage=still, parent=tmp_path / "parent", seed=2)
    parent, child = (state_of(tmp_path / name, model, step_config, mesh) for name in ("parent", "child"))
    jax.tree.map(np.testing.assert_array_equal, parent["params"], child["params"])


def test_not_finite_stops_with_the_step_and_the_rows(tmp_path, model, step_config, mesh):
    wild = dataclasses.replace(STAGE, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(Diverged, match=r"stage: loss nan, gradient norm nan at step \d+; its rows: (.*)") as caught:
        train(tmp_path / "stage", model, step_config, mesh, stage=wild)
    named = json.loads(str(caught.value).partition("its rows: ")[2])
    assert len(named) == 8
    assert all(name.startswith("base[") for name in named)
    assert checkpoint.last_good_step(tmp_path / "stage") is None


def test_a_batch_with_nothing_to_learn_is_refused(tmp_path, model, step_config, mesh):
    class Unmarked(Rows):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "loss_mask": np.zeros(24, bool)}

    with pytest.raises(
        BadInput, match=r"stage: all-zero loss mask in the batch of step 1; raise tokens_per_step; its rows: \[.base\["
    ):
        train(tmp_path / "stage", model, step_config, mesh, rows=Unmarked())


def test_refused_stages(step_config, mesh):
    with pytest.raises(BadInput, match="steps=19: fewer than 20 updates"):
        dataclasses.replace(STAGE, steps=19)
    assert dataclasses.replace(STAGE, steps=19, allow_few_updates=True).steps == 19
    with pytest.raises(BadInput, match=r"must be .* shares that sum to 1"):
        dataclasses.replace(STAGE, data=(("base", 0.5),))
    with pytest.raises(BadInput, match=r"8 rows a step: must be a multiple of optimizer.micro_batches=3"):
        loop.check_batch(STAGE, dataclasses.replace(step_config, micro_batches=3), mesh)
    with pytest.raises(
        BadInput, match=r"a micro-batch \(\d+ rows a step, optimizer.micro_batches=\d+\) has B=2, which does not divide by 4"
    ):
        loop.check_batch(STAGE, dataclasses.replace(step_config, micro_batches=4), mesh)
