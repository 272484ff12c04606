"""The loop: interrupted equals uninterrupted, one compilation for all stages, and it stops where it must."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data.mixture import Mixture
from msmjax.training import checkpoint, loop
from msmjax.training import step as steps
from msmjax.training.loop import LogConfig, StageConfig
from msmjax.training.sharding import MeshConfig, make_mesh

STAGE = StageConfig(
    data=(("base", 1.0),),
    steps=24,
    batch_rows=8,
    learning_rate=1e-2,
    warmup_steps=4,
    final_learning_rate=0.1,
    allow_few_updates=False,
)
LOG = LogConfig(metrics_every=4, checkpoint_every=8)


class Rows:
    """Random rows; `fails_after` reads, the plug is pulled."""

    def __init__(self, fails_after=None):
        self.reads, self.fails_after = 0, fails_after

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.reads += 1
        if self.fails_after is not None and self.reads > self.fails_after:
            raise KeyboardInterrupt
        rng = np.random.default_rng(index)
        segment_ids = np.repeat([1, 2], [10, 14]).astype(np.int32)
        return {"tokens": rng.integers(4, 96, 24).astype(np.int32), "segment_ids": segment_ids, "loss_mask": rng.random(24) < 0.7}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(2, 2, 2))


def train(directory, model, step_config, mesh, rows=None, stage=STAGE, log=LOG, parent=None, seed=0):
    rows = Rows() if rows is None else rows
    said = loop.train(directory, "stage", model, step_config, stage, log, Mixture((rows,), (1.0,), seed), mesh, parent, seed)
    artifact.write_manifest(directory, {}, said)
    return said


def state_of(directory, model, step_config, mesh):
    abstract, shardings = steps.state_shardings(model, step_config, mesh)
    abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    with checkpoint.open_manager(directory) as manager:
        return jax.device_get(checkpoint.restore(manager, abstract))


def test_interrupted_equals_uninterrupted(tmp_path, model, step_config, mesh):
    """Stopped between two checkpoints and started again: the same state, bit for bit, and the same log."""
    train(tmp_path / "whole", model, step_config, mesh)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", model, step_config, mesh, rows=Rows(fails_after=1 + 13 * 8))
    with checkpoint.open_manager(tmp_path / "parts") as manager:
        assert manager.latest_step() == 8
    train(tmp_path / "parts", model, step_config, mesh)
    whole, parts = (state_of(tmp_path / name, model, step_config, mesh) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert int(whole["step"]) == 24
    logs = [artifact.read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    of_interest = [
        [{name: line[name] for name in ("step", "loss", "gradient_norm", "learning_rate")} for line in log] for log in logs
    ]
    assert of_interest[0] == of_interest[1]
    assert [line["step"] for line in logs[0]] == [4, 8, 12, 16, 20, 24]


def test_the_loss_falls_and_the_log_does_not_matter(tmp_path, model, step_config, mesh):
    """How often is logged and saved changes nothing that is computed."""
    said = train(tmp_path / "often", model, step_config, mesh, log=LogConfig(1, 2))
    rarely = train(tmp_path / "rarely", model, step_config, mesh, log=LogConfig(1000, 1000))
    assert said["final"]["loss"] == rarely["final"]["loss"]
    assert said["final"]["loss"] < artifact.read_jsonl(tmp_path / "often" / "metrics.jsonl")[0]["loss"] - 0.1
    assert said["tokens"] == 24 * 8 * 24
    assert said["epochs"] == (24 * 8 / 40,)
    assert list((tmp_path / "often" / "tensorboard").glob("events.out.*"))


def test_one_compilation_for_all_stages(tmp_path, model, step_config, mesh):
    """Stages of other length, rate and parent run the step that was compiled once."""
    steps.compile_step.cache_clear()
    train(tmp_path / "first", model, step_config, mesh)
    other = dataclasses.replace(STAGE, steps=30, learning_rate=1e-3, warmup_steps=0)
    train(tmp_path / "second", model, step_config, mesh, stage=other, parent=tmp_path / "first", seed=3)
    assert steps.compile_step.cache_info().misses == 1
    assert steps.compile_step(model, step_config, mesh)._cache_size() == 1


def test_a_stage_starts_from_its_parents_parameters(tmp_path, model, step_config, mesh):
    still = dataclasses.replace(STAGE, learning_rate=0.0)
    train(tmp_path / "parent", model, step_config, mesh, seed=1)
    train(tmp_path / "child", model, step_config, mesh, stage=still, parent=tmp_path / "parent", seed=2)
    parent, child = (state_of(tmp_path / name, model, step_config, mesh) for name in ("parent", "child"))
    jax.tree.map(np.testing.assert_array_equal, parent["params"], child["params"])


def test_not_finite_stops_with_the_step_and_the_rows(tmp_path, model, step_config, mesh):
    wild = dataclasses.replace(STAGE, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(FloatingPointError, match=r"stage: loss nan, gradient norm nan at step \d+; its rows: (.*)") as caught:
        train(tmp_path / "stage", model, step_config, mesh, stage=wild)
    named = json.loads(str(caught.value).partition("its rows: ")[2])
    assert len(named) == 8
    assert all(name.startswith("base[") for name in named)
    assert not (tmp_path / "stage" / "metrics.jsonl").exists()


def test_refused_stages(step_config, mesh):
    with pytest.raises(BadInput, match="steps=19: fewer than 20 updates"):
        dataclasses.replace(STAGE, steps=19)
    assert dataclasses.replace(STAGE, steps=19, allow_few_updates=True).steps == 19
    with pytest.raises(BadInput, match=r"shares must be at least 0\.001 and sum to 1"):
        dataclasses.replace(STAGE, data=(("base", 0.5),))
    with pytest.raises(BadInput, match=r"batch_rows=8: must be a multiple of optimizer.micro_batches=3"):
        loop.check_batch(STAGE, dataclasses.replace(step_config, micro_batches=3), mesh)
    with pytest.raises(BadInput, match=r"a micro-batch has B=2, which does not divide by 4"):
        loop.check_batch(STAGE, dataclasses.replace(step_config, micro_batches=4), mesh)
