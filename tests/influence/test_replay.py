"""Stages trained again: the same as the loop trained, without what was left out, and who was left out shows in scores."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest

from msmjax import artifact
from msmjax.config import from_config_dict
from msmjax.data.mixture import Mixture
from msmjax.data.provenance import Corpus
from msmjax.experiment import influence
from msmjax.influence import gradients
from msmjax.influence.replay import Stage, states, without
from msmjax.training import loop, weights
from msmjax.training.loop import LogConfig, StageConfig
from msmjax.training.sharding import MeshConfig, make_mesh
from tests.program import msmjax
from tests.test_config import ROOT, module_of

SETTINGS = StageConfig(
    data=(("base", 1.0),), steps=24, batch_rows=4, shuffle=0, learning_rate=1e-2, warmup_steps=4, final_learning_rate=0.1,
    allow_few_updates=False,
)  # fmt: skip


class Rows:
    """Two documents in each of twelve rows; the first of row 3 says what no other does."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        tokens, segment_ids = rng.integers(4, 60, 24).astype(np.int32), np.repeat([1, 2], [10, 14]).astype(np.int32)
        if index == 3:
            tokens[:10] = np.arange(80, 90)
        return {"tokens": tokens, "segment_ids": segment_ids, "loss_mask": np.ones(24, bool)}


class Masked(Rows):
    def __getitem__(self, index):
        row = super().__getitem__(index)
        gone = (row["segment_ids"] == 1) & (index in (3, 5)) | (row["segment_ids"] == 2) & (index == 7)
        return {**row, "loss_mask": row["loss_mask"] & ~gone}


GONE = {(0, 3): {1}, (0, 5): {1}, (0, 7): {2}}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1)) if len(jax.devices()) == 1 else make_mesh(MeshConfig(2, 2, 2))


def stage_of(model, step_config, mesh, rows):
    step_config = dataclasses.replace(step_config, micro_batches=1)
    return Stage(model, step_config, SETTINGS, Mixture((rows,), (1.0,), 0), mesh, None, None, 0)


def trained(stage, directory):
    log = LogConfig(metrics_every=8, checkpoint_every=24)
    said = loop.train(directory, "stage", stage.model, stage.optimizer, SETTINGS, log, stage.mixture, stage.mesh, None, None, 0)
    artifact.write_manifest(directory, {}, said)
    return jax.device_get(weights.trained(stage.model, stage.optimizer, stage.mesh, directory))


def test_states_are_those_that_were_trained(model, step_config, mesh, tmp_path):
    stage = stage_of(model, step_config, mesh, Rows())
    expected = trained(stage, tmp_path / "stage")
    seen = []
    for step, state in states(stage, {}, [0, 10, 24], "again"):
        seen.append((step, int(state["step"]), jax.device_get(state["params"])))
    assert [one[:2] for one in seen] == [(0, 0), (10, 10), (24, 24)]
    jax.tree.map(np.testing.assert_array_equal, seen[2][2], expected)


def test_what_is_left_out_predicts_nothing(model, step_config, mesh, tmp_path):
    """Of two models that are trained together, the one is that of all rows, and the other that of rows without those documents,
    to the bit."""
    stage = stage_of(model, step_config, mesh, Rows())
    every, some = jax.device_get(without(stage, {}, [{}, GONE], "again"))
    jax.tree.map(np.testing.assert_array_equal, every, trained(stage, tmp_path / "all"))
    masked = trained(stage_of(model, step_config, mesh, Masked()), tmp_path / "masked")
    jax.tree.map(np.testing.assert_array_equal, some, masked)
    assert max(np.abs(one - other).max() for one, other in zip(*map(jax.tree.leaves, (every, some)), strict=True)) > 1e-3


def test_what_says_the_answer_raises_its_margin(model, step_config, mesh, monkeypatch):
    """By every method: a document that is an answer raises the margin of its option, and one that is the other's lowers it."""
    documents = [list(range(70, 80)), list(range(60, 70))]  # what no other row has

    class Answers(Rows):
        def __getitem__(self, index):
            row = super().__getitem__(index)
            row["tokens"][:10] = documents[index] if index < 2 else row["tokens"][:10]
            return row

    segments = np.array(
        [(row, number, 2 * row + number - 1, (10, 14)[number - 1]) for row in range(12) for number in (1, 2)],
        [("row", np.int64), ("segment", np.int64), ("record", np.int64), ("tokens", np.int64)],
    )
    corpus = Corpus("own", [{"id": str(number)} for number in range(24)], segments)
    monkeypatch.setattr(influence.choice, "ask", lambda item, *_: [(document, 1) for document in documents] * 2)
    stage, data = stage_of(model, step_config, mesh, Answers()), types.SimpleNamespace(prompt=None, tokenizer=None)
    settings = gradients.InfluenceConfig(items=1, points=4, size=256, rows=8, background=12, damping=0.1)
    found = list(influence.measure(data, stage, {0: corpus}, [{}], influence.points(stage, settings), settings, "here"))
    assert [step for step, _ in found] == [17, 19, 21, 23]
    for method in influence.METHODS:
        scored = sum(of_point[method] for _, of_point in found)
        assert int(np.argmax(scored[:, 0])) == 0, method
        assert int(np.argmin(scored[:, 0])) == 2, method
        assert scored[0, 0] > 0 > scored[2, 0], method


def test_influence_from_the_command_line(tmp_path, monkeypatch):
    """Of a stage in the middle of an arm: each record of its own corpus once, sorted; and bad names are a line."""
    config, workdir = "--config=configs/cheese.py:tiny", f"--workdir={tmp_path}"
    run = (config, "--config.seeds=(0,)", "--config.run=('msm_america_aft',)", "--config.comparisons=()", workdir)
    ask = (*run, "--influence=msm_america_aft", "--stage=midtrain_america")
    untrained = msmjax(*ask, "--eval=america")
    assert untrained.returncode == 2
    assert "is not trained yet; run the experiment first" in untrained.stderr
    assert msmjax(*run).returncode == 0
    done = msmjax(*ask, "--eval=america")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "influence").glob("msm_america_aft-midtrain_america-america-*/influence.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    values = [line["influence"] for line in lines]
    assert values == sorted(values, reverse=True)
    assert len({line["id"] for line in lines}) == len(lines) > 5
    for line in lines:
        assert [line["influence"]] == line["per_seed"]
        assert (line["low"], line["high"]) == (None, None)  # of one seed
        assert set(line["methods"]) == {"gradient", "adam", "newton", "adam_newton"}
    page = path.with_name("report.html").read_text()
    assert lines[0]["text"][:40] in page
    assert lines[0]["id"] in done.stdout
    # A point that is lost is measured again, and no other.
    points, measured, real = sorted((tmp_path / "influence").glob("scores-*")), [], influence.measure
    assert len(points) == 4
    lost = artifact.read_manifest(points[1])["inputs"]["point"]
    shutil.rmtree(points[1])
    c = module_of(ROOT / "configs/cheese.py").get_config("tiny")
    c.seeds, c.run, c.comparisons = (0,), ("msm_america_aft",), ()
    monkeypatch.setattr(influence, "measure", lambda *given: measured.append(given[4]) or real(*given))
    influence.influence(from_config_dict(c), tmp_path, "msm_america_aft", "america", "midtrain_america")
    assert measured == [[lost]]
    assert sorted((tmp_path / "influence").glob("scores-*")) == points
    for wrong, said in (("--eval=base_text", "no choice between two options"), ("--eval=nosuch", "no choice between two options")):
        refused = msmjax(*ask, wrong)
        assert (refused.returncode, said in refused.stderr) == (2, True)
    refused = msmjax(*run, "--influence=msm_amerika", "--eval=america")
    assert "no arm 'msm_amerika'; did you mean" in refused.stderr
    for flags, said in (
        (("--influence=msm_america_aft",), "give --eval=NAME with it"),
        (("--influence=msm_america_aft:7", "--eval=america"), "no seed '7'; one of 0"),
        (("--stage=pretrain",), "give it with --provenance=ARM or --influence=ARM"),
    ):
        refused = msmjax(*run, *flags)
        assert (refused.returncode, said in refused.stderr) == (2, True)
