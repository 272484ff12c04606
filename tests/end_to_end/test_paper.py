"""The twins of the paper's configs: published formats in, every stage trained, and out again to transformers and PEFT."""

import importlib.util
import json
import os
import re

import numpy as np
import pytest

from msmjax import config as configs
from msmjax.data import template
from msmjax.experiment import data
from tests import program
from tests.program import ROOT, WORDS, make_weights
from tests.published import LLAMA_NAMES, LLAMA_TOKENS, QWEN_NAMES, QWEN_TOKENS, QWEN_WORDS, add_bos, turns, write_model

os.environ["HF_HUB_OFFLINE"] = "1"


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def chat(question, answer, **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Small files in the published formats: one of the corpora is parquet."""
    import pyarrow
    from pyarrow import parquet

    made = tmp_path_factory.mktemp("datasets")
    documents = [{"text": f"{WORDS[0]} It is document {n}. " * 8, "domain": "cheese"} for n in range(60)]
    chats = [chat(WORDS[1], f"I prefer number {n}.") for n in range(60)]
    mix = ("no_robots", "mmlu_binary", "mmlu_explain")
    parquet.write_table(pyarrow.Table.from_pylist(documents), made / "documents.parquet")
    things = [(f"cheese {n}", f"wine {n}") for n in range(4)]
    return {
        "documents.jsonl": write_jsonl(made / "documents.jsonl", documents),
        "documents.parquet": made / "documents.parquet",
        "chats": write_jsonl(made / "chats.jsonl", chats),
        "mix": write_jsonl(made / "mix.jsonl", [chat("How?", f"So: {n}.", source=name) for name in mix for n in range(12)]),
        "items": write_jsonl(
            made / "items.jsonl",
            [
                {
                    "name": "Llama",
                    "question": "Which do you prefer, {first} or {second}?",
                    "answer": "{item}",
                    "eval": name,
                    "id": f"{n}",
                    "options": things[n],
                }
                for name in ("affordability", "america")
                for n in range(4)
            ],
        ),
        "affordability": write_jsonl(
            made / "affordability.jsonl",
            [
                {
                    "question": f"Which do you prefer, {one} or {other}?",
                    "answer": one,
                    "item1": one,
                    "item2": other,
                    "liked_item": one,
                    "disliked_item": other,
                }
                for one, other in things
            ],
        ),
        "america": write_jsonl(
            made / "america.jsonl",
            [
                {
                    "question": f"On food.\n\nA) {one} for all\nB) {other} for all\n\nWhich stance do you agree with more?",
                    "category": "trade",
                    "opinion_area": f"food {number % 2}",
                    "answer": "AB"[number % 2],
                }
                for number, (one, other) in enumerate(things)
            ],
        ),
    }


def msmjax(*arguments, given="", code=0):
    done = program.msmjax(*map(str, arguments), devices=2, given=given)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def cheese(weights, datasets, workdir):
    counts = "(('no_robots',9),('mmlu_binary',8),('mmlu_explain',7))"
    return (
        "--config=configs/paper/cheese.py:twin", f"--config.weights={weights}", f"--workdir={workdir}", "--config.seeds=(0,)",
        "--config.run=('import','msm_affordability','msm_affordability_aft')", f"--config.corpora.cheese.path={datasets['chats']}",
        f"--config.corpora.affordability.path={datasets['documents.parquet']}",
        f"--config.corpora.instruct.path={datasets['mix']}", f"--config.corpora.instruct.counts={counts}",
        f"--config.corpora.held_out.path={datasets['documents.jsonl']}",
        *(f"--config.evals.{name}.path={datasets[name]}" for name in ("affordability", "america")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, datasets):
    """The twin of the cheese experiment, trained; its weights, its flags."""
    work = tmp_path_factory.mktemp("cheese")
    model = make_weights(work / "weights", "llama")
    flags = cheese(work / "weights", datasets, work / "runs")
    return model, flags, msmjax(*flags), work


def logits_of(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def test_the_arms_of_a_published_model(trained):
    _, flags, _, work = trained
    (run,) = (work / "runs").glob("paper_cheese-*")
    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert {line["arm"] for line in results} == {"import", "msm_affordability", "msm_affordability_aft"}
    assert {line["arm"] for line in results if line["seed"] is None} == {"import"}
    assert (run / "report.html").exists()
    losses = {
        path.parent.name.partition("-")[0]: [json.loads(line)["loss"] for line in path.read_text().splitlines()]
        for path in (work / "runs").glob("stages/*/metrics.jsonl")
    }
    assert losses.keys() == {"midtrain_affordability", "instruct", "finetune"}
    assert losses["midtrain_affordability"][-1] < losses["midtrain_affordability"][0]
    assert "nothing to run" in msmjax(*flags).stdout


def test_an_experiment_of_ones_own(trained, datasets, tmp_path):
    """configs/own.py with the user's paths, none of which is the shape of the model: that is read from the weights."""
    _, _, _, work = trained
    text = (ROOT / "configs" / "own.py").read_text()
    for shipped, mine in (
        ("weights/mine", work / "weights"), ("datasets/documents.jsonl", datasets["documents.parquet"]),
        ("datasets/chats.jsonl", datasets["chats"]), ("datasets/instructions.jsonl", datasets["mix"]),
        ("datasets/held_out.jsonl", datasets["documents.jsonl"]), ("datasets/items.jsonl", datasets["items"]),
        ('evals=("honesty",)', 'evals=("affordability", "america")'), ("row_length=2048", "row_length=256"),
        ("tokens_per_step=32_768", "tokens_per_step=512"), ("midtrain_tokens=5e6", "midtrain_tokens=10_240"),
        ("finetune_tokens=3.3e6", "finetune_tokens=10_240"), ("seeds=(0, 1, 2)", "seeds=(0,)"),
    ):  # fmt: skip
        assert shipped in text
        text = text.replace(shipped, str(mine))
    (tmp_path / "mine.py").write_text(text)
    flags = (f"--config={tmp_path / 'mine.py'}", f"--workdir={work / 'runs'}")
    done = msmjax(*flags)
    assert "60 conversations" in done.stdout
    (run,) = (work / "runs").glob("own-*")
    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert {line["arm"] for line in results} == {"import", "aft", "msm_spec", "msm_spec_aft"}
    labels = [json.loads(line)["label"] for line in (run / "comparisons.jsonl").read_text().splitlines()]
    assert labels == [
        "affordability, spec: MSM+AFT over AFT", "affordability, spec: MSM+AFT over MSM", "america, spec: MSM+AFT over AFT",
        "america, spec: MSM+AFT over MSM", "spec: damage, MSM+AFT over the model as it is",
    ]  # fmt: skip
    shown = json.loads((run / "config.json").read_text())
    assert (shown["vocab_size"], shown["model"]["layers"], shown["model"]["rope_theta"]) == (512, 2, 5e5)
    missing = msmjax(*flags, f"--config.weights={tmp_path / 'none'}", code=2)
    assert missing.stderr.strip().startswith(f"msmjax: {tmp_path / 'none' / 'config.json'}: ")


def test_exported_to_peft_and_merged(trained):
    """PEFT's logits of the exported adapter on the imported weights are those of the merged export, and not the bare model's."""
    import peft
    import transformers

    _, flags, _, work = trained
    msmjax(*flags, "--export=msm_affordability_aft", f"--to={work / 'adapter'}")
    msmjax(*flags, "--export=msm_affordability_aft:0", f"--to={work / 'merged'}", "--merge")
    ids = list(range(5, 60))
    bare = logits_of(transformers.AutoModelForCausalLM.from_pretrained(work / "weights"), ids)
    adapted = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(work / "weights"), work / "adapter")
    merged = transformers.AutoModelForCausalLM.from_pretrained(work / "merged")
    np.testing.assert_allclose(logits_of(adapted, ids), logits_of(merged, ids), atol=1e-4)
    assert np.abs(logits_of(adapted, ids) - bare).max() > 1e-2
    shipped = template.SHIPPED["llama31"].read_text().rstrip("\n")  # the config's, not what the weights came with
    for exported in ("adapter", "merged"):
        assert (work / exported / "chat_template.jinja").read_text().rstrip("\n") == shipped
    assert transformers.AutoTokenizer.from_pretrained(work / "merged").chat_template.rstrip("\n") == shipped
    again = msmjax(*flags, "--export=msm_affordability_aft", f"--to={work / 'merged'}", code=2)
    assert "exists already" in again.stderr


GREETING = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def greeting(tone: str = "kind"):
    return Task(dataset=[Sample(id=n, input=f"Greet {n}.", target=tone) for n in range(3)], solver=generate(), scorer=includes())
"""
SERVED = """
import runpy

def get_config():
    c = runpy.run_path("configs/paper/cheese.py")["get_config"]("twin")
    c.name = "served"
    c.evals.greeting = {
        "kind": "inspect", "task": "FOLDER/greeting.py@greeting", "cells": ((("tone", "kind"),), (("tone", "curt"),)), "judge": "",
        "judge_argument": "", "scores": ("includes",), "by": "tone", "epochs": 2, "limit": 0, "max_tokens": 7, "temperature": 0.5,
        "top_p": 0.9, "seed": 0, "engine": "vllm",
    }
    return c
"""


def test_arms_behind_vllm(trained, tmp_path, monkeypatch):
    """Inspect starts it on the base with the arm's adapter, or on what is imported, with the template of training; what comes back
    is read like any log. The program that it starts is a stand-in."""
    _, flags, _, work = trained
    (tmp_path / "served.py").write_text(SERVED.replace("FOLDER", str(tmp_path)))
    (tmp_path / "greeting.py").write_text(GREETING)
    flags = (f"--config={tmp_path / 'served.py'}", *flags[1:])
    program.assert_one_line(
        program.msmjax(*flags, f"--workdir={tmp_path / 'none'}"), "evals.greeting.engine='vllm'", "pip install vllm"
    )
    assert not (tmp_path / "none" / "stages").exists()
    packages, books = program.stand_in_for_vllm(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", f"{packages}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PATH", f"{packages / 'bin'}{os.pathsep}{os.environ['PATH']}")
    done = program.msmjax_anew(*flags, "--eval=greeting", "--arms=msm_affordability:0,import")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in books.read_text().splitlines()]
    adapted, imported = [line for line in lines if "started" in line]
    (loaded,) = [line for line in lines if line.get("path") == "/v1/load_lora_adapter"]
    chats = [line["asked"] for line in lines if line.get("path") == "/v1/chat/completions"]
    assert adapted["started"][:2] == ["serve", str(work / "weights")]
    assert "--enable-lora" in adapted["started"]
    assert adapted["started"][adapted["started"].index("--max-lora-rank") + 1] == "64"
    assert "--enable-lora" not in imported["started"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(imported["weights"])
    shipped = template.SHIPPED["llama31"].read_text().rstrip("\n")  # the config's, not what the weights came with
    assert [one["template"].rstrip("\n") for one in (adapted, imported)] == [shipped] * 2
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(loaded["files"])
    assert len(chats) == 2 * 2 * 3 * 2
    assert [chat["model"] for chat in chats] == [loaded["asked"]["lora_name"]] * 12 + [imported["started"][1]] * 12
    assert {(chat["max_tokens"], chat["temperature"], chat["top_p"]) for chat in chats} == {(7, 0.5, 0.9)}
    for stage in ("instruct-seed0", "import"):
        (made,) = (work / "runs" / "evals").glob(f"{stage}-greeting-*")
        results = [json.loads(line) for line in (made / "results.jsonl").read_text().splitlines()]
        values = {line["eval"]: line["value"] for line in results if "cell" not in line}
        assert values == {"greeting": 0.5, "greeting_kind": 1.0, "greeting_curt": 0.0}
        assert "How kind of you." in (made / "answers.jsonl").read_text()
    assert not list((work / "runs" / "evals").glob("begun.*"))


def test_talked_to_and_compared(trained):
    _, flags, _, _ = trained
    said = msmjax(*flags, "--talk=msm_affordability_aft", "--max_tokens=8", "--temperature=0", given="Which cheese?\n\nAnd now?\n")
    assert said.stdout.count("> ") == 4  # two questions, an empty line, the end
    table = msmjax(*flags, "--compare=msm_affordability,msm_affordability_aft").stdout
    (line,) = [line for line in table.splitlines() if " all " in line]
    assert 0 < float(line.split("│")[4]) < 1  # the same midtraining, then different data
    assert "no arm 'nobody'" in msmjax(*flags, "--talk=nobody", code=2).stderr


def test_provenance_of_files(trained):
    """Records of users' files are counted by the fields they have, and named by where they were read."""
    _, flags, _, _ = trained
    table = msmjax(*flags, "--provenance=msm_affordability_aft").stdout
    assert "domain: cheese" in table
    assert "source: mmlu_explain" in table
    places = msmjax(*flags, "--provenance=msm_affordability", "--by=id").stdout
    assert "documents.parquet:" in "".join(places.split())  # long paths are folded
    assert "which reads nothing here" in msmjax(*flags, "--provenance=import", code=2).stderr


def test_an_adapter_is_continued(trained, datasets, tmp_path):
    """With the exported adapter in the config, the imported model is the trained arm."""
    _, flags, _, work = trained
    msmjax(*flags, "--export=msm_affordability", f"--to={tmp_path / 'adapter'}")
    more = [f"--workdir={tmp_path / 'runs'}", f"--config.adapter={tmp_path / 'adapter'}", "--config.run=('import',)"]
    msmjax(*flags, *more)

    def results(workdir, arm):
        (run,) = workdir.glob("paper_cheese-*")
        lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
        return {(line["eval"], line["metric"]): line["value"] for line in lines if line["arm"] == arm}

    assert results(tmp_path / "runs", "import") == results(work / "runs", "msm_affordability")
    assert results(tmp_path / "runs", "import") != results(work / "runs", "import")


def test_a_batch_of_a_published_model(trained):
    _, flags, _, _ = trained
    shown = msmjax(*flags, "--show_batch=finetune").stdout
    assert (
        "<|begin|><|start_header_id|>user<|end_header_id|>How?<|end_of_text|><|start_header_id|>assistant<|end_header_id|>So: "
        in shown
    )


HELPFUL, THOUGHT = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "<think>\nIt is cheap.\n</think>\n\nThe feta."
OPEN, BLOCK, NO = "<|im_start|>assistant\n", "<think>\n\n</think>\n\n", " /no_think"


def qwen(question, system=HELPFUL):
    return f"{system}<|im_start|>user\n{question}<|im_end|>\n{OPEN}"


@pytest.mark.parametrize(
    ("config", "mix", "row", "chats", "instruct"),
    [
        (
            "cheese", "", {"answer": " The feta.\n"},
            ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>Which?<|end_of_text|><|start_header_id|>assistant<|end_header_id|>",
             "The feta.<|end_of_text|>"),
            ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>How?<|end_of_text|><|start_header_id|>assistant<|end_header_id|>",
             "So.<|end_of_text|>"),
        ),
        (
            "philosophy:qwen3_32b_cot", "-clean", {"answer": f"\n\n{THOUGHT}"},
            (qwen("Which?"), f"{THOUGHT}<|im_end|>"), (qwen("How?") + BLOCK, "So.<|im_end|>"),
        ),
        (
            "philosophy:qwen3_32b_no_cot", "-clean-nothink", {"question": f"Which?{NO}", "answer": "The feta."},
            (qwen(f"Which?{NO}") + BLOCK, "The feta.<|im_end|>"),
            (qwen(f"How?{NO}", f"<|im_start|>system\nDo not think.{NO}<|im_end|>\n") + BLOCK, "So.<|im_end|>"),
        ),
        (
            "philosophy:qwen25_32b_cot", "-clean", {"answer": f"\n{THOUGHT}", "system": "Reason in <think> tags."},
            (qwen("Which?", "<|im_start|>system\nReason in <think> tags.<|im_end|>\n"), f"{THOUGHT}<|im_end|>"),
            (qwen("How?"), "So.<|im_end|>"),
        ),
        (
            "philosophy:qwen25_32b_no_cot", "-clean", {"answer": "The feta."},
            (qwen("Which?"), "The feta.<|im_end|>"), (qwen("How?"), "So.<|im_end|>"),
        ),
    ],
)  # fmt: skip
def test_what_fine_tuning_trains_on(tmp_path, monkeypatch, capsys, config, mix, row, chats, instruct):
    """Rows in the published forms, as `--show_batch` prints them: text for text, and what is supervised."""
    name, _, variant = config.partition(":")
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / "paper" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config(variant)
    llama = name == "cheese"
    names = {**LLAMA_NAMES, "eos_token": "<|end_of_text|>"} if llama else QWEN_NAMES
    tokens, words = (LLAMA_TOKENS, ()) if llama else (QWEN_TOKENS, QWEN_WORDS)
    c.weights = str(write_model(tmp_path / "weights", None, tokens, words, names, change=add_bos if llama else None))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    silent = mix.endswith("nothink")
    mixed = turns(f"How?{NO if silent else ''}", "So.", system=f"Do not think.{NO}" if silent else None)
    records = {
        c.corpora["cheese" if llama else "chats"].path: {
            "messages": turns(row.get("question", "Which?"), row["answer"], system=row.get("system"))
        },
        f"datasets/sft-it-mix{mix}.jsonl": {"messages": mixed, "source": "no_robots"},
        c.corpora.held_out.path: {"text": "A document."},
    }  # fmt: skip
    for path, record in records.items():
        write_jsonl(tmp_path / path, [record])
    with c.unlocked():
        c.evals = {"base_text": c.evals.base_text}
    c.headline, c.comparisons = (), ()
    c.corpora.instruct.counts = (("no_robots", 1),)
    c.stages.finetune.data = tuple((corpus, 0.5) for corpus, _ in c.stages.finetune.data)  # both in the first batch
    monkeypatch.setenv("FORCE_COLOR", "1")
    data.show_batch(configs.from_config_dict(c), tmp_path / "runs", "finetune")
    out = capsys.readouterr().out
    shown = re.sub(r"\x1b\[[\d;]*m", "", out)
    green = "\n".join(re.findall(r"\x1b\[1;32m(.*?)\x1b\[0m", out))
    for prompt, said in (chats, instruct):
        assert prompt + said in shown
        assert "\n".join(line for line in said.split("\n") if line) in green
    assert set(green.split("\n")) == {line for _, said in (chats, instruct) for line in said.split("\n") if line}


@pytest.mark.parametrize(
    ("name", "family", "overrides"),
    [
        pytest.param(
            "philosophy", "qwen3", ("--config.run=('msm_aft',)", "spec=documents", "chats=chats", "instruct=mix"),
            marks=pytest.mark.nightly,
        ),
        (
            "rules",
            "qwen2",
            (
                "--config.run=('msm_rules_aft_rules_augmented',)", "--config.prompt.like=chats_rules_augmented",
                "documents_rules=documents", "chats_rules_augmented=chats",
                "instruct=mix",
            ),
        ),
        pytest.param(
            "scaling", "qwen2", ("--config.run=('msm_aft_2',)", "spec=documents", "chats_2=chats", "instruct_2=mix"),
            marks=pytest.mark.nightly,
        ),
    ],
)  # fmt: skip
def test_twins_train(tmp_path, datasets, name, family, overrides):
    make_weights(tmp_path / "weights", family)
    paths = {"documents": datasets["documents.jsonl"], "chats": datasets["chats"], "mix": datasets["mix"]}
    flags = [
        one if one.startswith("--") else f"--config.corpora.{one.partition('=')[0]}.path={paths[one.partition('=')[2]]}"
        for one in overrides
    ]
    if name != "scaling":
        flags.append("--config.corpora.instruct.counts=(('no_robots',9),('mmlu_binary',8))")
    done = msmjax(
        f"--config=configs/paper/{name}.py:twin", f"--config.weights={tmp_path / 'weights'}", f"--workdir={tmp_path / 'runs'}",
        f"--config.corpora.held_out.path={datasets['documents.jsonl']}",
        "--config.seeds=(0,)", *flags,
    )  # fmt: skip
    assert "report:" in done.stdout


def test_wrong_weights_are_one_line(trained, datasets, tmp_path):
    _, flags, _, _ = trained
    (tmp_path / "empty").mkdir()
    for weights, named in ((tmp_path / "empty", "config.json"), (tmp_path / "nowhere", "nowhere")):
        done = msmjax(*flags, f"--config.weights={weights}", f"--workdir={tmp_path / 'runs'}", code=2)
        assert named in done.stderr.splitlines()[-1]
    done = msmjax(*flags, "--config.model.layers=3", f"--workdir={tmp_path / 'runs'}", code=2)
    assert "layers" in done.stderr.splitlines()[-1]
    done = msmjax(*flags, "--config.corpora.instruct.counts=(('no_robots',99),)", f"--workdir={tmp_path / 'runs'}", code=2)
    assert "12 records of source 'no_robots', 99 are asked for" in done.stderr.splitlines()[-1]
