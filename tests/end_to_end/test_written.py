"""Corpora by teachers through the real program: spec to report with the shipped transcript, refusals, and weights that answer."""

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from msmjax.artifact import read_jsonl
from msmjax.corpus.teacher import Teacher
from msmjax.corpus.teacher_config import TeacherConfig
from msmjax.local_teacher import open_teacher
from tests.program import ROOT, assert_one_line, make_weights, msmjax

CONFIG = "--config=configs/written.py"
STAGES = ("pretrain", "midtrain_affordability", "midtrain_america", "finetune")
SMALL = (
    "--config.model.width=16", "--config.evals.preferences.per_eval=4", "--config.corpora.base.records=200",
    *(f"--config.stages.{name}.steps=20" for name in STAGES),
)  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def run(workdir):
    return msmjax(CONFIG, *SMALL, "--config.run=('msm_america_aft',)", f"--workdir={workdir}")


def test_spec_to_report_in_one_command(run, workdir):
    """The documents of the transcript are trained on, and nobody was called."""
    assert run.returncode == 0, run.stderr
    (directory,) = workdir.glob("written-*")
    assert (directory / "report.html").is_file()
    assert {line["eval"] for line in read_jsonl(directory / "results.jsonl")} >= {"conflict", "affordability", "america"}
    (corpus,) = workdir.glob("corpora/america-*")
    assert len(read_jsonl(corpus / "documents.jsonl")) >= 60
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert set(manifest["teachers"]["writer"]["calls"]) == {"replayed"}
    assert not (workdir / "answers").exists()


def test_every_record_carries_its_provenance(run, workdir):
    (corpus,) = workdir.glob("corpora/america-*")
    for record in read_jsonl(corpus / "documents.jsonl"):
        assert {"id", "spec", "section", "domain", "subdomain", "doc_type", "idea", "teacher", "prompt", "verdicts"} <= set(record)
        assert all(record[key] for key in record)
    done = msmjax(CONFIG, *SMALL, f"--workdir={workdir}", "--provenance=msm_america_aft", "--stage=midtrain_america")
    assert done.returncode == 0, done.stderr
    assert "section: 2. The value" in done.stdout


def test_check_prints_the_gates_and_writes_a_page(run, workdir):
    done = msmjax(CONFIG, "--check=america", *SMALL, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.rsplit("report: ", 1)[1].strip()).read_text()
    assert "Fit to train on." in page
    assert "<svg" in page
    assert "contaminated" in done.stdout


def test_a_corpus_that_fails_a_gate_is_not_trained_on_unless_told(workdir):
    """120 records where the transcript has enough for fewer: the shortfall is honest, and stops the run."""
    asked = ("--config.corpora.america.records=500", "--config.run=('msm_america',)", *SMALL, f"--workdir={workdir}")
    done = msmjax(CONFIG, *asked)
    assert_one_line(done, "corpus america: does not pass missing", "report.html", "gates.allow")
    assert not list(workdir.glob("stages/pretrain > midtrain_america*"))
    allowed = msmjax(CONFIG, *asked, "--config.gates.allow=('missing',)", "--check=america")
    assert allowed.returncode == 0, allowed.stderr
    assert "fails, allowed" in allowed.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--check=americana",), ("no such corpus", "'america'")),
        (("--check=america", "--config.teachers.writer.transcript=nowhere.jsonl"), ("nowhere.jsonl", "no such transcript")),
        (("--check=america", "--config.corpora.america.ideas=3"), ("transcript.jsonl", "has no answer for ideas")),
        # ConfigDict keeps two entries that are one dict together: the judge would be changed with the writer
        (("--config.teachers.writer.model=openai/gpt-4o",), ("teachers.writer", "only model 'recorded'")),
        (("--config.corpora.america.judge=jugde",), ("corpora.america", "no teacher 'jugde'", "'judge'")),
        (("--config.corpora.america.votes=2",), ("corpora.america", "votes=2", "odd")),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, named, tmp_path):
    assert_one_line(msmjax(CONFIG, *SMALL, f"--workdir={tmp_path}", *arguments), *named)


def test_an_unpinned_model_is_one_line(tmp_path):
    done = msmjax(f"{CONFIG}:teacher", "--plan", "--config.teachers.judge.model=openai/gpt-4o", f"--workdir={tmp_path}")
    assert_one_line(done, "teachers.judge", "openai/gpt-4o", "not pinned")


def test_weights_of_ours_answer(tmp_path):
    """Prompts that wait are one batch; the journal keeps the answers, and knows the weights by their content."""
    make_weights(tmp_path / "weights", "qwen3")
    config = TeacherConfig(
        model=f"msmjax/{tmp_path / 'weights'}", pinned_by="", base_url="", transcript="", temperature=1.0, top_p=1.0, max_tokens=8,
        timeout=60, concurrency=4, batch=False, input_price=0.0, output_price=0.0, budget=0.0, tries=1, error_share=1.0,
    )  # fmt: skip
    prompts = ["Which cheese?", "Which cheese do you prefer, the Brie or the Colby?", "Who are you?"]

    async def ask_all(opened):
        async with opened(config, tmp_path / "answers") as teacher:
            await asyncio.gather(*(teacher.ask("a question", prompt, lambda text: text) for prompt in prompts))
            return teacher

    first = asyncio.run(ask_all(open_teacher))
    assert first.calls["answered"] == 3
    again = asyncio.run(ask_all(Teacher))  # it would have to be Inspect's, if anything were asked
    assert (again.calls["answered"], again.calls["replayed"]) == (0, 3)
    lines = read_jsonl(first.journal.path)
    assert all(line["output_tokens"] <= 8 and line["input_tokens"] > 10 for line in lines)
    make_weights(tmp_path / "other", "llama")
    other = dataclasses.replace(config, model=f"msmjax/{tmp_path / 'other'}")
    assert other.identity["weights"] != config.identity["weights"]


def test_the_sample_is_recorded_from_its_texts():
    """A text that was changed has been recorded anew; that a prompt was, the runs above would show."""
    import importlib.util

    found = importlib.util.spec_from_file_location("record", ROOT / "data" / "sample" / "record.py")
    record = importlib.util.module_from_spec(found)
    found.loader.exec_module(record)
    names = ("affordability", "america", "affordability_chats", "america_chats", "demonstrations", "identity")
    texts = {answer for name in names for _, answer in record.script_of(name)}
    assert {line["text"] for line in read_jsonl(ROOT / "data" / "sample" / "transcript.jsonl")} <= texts
