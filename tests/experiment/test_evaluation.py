"""The evaluation of an arm: whatever an answer depends on makes another artifact."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msmjax import artifact, config
from msmjax.artifact import BadInput
from msmjax.evals.faking import FakingEval
from msmjax.evals.inspect_task import InspectEval
from msmjax.evals.prompt import Prompt
from msmjax.experiment import evaluation
from msmjax.experiment.data import Data
from tests.evals.test_kinds import JUDGE
from tests.test_config import cheese

SETTINGS = {
    "vocab": 401, "layers": 2, "width": 32, "mlp": 16, "heads": 8, "kv_heads": 4, "head_dim": 16, "rope_theta": 5e5,
    "rope_scaling": (8.0, 1.0, 4.0, 8192.0), "norm_epsilon": 1e-5, "qkv_bias": True, "qk_norm": True, "tied_embeddings": True,
    "embedding_init": 0.5, "matrix_init": 2.0, "lora_rank": 4, "lora_alpha": 8.0, "compute_dtype": "bfloat16", "scan_layers": True,
    "remat": "full", "attention": "xla",
}  # fmt: skip


class Named:
    name = "tokenizer-1"


@pytest.fixture
def data(tmp_path):
    for name in ("weights", "others", "rows", "items", "items_2"):
        (tmp_path / name).mkdir()
        artifact.write_manifest(tmp_path / name, {}, {"content": name})
        (tmp_path / name / "items.jsonl").write_text(name)
    rows = {"held_out": tmp_path / "rows"}
    items = {"microworld": tmp_path / "items", "base_text": None}
    return Data(Named(), {}, rows, items, Prompt("You are {name}.", ""), ([], []), tmp_path / "weights")


def inputs(frozen, data, stage=None, names=("microworld", "base_text")):
    workdir = Path("nowhere")
    return json.dumps([evaluation.eval_inputs(frozen, workdir, data, name, stage) for name in names], sort_keys=True)


def test_every_setting_of_the_model_is_another_eval(data):
    """float32 and then bfloat16 in one working directory had the same bits per byte, and so had a halved norm."""
    frozen = config.from_config_dict(cheese())
    assert SETTINGS.keys() == {field.name for field in dataclasses.fields(frozen.model)}
    seen = {inputs(frozen, data)}
    for name, value in SETTINGS.items():
        assert getattr(frozen.model, name) != value
        model = object.__new__(type(frozen.model))  # alone, some of them make a shape that cannot be
        model.__dict__.update({**dataclasses.asdict(frozen.model), name: value})
        seen.add(inputs(dataclasses.replace(frozen, model=model), data))
    assert len(seen) == 1 + len(SETTINGS)


def test_everything_it_is_asked_is_another_eval(data, tmp_path):
    frozen = config.from_config_dict(cheese())
    other = type("Other", (), {"name": "tokenizer-2"})()
    changed = [
        {"tokenizer": other}, {"rows": {"held_out": tmp_path / "others"}},
        {"items": {**data.items, "microworld": tmp_path / "items_2"}},
        {"prompt": Prompt("", "")}, {"prompt": Prompt("You are {name}.", "<think>")}, {"weights": tmp_path / "others"},
    ]  # fmt: skip
    seen = {inputs(frozen, data), inputs(frozen, data, Path("stages/finetune-1")), inputs(frozen, data, Path("stages/finetune-2"))}
    seen |= {inputs(frozen, dataclasses.replace(data, **change)) for change in changed}
    assert len(seen) == 3 + len(changed)


def test_what_was_said_is_kept_under_what_was_asked(data, tmp_path, monkeypatch):
    """Of Inspect's tasks the logs: read in another way they are the same, and the eval is another."""
    frozen = config.from_config_dict(cheese())
    folders = []
    monkeypatch.setattr(InspectEval, "answer", lambda self, name, items, arm: folders.append(arm.folder) or [])
    one = InspectEval("inspect_evals/x", ((("a", 1),), (("a", 2),)), "", "", ("score", "other"), "", 1, 1, 8, 1.0, 1.0, 0, "msmjax")
    made = []
    for changes in ({}, {"cells": one.cells[:1]}, {"scores": ("other",)}, {"by": "a"}, {"epochs": 2}):
        asked = dataclasses.replace(frozen, evals={"task": dataclasses.replace(one, **changes)}, weights="here")
        whose = dataclasses.replace(data, items={"task": None})
        made.append(evaluation.evaluate(asked, tmp_path, whose, None, None, "import")["task"])
    assert len(set(made)) == 5
    assert len(set(folders[:4])) == 1
    assert folders[4] != folders[0]


def test_a_judge_that_cannot_be_called_is_named():
    """Not one who replays a transcript, or answers here; nor that of an eval which is not asked."""
    frozen = config.from_config_dict(cheese())
    judges = {
        "absent": dataclasses.replace(JUDGE, model="no_such_provider/judge", pinned_by="a test"),
        "recorded": dataclasses.replace(JUDGE, model="recorded", transcript="nowhere.jsonl"),
        "here": dataclasses.replace(JUDGE, model="msmjax/nowhere"),
    }
    one = FakingEval("requests.jsonl", "cues.jsonl", "", False, 8, 1.0, 1.0, 2, 0)
    evals = {name: dataclasses.replace(one, judge=name) for name in judges} | {"alone": one}
    frozen = dataclasses.replace(frozen, evals=evals, teachers=judges)
    evaluation.check_judges(frozen, ["recorded", "here", "alone"])
    with pytest.raises(BadInput, match=r"^teacher no_such_provider/judge: "):
        evaluation.check_judges(frozen, list(evals))


# What evals import and no answer depends on: how files are written and read, and who waits for whom; and what made the items and
# rows, which are named by their content.
PLUMBING = {"artifact", "ranges", "data.rows", "data.examples", "training.checkpoint", "training.processes"}


@pytest.mark.parametrize("weights", ["", "weights/mine"])
def test_all_code_that_answers_come_from_is_another_eval(data, tmp_path, monkeypatch, weights):
    """What a published model's tokenizer needs counts where it is one."""
    frozen = dataclasses.replace(config.from_config_dict(cheese()), weights=weights)
    package = tmp_path / "msmjax"
    shutil.copytree(Path(artifact.__file__).parent, package)
    rooms = ["evals.base_text", "evals.choice", "training.weights", *(["data.huggingface"] if weights else [])]
    script = f"import sys, {', '.join(f'msmjax.{room}' for room in rooms)}\n" + (
        "print(*(name for name, module in sys.modules.items() if name.startswith('msmjax.') and not hasattr(module, '__path__')\n"
        "        or name == 'msmjax.spec'))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=package.parent)
    imported = {name.removeprefix("msmjax.") for name in run.stdout.split()} - PLUMBING
    imported = {name for name in imported if not name.startswith(("corpus.", "spec"))}
    imported -= set() if weights else {"data.template"}  # published weights are read with it
    assert {"evals.choice", "evals.scoring", "data.chat", "model.attention", "training.step"} < imported
    monkeypatch.setattr(artifact, "__file__", str(package / "artifact.py"))
    monkeypatch.setattr(artifact, "code_hash", artifact.code_hash.__wrapped__)  # without its cache
    seen = {inputs(frozen, data)}
    for name in imported:
        path = package.joinpath(*name.split(".")).with_suffix(".py")
        source = path.read_text()
        path.write_text(source + "# another line")
        seen.add(inputs(frozen, data))
        path.write_text(source)
    assert len(seen) == 1 + len(imported)
    assert inputs(frozen, data) in seen
