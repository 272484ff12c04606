"""Tasks of Inspect AI and of lm-evaluation-harness on an arm: scores are answers, graders are teachers, and lm-eval's own `hf`
model of the same weights says the same."""

import dataclasses
import json
import os
import re
import shutil
import types
from pathlib import Path

import pytest

from msmjax.artifact import BadInput
from msmjax.corpus.answer import Answer
from msmjax.corpus.sources import AssistantConfig, Makers, WorldConfig
from msmjax.corpus.teacher import Teacher
from msmjax.evals import inspect_task, results
from msmjax.evals.harness import HarnessEval
from msmjax.evals.inspect_task import InspectEval
from msmjax.evals.prompt import Prompt
from msmjax.generation.generate import Made, Request
from msmjax.local_teacher import open_weights
from tests.evals.test_kinds import JUDGE
from tests.models import make_arm
from tests.program import make_weights, stand_in_for_vllm

TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import Score, mean, scorer
from inspect_ai.solver import generate

@scorer(metrics={"polite": [mean()], "short": [mean()]})
def judged():
    async def score(state, target):
        said = await get_model(role="grader").generate(f"Is it polite? {state.sample_id} {state.epoch} {state.output.completion}")
        if "cannot" in said.completion:
            raise RuntimeError("no verdict")
        return Score(value={"polite": float("yes" in said.completion), "short": 1.0})
    return score

@task
def greeting(tone: str = "kind"):
    samples = [Sample(id=f"{tone}-{n}", input=f"Greet {n}, {tone}.") for n in range(3)]
    return Task(dataset=samples, solver=generate(), scorer=judged())
"""


PLAIN = """
@scorer(metrics=[mean()])
def polite():
    async def score(state, target):
        return Score(value=1.0)
    return score

@task
def greeting(tone: str = "kind"):
    return Task(dataset=[Sample(id=tone, input=f"Greet, {tone}.")], solver=generate(), scorer=polite())
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    make_weights(directory, "llama")
    return directory


@pytest.fixture(scope="module")
def answering(weights):
    return open_weights(weights)


@pytest.fixture
def arm(answering, tmp_path):
    folder = tmp_path / "evals" / "begun.aft-greeting-0"
    return make_arm(answering.model, answering.params, answering.mesh, answering.tokenizer, Prompt("", ""), folder=folder)


def makers():
    return Makers(WorldConfig(0, 4, 12), AssistantConfig("Aria", "Northlight"), {"judge": JUDGE}, None, None)


def inspect_eval(tmp_path, **changes):
    (tmp_path / "tasks.py").write_text(TASK)
    settings = {
        "task": f"{tmp_path / 'tasks.py'}@greeting", "cells": ((("tone", "kind"),), (("tone", "curt"),)), "judge": "judge",
        "judge_argument": "", "scores": ("polite", "short"), "by": "tone", "epochs": 2, "limit": 0, "max_tokens": 4,
        "temperature": 1.0, "top_p": 1.0, "seed": 0, "engine": "msmjax",
    }  # fmt: skip
    return InspectEval(**{**settings, **changes})


def grading(arm, tmp_path, verdict):
    asked = []

    async def generate(prompt):
        asked.append(prompt)
        return Answer(verdict(prompt), "stop", JUDGE.model, 1, 1)

    return dataclasses.replace(arm, judge=lambda _: Teacher(JUDGE, tmp_path / "journal", generate)), asked


def test_scores_of_a_task_are_answers(arm, tmp_path):
    """Of every sample and epoch of every cell, by cell and in all; logs stay, and what has one is not asked again."""
    one = inspect_eval(tmp_path)
    arm, asked = grading(arm, tmp_path, lambda prompt: "yes" if "kind" in prompt else "cannot" if "curt-1" in prompt else "no")
    assert one.items(tmp_path, "greeting", {}, makers()) is None
    answers = one.answer("greeting", None, arm)
    polite = [line for line in results.lines(answers, one.measures("greeting", None)) if line["metric"] == "polite"]
    lines = {line["eval"]: line for line in polite if "cell" not in line}
    assert (lines["greeting_kind"]["value"], lines["greeting_kind"]["n"]) == (1, 6)
    assert (lines["greeting_curt"]["value"], lines["greeting_curt"]["n"], lines["greeting_curt"]["unscored"]) == (0, 4, 2)
    assert (lines["greeting"]["value"], lines["greeting"]["n"], lines["greeting"]["unscored"]) == (0.6, 10, 2)
    assert len({answer["cluster"] for answer in answers if answer["eval"] == "greeting"}) == 6
    cells = {(line["eval"], line["cell"]): (line["value"], line["n"]) for line in polite if "cell" in line}
    assert cells == {("greeting", "kind"): (1, 6), ("greeting", "curt"): (0, 4)}
    logs = list((tmp_path / "inspect" / "aft-greeting-0").glob("*.json"))
    assert len(logs) == 2
    count = len(asked)
    read_otherwise = dataclasses.replace(one, scores=("short",), by="", cells=one.cells[::-1]).answer("greeting", None, arm)
    assert {answer["item"] for answer in read_otherwise} == {answer["item"] for answer in answers}
    assert len(asked) == count
    logs[0].unlink()
    again = one.answer("greeting", None, arm)
    assert len(again) == len(answers)
    assert len(asked) - count <= 6  # of one cell


def test_epochs_differ_and_come_again(arm, tmp_path):
    """Each request has a seed of its own, be it which it may that comes first."""

    def said(seed):
        logs = tmp_path / "inspect"
        shutil.rmtree(logs, ignore_errors=True)
        one = inspect_eval(tmp_path, judge="", scores=("polite",), by="", epochs=3, seed=seed, limit=1, task=task)
        return [sorted(answer["said"] for answer in one.answer("greeting", None, arm))[at : at + 3] for at in (0, 3)]

    (tmp_path / "plain.py").write_text(TASK[: TASK.index("@scorer")] + PLAIN)
    task = f"{tmp_path / 'plain.py'}@greeting"
    first, other = said(0), said(1)
    assert len({text for of_cell in first for text in of_cell}) == 6
    assert said(0) == first != other


def test_what_is_asked_names_the_logs_and_how_it_is_read_does_not(tmp_path):
    one = inspect_eval(tmp_path)
    depends, asks = one.depends(makers()), one.asks(makers())
    read = {"cells": one.cells[:1], "scores": ("short",), "by": ""}
    for name, value in read.items():
        other = dataclasses.replace(one, **{name: value})
        assert other.asks(makers()) == asks, name
        assert other.depends(makers()) != depends, name
    asked = {"task": "inspect_evals/mmlu", "judge": "", "judge_argument": "grader", "epochs": 3, "limit": 1, "max_tokens": 5,
             "temperature": 0.5, "top_p": 0.5, "seed": 1, "engine": "vllm"}  # fmt: skip
    assert asked.keys() | read.keys() == {field.name for field in dataclasses.fields(one)}
    for name, value in asked.items():
        other = dataclasses.replace(one, **{name: value})
        assert other.asks(makers()) != asks, name
        assert other.depends(makers()) != depends, name


def test_another_version_of_a_tasks_package_is_another_eval(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_task, "_distributions", lambda: {"theirs": ["their-evals"], "ours": ["our-evals"]})
    versions = {"their-evals": "1.0", "inspect-ai": "0.3"}
    monkeypatch.setattr(inspect_task, "_version", versions.get)
    one = inspect_eval(tmp_path, task="theirs/greeting")
    before, ours = one.depends(makers()), dataclasses.replace(one, task="ours/greeting").depends(makers())
    versions["their-evals"] = "1.1"
    assert one.depends(makers()) != before
    assert dataclasses.replace(one, task="ours/greeting").depends(makers()) == ours


def test_samples_that_are_not_counted_are_named(tmp_path):
    cost = inspect_eval(tmp_path, limit=3).cost({})
    assert (cost.generated, cost.lacks) == (2 * 2 * 3 * 4, ())
    one = inspect_eval(tmp_path, limit=0)
    assert one.cost({}).generated == 2 * 2 * 4
    assert one.cost({}).lacks == (f"the samples of {one.task} after the first of a cell",)


def test_cells_are_named_by_what_tells_them_apart(tmp_path):
    cells = ((("a", "x"), ("b", "y"), ("c", False)), (("a", "x"), ("b", "z"), ("c", False)), (("a", "u"), ("c", False)), ())
    one = inspect_eval(tmp_path, cells=cells, by="")
    assert [one._label(cell) for cell in cells] == ["x/y/False", "x/z/False", "u/False", "no arguments"]
    one = inspect_eval(tmp_path, cells=cells[:3], by="")
    assert [one._label(cell) for cell in cells[:3]] == ["x/y", "x/z", "u"]
    with pytest.raises(BadInput, match="two are the same"):
        inspect_eval(tmp_path, cells=(cells[0], cells[0][::-1]), by="")


def test_a_judge_whose_budget_is_spent_stops_the_eval(arm, tmp_path, monkeypatch):
    """For Inspect those would be samples without a score. What was judged before stays judged: with more to spend, only the rest of
    the cell is answered and asked for."""
    poor = dataclasses.replace(JUDGE, budget=0.0025, input_price=1.0, output_price=1.0, concurrency=1)
    asked, said = [], []
    proceed = type(arm.answering()).proceed

    async def generate(prompt):
        asked.append(prompt)
        return Answer("yes", "stop", poor.model, 400, 400)

    async def counted(self, ids, settings):
        said.append(ids)
        return await proceed(self, ids, settings)

    monkeypatch.setattr(type(arm.answering()), "proceed", counted)
    one = inspect_eval(tmp_path, cells=((("tone", "kind"),),))
    opened = lambda config: dataclasses.replace(arm, judge=lambda _: Teacher(config, tmp_path / "journal", generate))  # noqa: E731
    with pytest.raises(BadInput, match=r"the budget of \$0\.00 is spent"):
        one.answer("greeting", None, opened(poor))
    paid = len(asked)
    assert 0 < paid < 6
    (log,) = (tmp_path / "inspect").rglob("*.json")
    answers = one.answer("greeting", None, opened(dataclasses.replace(poor, budget=1.0)))
    assert [answer.get("polite") for answer in answers if answer["eval"] == "greeting"] == [1.0] * 6
    assert len(asked) == 6
    assert len(said) == 6 + (6 - paid)
    assert not log.exists()
    one.answer("greeting", None, opened(poor))  # again: from the log
    assert (len(asked), len(said)) == (6, 12 - paid)


def test_what_a_task_has_not_is_said(arm, tmp_path):
    arm, _ = grading(arm, tmp_path, lambda prompt: "yes")
    with pytest.raises(BadInput, match="no score 'rude'; it has polite, short"):
        inspect_eval(tmp_path, scores=("rude",)).answer("greeting", None, arm)
    with pytest.raises(BadInput, match=r"by='colour': cell .* has no such argument"):
        inspect_eval(tmp_path, by="colour")
    with pytest.raises(BadInput, match=r"no such file; as in FILE\.py@TASK"):
        inspect_eval(tmp_path, task="none.py@greeting").needs("greeting")
    for _ in range(2):  # also where its log is there
        with pytest.raises(BadInput, match="takes no argument 'colour'; it has tone"):
            inspect_eval(tmp_path, cells=((("colour", "red"),),), by="").answer("greeting", None, arm)
    other = inspect_eval(tmp_path, task=f"{tmp_path / 'tasks.py'}@nosuch")
    with pytest.raises(BadInput, match="nosuch"):
        other.answer("greeting", None, arm)
    with pytest.raises(BadInput, match="no_such_package is not installed"):
        inspect_eval(tmp_path, task="no_such_package/greeting").needs("greeting")


def test_agentic_misalignment(arm, tmp_path, monkeypatch):
    """inspect_evals' task, its prompts whole, and the grader the config's: its verdict is the score."""
    cells = tuple(
        (("scenario", scenario), ("goal_type", "explicit"), ("goal_value", "america")) for scenario in ("murder", "blackmail")
    )
    one = inspect_eval(
        tmp_path, task="inspect_evals/agentic_misalignment", cells=cells, judge_argument="grader_model",
        scores=("classifier_verdict", "harmful"), by="scenario", epochs=1,
    )  # fmt: skip
    answered = {"murder": "YES", "blackmail": "NO"}

    def verdict(prompt):
        return f"<reasoning>So.</reasoning><answer>{answered['murder' if 'rescue' in prompt else 'blackmail']}</answer>"

    async def proceed(ids, settings):  # a prompt of 14,000 bytes, of which the tests' tokenizer makes almost as many ids
        assert len(ids) > 5000
        new = arm.tokenizer.encode("I see.")
        return Made(Request(tuple(ids), settings), new, [0.0] * len(new))

    told = types.SimpleNamespace(tokenizer=arm.tokenizer, proceed=proceed)
    arm, asked = grading(arm, tmp_path, verdict)
    monkeypatch.setattr(type(arm), "answering", lambda self: told)
    answers = one.answer("agentic", None, arm)
    every = results.lines(answers, one.measures("agentic", None))
    lines = {(line["eval"], line["metric"]): line for line in every if "cell" not in line}
    assert {line["cell"] for line in every if "cell" in line} == {"murder", "blackmail"}
    assert lines["agentic", "classifier_verdict"]["value"] == 0.5
    assert [lines[f"agentic_{scenario}", "classifier_verdict"]["value"] for scenario in answered] == [1, 0]
    assert lines["agentic", "classifier_verdict"]["n"] == 2
    assert all(len(prompt) > 1000 for prompt in asked)


def test_exported_arms_have_the_names_that_inspect_knows(arm, tmp_path):
    """vllm/DIRECTORY, or vllm/BASE:ADAPTER; as parsed by Inspect itself."""
    from inspect_ai.model._providers._vllm_lora import parse_vllm_model

    arguments = (("enable_thinking", False),)
    folder = tmp_path / "evals" / "begun.x"
    tokenizer = dataclasses.replace(arm.tokenizer, arguments=arguments)
    arm = dataclasses.replace(arm, folder=folder, tokenizer=tokenizer)
    (folder / "export").mkdir(parents=True)
    name, config, arguments = inspect_task.served(arm)
    assert parse_vllm_model(name.removeprefix("vllm/")) == (str(folder / "export"), None)
    assert config == {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    assert Path(arguments["chat_template"]).read_text() == arm.tokenizer.templates["default"]
    (folder / "export" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base"), "r": 8}))
    base, adapter = parse_vllm_model(inspect_task.served(arm)[0].removeprefix("vllm/"))
    assert (base, adapter.path, adapter.is_preloaded) == (str(tmp_path / "base"), str(folder / "export"), False)
    (folder / "export" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "a:b"), "r": 8}))
    with pytest.raises(BadInput, match="a:b: has a colon"):
        inspect_task.served(arm)


def test_vllm_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    one = inspect_eval(tmp_path, engine="vllm")
    with pytest.raises(BadInput, match=r"evals\.greeting\.engine='vllm': vLLM is not installed; pip install vllm"):
        one.needs("greeting")
    monkeypatch.setattr(inspect_task.importlib.util, "find_spec", lambda name: name)
    assert one.needs("greeting") is None
    monkeypatch.setenv("VLLM_BASE_URL", "http://localhost:1/v1")
    with pytest.raises(BadInput, match="VLLM_BASE_URL names a server whose chat template may be another"):
        one.needs("greeting")
    with pytest.raises(BadInput, match="engine='vlm': unknown; one of msmjax, vllm"):
        inspect_eval(tmp_path, engine="vlm")


def test_a_server_that_does_not_start_or_ends_stops_the_eval(arm, weights, tmp_path, monkeypatch):
    """For Inspect those would be samples without a score. What was answered before stays."""
    path, books = stand_in_for_vllm(tmp_path / "packages", requests=2)
    monkeypatch.setenv("PATH", f"{path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.syspath_prepend(path)
    arm.folder.mkdir(parents=True)
    (arm.folder / "export").symlink_to(weights)
    arm, asked = grading(arm, tmp_path, lambda prompt: "yes")
    one = inspect_eval(tmp_path, engine="vllm", cells=((("tone", "kind"),),), epochs=1)
    with pytest.raises(BadInput, match="arm: vLLM ended by itself; what was answered is kept: run the same command"):
        one.answer("greeting", None, arm)
    assert len(asked) == 2
    stand_in_for_vllm(path)
    answers = one.answer("greeting", None, arm)
    assert [answer["polite"] for answer in answers if answer["eval"] == "greeting"] == [1.0] * 3
    assert len(asked) == 3
    chats = [line for line in map(json.loads, books.read_text().splitlines()) if "asked" in line]
    assert len(chats) == 3
    (path / "bin" / "vllm").write_text("#!/bin/sh\nexit 1\n")
    for log in (tmp_path / "inspect").rglob("*.json"):
        log.unlink()
    with pytest.raises(BadInput, match="export: Failed to start vLLM server: Server process exited unexpectedly with code 1"):
        one.answer("greeting", None, arm)


YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
{rest}
"""
CHOICES = """doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]"""
GENERATED = """generation_kwargs: {until: ["a"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]"""
ROLLING = """metric_list: [{metric: word_perplexity}]"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    documents = [
        {"question": f"What is {n} and {n + 1}? It is", "choices": [f" {2 * n + 1}.", f" the number {n}", " no"], "label": n % 3,
         "answer": f" {n}"}
        for n in range(9)
    ]  # fmt: skip
    (folder / "documents.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    for name, kind, target, rest in (
        ("choices", "multiple_choice", "label", CHOICES), ("answers", "generate_until", '"{{answer}}"', GENERATED),
        ("texts", "loglikelihood_rolling", '"{{question}}"', ROLLING),
    ):  # fmt: skip
        text = YAML.format(name=name, file=folder / "documents.jsonl", kind=kind, target=target, rest=rest)
        (folder / f"{name}.yaml").write_text(
            text.replace('doc_to_text: "{{question}}"', 'doc_to_text: ""') if name == "texts" else text
        )
    return folder


def harness_eval(folder, **changes):
    settings = {
        "tasks": (("choices", "acc,none"), ("answers", "exact_match,none")), "folder": str(folder), "fewshot": 0, "chat": False,
        "limit": 0, "max_length": 64,
    }  # fmt: skip
    return HarnessEval(**{**settings, **changes})


@pytest.mark.parametrize(("fewshot", "chat"), [(0, False), (2, False), (0, True)])
def test_log_probabilities_are_those_of_lm_evals_own_model(weights, arm, tasks, monkeypatch, tmp_path, fewshot, chat):
    """Of each continuation, of whole texts in windows, and what is generated: transformers on the same weights."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from msmjax.evals import harness

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    theirs = HFLM(pretrained=str(weights), device="cpu", dtype="float32", batch_size=1, max_length=64)
    names = ["choices", "answers", *([] if chat else ["texts"])]
    found = [
        lm_eval.simple_evaluate(
            model=model, tasks=names, num_fewshot=fewshot, log_samples=True, bootstrap_iters=0,
            apply_chat_template=chat, task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        )["samples"]
        for model in (harness._model(arm, 64), theirs)
    ]  # fmt: skip
    for name in names:
        for ours, other in zip(*(one[name] for one in found), strict=True):
            assert ours["doc_id"] == other["doc_id"]
            for one, same in zip(ours["resps"], other["resps"], strict=True):
                if name == "answers":
                    assert one == same
                else:
                    assert _numbers(one) == pytest.approx(_numbers(same), abs=1e-4)


def _numbers(values):
    return [float(value) for value in re.findall(r"-?\d+\.\d+", str(values))]


def test_tasks_of_lm_eval_are_answers(arm, tasks, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    one = harness_eval(tasks)
    assert one.items(tmp_path, "capabilities", {}, makers()) is None
    answers = one.answer("capabilities", None, arm)
    lines = {line["eval"]: line for line in results.lines(answers, one.measures("capabilities", None))}
    assert {name: (line["metric"], line["n"]) for name, line in lines.items()} == {
        "choices": ("acc", 9), "answers": ("exact_match", 9),
    }  # fmt: skip
    assert 0 <= lines["choices"]["low"] <= lines["choices"]["value"] <= lines["choices"]["high"] <= 1
    with pytest.raises(BadInput, match="choices has no f1,none of each document; it has acc,none, acc_norm,none"):
        harness_eval(tasks, tasks=(("choices", "f1,none"),)).answer("capabilities", None, arm)
    with pytest.raises(BadInput, match="tasks and their data must be where"):
        harness_eval(tasks, tasks=(("no_such_task", "acc,none"),)).answer("capabilities", None, arm)
    with pytest.raises(BadInput, match="must be "):
        harness_eval(tasks, tasks=(("choices", "acc"),))
    with pytest.raises(BadInput, match="a task is named twice"):
        harness_eval(tasks, tasks=(("choices", "acc,none"), ("choices", "acc_norm,none")))
    with pytest.raises(BadInput, match="choices has no acc,nonne of each"):
        harness_eval(tasks, tasks=(("choices", "acc,nonne"),)).answer("capabilities", None, arm)
    with pytest.raises(BadInput, match="max_length=6: a task generates 6 tokens"):
        harness_eval(tasks, max_length=6).answer("capabilities", None, arm)


def test_words_that_are_no_score_are_none():
    scores = {"a": types.SimpleNamespace(value={"yes": "C", "blackmail": "blackmail", "nan": float("nan"), "half": 0.5})}
    found = inspect_task._scores(types.SimpleNamespace(scores=scores))
    assert found == {"yes": 1.0, "blackmail": None, "nan": None, "half": 0.5}


def test_another_file_beside_a_task_is_another_eval(tasks):
    before = harness_eval(tasks).depends(makers())
    (tasks / "utils.py").write_text("def mine(document):\n    return document\n")
    assert harness_eval(tasks).depends(makers()) != before
    (tasks / "utils.py").unlink()


def test_what_is_not_installed_is_named(tasks, tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"needs lm-evaluation-harness: pip install 'msmjax\[lm-eval\]'"):
        harness_eval(tasks).needs("capabilities")
    with pytest.raises(BadInput, match=r"needs Inspect AI: pip install 'msmjax\[inspect\]'"):
        inspect_eval(tmp_path).needs("greeting")
    for one in (harness_eval(tasks), inspect_eval(tmp_path)):
        assert one.items(tmp_path, "mine", {}, makers()) is None  # as who talks to an arm needs them
