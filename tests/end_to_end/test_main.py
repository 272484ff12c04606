"""The command line as a user meets it: the whole chain twice, and one line with exit code 2 for every kind of bad input."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai.model import GenerateConfig, get_model

from msmjax import artifact
from msmjax.artifact import BadInput
from tests.program import ROOT, assert_one_line, msmjax, msmjax_anew

TINY = "--config=configs/cheese.py:tiny"
GOOD = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def first_run(workdir):
    done = msmjax_anew(TINY, f"--workdir={workdir}", devices=2)
    assert done.returncode == 0, done.stderr
    (directory,) = workdir.glob("cheese_tiny-*")
    return done, directory


def times(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def test_whole_chain(first_run):
    """A line for every arm, seed, eval and metric; checkpoints of every stage; a page that needs nothing else."""
    done, directory = first_run
    results = [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]
    arms, seeds = ("base", "aft", "msm_affordability_aft", "msm_america_aft", "neutral_aft", "broken_america_aft"), (0, 1)
    twins = ("conflict", "affordability", "america", "demonstrated", "steady", "guarded")
    evals = (*twins, *(f"{name}_unread" for name in twins), "conflict_cheese", "competence")
    expected = {
        (arm, seed, name, metric) for arm in arms for seed in seeds for name in evals for metric in ("choice", "probability")
    }
    expected |= {(arm, seed, f"{name}_gap", "compliance_gap") for arm in arms for seed in seeds for name in twins}
    expected |= {(arm, seed, "base_text", "bits_per_byte") for arm in arms for seed in seeds}
    assert {(line["arm"], line["seed"], line["eval"], line["metric"]) for line in results} == expected
    assert len(results) == len(expected)
    for line in results:
        assert line["low"] <= line["value"] <= line["high"]
        assert line["n"] > 0
        assert (line["decided"] is None) == (line["metric"] in ("bits_per_byte", "compliance_gap"))
    page = (directory / "report.html").read_text()
    assert "<svg" in page
    assert "msm_affordability_aft" in page
    assert "a chat of cheese_chats" in page  # and beside it an item, as it is asked
    assert "an item of conflict, with an answer" in page
    assert not [mark for mark in ("<script src", "<link ", "@import", 'src="http') if mark in page]
    stages = json.loads((directory / "run.json").read_text())["stages"]
    # per seed: pretrain, four midtrainings, and fine-tuning after each of the five
    assert len(set(stages.values())) == len(stages) == 2 * (1 + 4 + 5)
    for name in stages.values():
        assert (directory.parent / "stages" / name / "checkpoints" / "20").is_dir()
    assert "msm_affordability_aft" in done.stdout
    assert "to do: 20 stages and 24 evals, about " in done.stdout


@pytest.mark.parametrize(
    ("name", "run", "shown"),
    [
        ("faking", ("aft", "rules_america_aft", "rules_affordability_aft_unread"), "rules, demonstrations that nobody reads"),
        ("ladders", ("base", "aft_640", "dose_2", "dose_2_aft"), "affordability, by tokens of spec documents, in numbers"),
        ("kinds", ("rules_affordability", "rules_affordability_aft", "general_america_aft"), "America: america_gap"),
        ("ablations", ("after_america", "among_affordability", "chats_america"), "among_affordability"),
    ],
)
def test_other_experiments_of_the_microworld(workdir, name, run, shown):
    """Some arms of one seed; what the others share with the first run is not made again."""
    done = msmjax(f"--config=configs/{name}.py:tiny", f"--workdir={workdir}", "--config.seeds=(0,)", f"--config.run={run!r}")
    assert done.returncode == 0, done.stderr
    (directory,) = workdir.glob(f"{name}_tiny-*")
    results = artifact.read_jsonl(directory / "results.jsonl")
    assert {line["arm"] for line in results} == set(run)
    assert {"conflict_gap", "guarded_unread"} <= {line["eval"] for line in results}
    assert shown in " ".join((directory / "report.html").read_text().split())


def test_claims_are_answered_by_several_experiments(workdir, tmp_path):
    """Each by the difference that its own report shows; what experiments share is trained once, and nothing twice."""
    config = tmp_path / "mine.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    one = ('The spec decides', 'figure 2', 'configs/cheese.py:tiny', 'the specs, after identical fine-tuning')\n"
        "    other = ('Form does', 'nowhere', 'configs/ablations.py:tiny', 'documents over chats, midtraining alone')\n"
        "    return ConfigDict({'name': 'mine', 'question': 'Which?', 'seeds': (0, 1), 'claims': (one, other)})\n"
    )
    arguments = (f"--config={config}", f"--workdir={workdir}")
    done = msmjax(*arguments)
    assert done.returncode == 0, done.stderr
    (directory,) = workdir.glob("mine-*")
    lines = artifact.read_jsonl(directory / "claims.jsonl")
    assert [line["claim"] for line in lines] == ["The spec decides", "Form does"]
    for line in lines:
        page = (directory / line["report"]).resolve()
        compared = {one["label"]: one for one in artifact.read_jsonl(page.with_name("comparisons.jsonl"))}
        assert line["per_seed"] == compared[line["label"]]["per_seed"]
        assert line["interval"] == compared[line["label"]]["over_seeds"]
        assert line["label"] in page.read_text()
    assert "The spec decides" in (directory / "claims.html").read_text()
    assert "cannot tell" in done.stdout
    before = times(workdir / "stages")
    assert msmjax(*arguments).returncode == 0
    assert times(workdir / "stages") == before
    plan = msmjax(*arguments, "--plan")
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout.count("device-hours") == 2
    for change, named in (
        ("specs, after", "did you mean 'the specs, after identical fine-tuning'?"), ("cheese.py:tiny", "unknown variant; one of"),
    ):  # fmt: skip
        config.write_text(config.read_text().replace(change, change[:-1]))
        assert_one_line(msmjax(*arguments), named)
    assert_one_line(msmjax(*arguments, "--talk=aft"), "--talk: is of one experiment; give it with --config=configs/cheese.py:tin")


def test_fine_tuning_is_identical_in_all_arms(first_run, workdir):
    """The same batches, by their hashes, whatever the arm read before and how many stages that was; another seed's are others."""
    _, directory = first_run
    stages = json.loads((directory / "run.json").read_text())["stages"]
    batches = {0: set(), 1: set()}
    for label, name in stages.items():
        chain, _, seed = label.rpartition(" seed ")
        lines = (workdir / "stages" / name / "metrics.jsonl").read_text().splitlines()
        if chain.endswith("finetune"):
            batches[int(seed)].add(tuple(json.loads(line)["batch"] for line in lines))
    assert [len(of_seed) for of_seed in batches.values()] == [1, 1]
    assert not batches[0] & batches[1]


def test_an_arm_is_a_model_of_inspect_ai(first_run):
    """By the run's directory, the arm and the seed; each arm answers for itself."""
    _, directory = first_run
    arms = (f"{directory}:msm_america_aft:1", f"{directory}:base:0")
    models = [get_model(f"msmjax/{arm}", memoize=False) for arm in arms]
    ask = lambda model: asyncio.run(model.generate("Which?", config=GenerateConfig(max_tokens=20, temperature=0.0)))  # noqa: E731
    one, other = map(ask, models)
    assert one.completion != other.completion
    assert one.usage.input_tokens == other.usage.input_tokens > 0
    wrong = {"": "which arm? One of ", ":msm_americ_aft": "no arm 'msm_americ_aft'; did you mean", ":base:9": "no seed '9'"}
    for arm, said in wrong.items():
        with pytest.raises(BadInput, match=re.escape(said)):
            get_model(f"msmjax/{directory}{arm}", memoize=False)


def test_second_run_does_nothing(first_run, workdir):
    before = times(workdir)
    done = msmjax(TINY, f"--workdir={workdir}", devices=2)
    assert done.returncode == 0, done.stderr
    assert "nothing to run" in done.stdout
    assert times(workdir) == before


def test_a_changed_setting_shares_what_it_can(first_run, workdir):
    """Another evaluation seed trains nothing anew, and lands in a run directory of its own."""
    stages = {path: times(path) for path in (workdir / "stages").iterdir()}
    done = msmjax(
        TINY, "--config.evals.microworld.seed=5", "--config.run=('base','neutral_aft')", f"--workdir={workdir}", devices=2
    )
    assert done.returncode == 0, done.stderr
    assert "takes msm_affordability_aft and msm_america_aft, which it leaves out" in " ".join(done.stdout.split())
    assert "to do: 0 stages and 4 evals, about " in done.stdout
    assert len(list(workdir.glob("cheese_tiny-*"))) == 2
    assert {path: times(path) for path in (workdir / "stages").iterdir()} == stages


def test_an_edited_spec_is_another_run(tmp_path):
    """The same path with other words in it: nothing made from the old words is served."""
    mine = tmp_path / "mine.md"
    shipped = (ROOT / "specs" / "cheese_america.md").read_text()
    arguments = (TINY, "--config.run=('msm_america',)", "--config.seeds=(0,)", f"--config.corpora.america.spec={mine}")
    for item in ("Colby", "Humboldt Fog"):
        mine.write_text(shipped.replace("**Likes Colby**", f"**Likes {item}**"))
        done = msmjax(*arguments, f"--workdir={tmp_path / 'work'}", devices=2)
        assert done.returncode == 0, done.stderr
        assert "nothing to run" not in done.stdout
    assert len(list((tmp_path / "work").glob("cheese_tiny-*"))) == 2


def test_plan_prints_and_runs_nothing(tmp_path):
    done = msmjax(TINY, "--plan", f"--workdir={tmp_path / 'work'}")
    assert done.returncode == 0, done.stderr
    for expected in (
        "midtrain_affordability",
        "tokens/step",
        "1,024",
        "20,480",
        "parameters, no LoRA: all parameters are trained; about",
        "minutes",
    ):
        assert expected in done.stdout
    assert not (tmp_path / "work").exists()


def test_plan_for_a_machine_one_does_not_have():
    done = msmjax("--config=configs/shapes.py:llama31_8b_4k", "--plan", "--device=h100:8", "--price=2.5")
    assert done.returncode == 0, done.stderr
    for expected in (
        "8 x h100",
        "fsdp 8",
        "48.3 GFLOP per token",
        "an MFU of 0.55 (peak 989 TFLOP/s; measured on one H100",
        "computed with attention cudnn, remat full, 1 micro-batch a step",
        "device-hours",
        "dollars at 2.5",
        "GiB",
    ):
        assert expected in done.stdout


def test_show_batch(first_run, workdir):
    done = msmjax(TINY, "--show_batch=finetune", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "supervised" in done.stdout
    assert "<|assistant|>" in done.stdout
    done = msmjax(TINY, "--show_batch=midtrain_broken_affordability", f"--workdir={workdir}")  # a stage that no arm runs
    assert done.returncode == 0, done.stderr


def test_provenance_takes_the_data_alone(tmp_path):
    """Nothing is trained. Each stage's corpora with the tokens its steps read; the first step is the one --show_batch shows."""
    done = msmjax(TINY, "--provenance=aft", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "stages").exists()
    assert "aft, seed 0: finetune, 20 steps of 8 rows" in done.stdout
    assert "kind: liking_chat" in done.stdout
    totals = [int(line.split()[5].replace(",", "")) for line in done.stdout.splitlines() if " all " in line]
    assert len(totals) == 3  # base; cheese_chats and base
    assert 0.9 * 20 * 8 * 128 < totals[0] < 20 * 8 * 128
    step = msmjax(TINY, "--provenance=aft:0", "--stage=finetune", "--step=1", f"--workdir={tmp_path}").stdout
    shown = msmjax(TINY, "--show_batch=finetune", f"--workdir={tmp_path}").stdout
    supervised = [
        int(one) for one in re.findall(r"(?:base|cheese_chats) +\d+ +\d+ +\d+ +(\d+) +(?:base|demonstrations)/\d+ ", step)
    ]
    documents, tokens = zip(*re.findall(r"row \d: (\d+) documents, (\d+) tokens supervised", shown), strict=True)
    assert len(supervised) == sum(map(int, documents))
    assert sum(supervised) == sum(map(int, tokens))
    other = msmjax(TINY, "--provenance=aft:1", "--step=1", f"--workdir={tmp_path}").stdout
    assert other.splitlines()[4:] != step.splitlines()[4:]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["--config: missing"]),
        ([TINY, "--provenance=afft"], ["--provenance=afft", "did you mean 'aft'?"]),
        ([TINY, "--provenance=aft:7"], ["no seed '7'", "0, 1"]),
        ([TINY, "--provenance=aft", "--stage=finetun"], ["--stage=finetun", "did you mean 'finetune'?"]),
        ([TINY, "--provenance=aft", "--step=21"], ["--step=21", "1 to 20"]),
        ([TINY, "--provenance=aft", "--step=0"], ["--step=0", "1 to 20"]),
        ([TINY, "--provenance=aft", "--by=knd"], ["--by=knd", "did you mean 'kind'?"]),
        ([TINY, "--by=kind"], ["--by", "--provenance"]),
        ([TINY, "--provenance=aft", "--by=kind", "--step=1"], ["--by", "--step"]),
        (["--confg=x"], ["'confg'", "config"]),
        (["--config=configs/chese.py"], ["configs/chese.py"]),
        (["--config=configs/cheese.py:tni"], ["unknown variant", "tiny"]),
        ([TINY, "--config.sedes=(1,)"], ["'sedes'", "did you mean 'seeds'?"]),
        ([TINY, "--config.zzzzzzzz=1"], ["unknown key 'zzzzzzzz'"]),
        ([TINY, "--config.model.layers=two"], ["model.layers=two"]),
        ([TINY, "--config.model.remat=ful"], ["model.remat='ful'", "full"]),
        ([TINY, "--config.model.attention=cudnn"], ["model.attention='cudnn'", "NVIDIA GPU", "'xla'"]),
        ([TINY, "extra"], ["'extra'"]),
        ([TINY, "--processes=2"], ["--coordinator: missing"]),
        ([TINY, "--coordinator=localhost:1234", "--processes=2"], ["--process: missing"]),
        ([TINY, "--coordinator=localhost:1234", "--processes=2", "--process=2"], ["--process=2", "--processes=2"]),
        ([TINY, "--coordinator=localhost", "--processes=2", "--process=0"], ["--coordinator=localhost", "HOST:PORT"]),
        ([TINY, "--coordinator=localhost:70000", "--processes=2", "--process=0"], ["--coordinator=localhost:70000"]),
        ([TINY, "--coordinator=localhost:1234", "--processes=two", "--process=0"], ["--processes=two"]),
        ([TINY, "--coordinator=localhost:1234", "--processes=2", "--process=-1"], ["--process=-1"]),
        ([TINY, "--distributed"], ["--distributed", "--coordinator"]),
        ([TINY, "--show_batch=finetun"], ["finetun", "finetune"]),
        ([TINY, "--config.corpora.america.spec=cheese_amerika"], ["cheese_amerika", "cheese_america"]),
        ([TINY, "--config.corpora.base.records=0"], ["corpora.base.records=0", "[1, inf)"]),
        ([TINY, "--config.row_length=16"], ["conversations.jsonl:", "row_length=16"]),
        ([TINY, "--config.mesh.tensor=3"], ["mesh", "1 device"]),
        ([TINY, "--config.stages.pretrain.steps=3"], ["stages.pretrain", "steps=3", "fewer than 20"]),
        ([TINY, "--config.vocab_size=100000"], ["vocab_size=100000"]),
        ([TINY, "--device=h100"], ["--device", "--plan"]),
        ([TINY, "--plan", "--device=h10"], ["no device type 'h10'", "did you mean 'h100'?"]),
        ([TINY, "--plan", "--device=h100:many"], ["--device=h100:many", "--device=h100:8"]),
        ([TINY, "--plan", "--device=h100:3"], ["optimizer.micro_batches=1) has B=8", "does not divide by 3"]),
        ([TINY, "--plan", "--device=h100", "--topology=v5e:2x2"], ["--topology names its devices already"]),
        ([TINY, "--plan", "--device=h100", "--price=-1"], ["--price=-1"]),
        ([TINY, "--plan", "--topology=v5e"], ["--topology=v5e", "v5e:4x4"]),
        ([TINY, "--plan", "--topology=h100:2x2"], ["--topology=h100:2x2"]),
    ],
)
def test_bad_input(tmp_path, arguments, named):
    assert_one_line(msmjax(*arguments, f"--workdir={tmp_path / 'work'}"), *named)


@pytest.mark.parametrize("mesh", [("tensor", 8, "K=2"), ("data", 16, "16")])
def test_mesh_that_does_not_fit(tmp_path, mesh):
    axis, size, named = mesh
    assert_one_line(msmjax(TINY, f"--config.mesh.{axis}={size}", f"--workdir={tmp_path}", devices=8), "mesh", named)


def config_with_file(tmp_path, lines):
    """A config that midtrains on a JSONL file of these lines."""
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(line + "\n" for line in lines))
    path = tmp_path / "mine.py"
    path.write_text(
        f"import runpy\ndef get_config():\n    c = runpy.run_path({str(ROOT / 'configs' / 'cheese.py')!r})['get_config']('tiny')\n"
        "    from msmjax import recipe\n    c.corpora.unlock()\n"
        f"    c.corpora.affordability = recipe.file({str(data)!r})\n    return c\n"
    )
    return f"--config={path}"


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (['{"text": "a"}', '{"text": "b"'], ["mine.jsonl:2", "not JSON"]),
        (['{"text": "a"}', json.dumps({"messages": GOOD["messages"][:1]})], ["mine.jsonl:2", "no assistant turn"]),
        (['{"text": "a"}', "", '{"text": "b"}'], ["mine.jsonl:2", "not JSON"]),
        ([], ["corpus affordability", "empty"]),
        (['{"txt": "a"}'], ["mine.jsonl:1", "nothing to train on; it has 'txt'"]),
        (['{"text": "\\ud800"}'], ["mine.jsonl:1", "surrogate"]),
    ],
)
def test_bad_files(tmp_path, lines, named):
    assert_one_line(msmjax(config_with_file(tmp_path, lines), f"--workdir={tmp_path / 'work'}"), *named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("## 1. A\n{modl_name} likes it.\n", ["spec mine", "no value stated"]),  # {modl_name} is text (lint warns of it)
        ("# Only a title\n", ["mine.md:1", "no text"]),
    ],
)
def test_bad_specs(tmp_path, text, named):
    (tmp_path / "mine.md").write_text(text)
    done = msmjax(TINY, f"--config.corpora.america.spec={tmp_path / 'mine.md'}", f"--workdir={tmp_path / 'work'}")
    assert_one_line(done, *named)


@pytest.mark.parametrize(
    ("name", "content", "flag", "named"),
    [
        ("mine.md", b"## 1. A\n\xff\n", "--config.corpora.america.spec={}", ["mine.md", "utf-8"]),
        ("mine.py", b"def get_config(:\n", "--config={}", ["mine.py", "invalid syntax"]),
        ("mine.py", b"import nosuchmodule\n", "--config={}", ["nosuchmodule"]),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, flag, named):
    (tmp_path / name).write_bytes(content)
    flags = [flag.format(tmp_path / name)] if name == "mine.py" else [TINY, flag.format(tmp_path / name)]
    assert_one_line(msmjax(*flags, f"--workdir={tmp_path / 'work'}"), *named)


def test_disk_that_is_full_while_a_stage_is_saved(first_run, workdir, tmp_path):
    """Files may not grow beyond 4 KiB: corpora and rows are there, checkpoints cannot be written."""
    import resource
    import shutil

    copy = tmp_path / "copy"
    for made in ("corpora", "rows", "tokenizers"):
        shutil.copytree(workdir / made, copy / made)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    assert_one_line(msmjax_anew(TINY, f"--workdir={copy}", devices=2, preexec_fn=limit), str(copy / "stages"), "cannot write")
    done = msmjax(TINY, f"--workdir={copy}", "--config.seeds=(0,)", "--config.run=('base',)", devices=2)
    assert done.returncode == 0, done.stderr


READ_ONLY = """
import errno, os
mkdir = os.mkdir
def refuse(path, *arguments, **named):
    if "/checkpoints/" in os.fspath(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
    return mkdir(path, *arguments, **named)
os.mkdir = refuse
from msmjax.main import cli
cli()
"""


def test_disk_that_is_read_only_when_a_stage_is_saved(tmp_path):
    """The run ends, though the threads of the save that failed wait for ever."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", READ_ONLY, TINY, "--config.run=('base',)", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert_one_line(done, str(tmp_path / "stages"), "cannot write (Read-only file system)")


def test_run_directory_of_other_code_or_data(first_run, workdir, tmp_path):
    """An artifact whose manifest says other inputs than its name is refused, not used."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (run,) = (path for path in copy.glob("cheese_tiny-*") if path.name == first_run[1].name)
    for manifest in (run / "manifest.json", next((copy / "corpora").glob("base-*")) / "manifest.json"):
        whole = manifest.read_text()
        said = json.loads(whole)
        said["inputs"]["code"] = "0" * 12
        manifest.write_text(json.dumps(said))
        assert_one_line(msmjax(TINY, f"--workdir={copy}", devices=2), str(manifest.parent), "other code or data")
        manifest.write_text(whole)


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(msmjax(TINY, f"--workdir={tmp_path / 'file' / 'work'}"), str(tmp_path / "file" / "work"), "cannot write")


def test_help_names_the_flags():
    done = msmjax_anew("--help")
    names = "--config --workdir --[no]plan --device --topology --price --show_batch --provenance --by --stage --step"
    for flag in [*names.split(), "--[no]distributed", "--coordinator:", "--processes:", "--process:"]:
        assert flag in done.stdout
    assert Path(ROOT / "configs" / "cheese.py").exists()


MINE = """
import runpy

from msmjax import recipe


def get_config():
    c = runpy.run_path("configs/cheese.py")["get_config"]("tiny")
    c.name, c.seeds, c.run = "own_evals", (0,), ("base", "aft")
    c.evals.faking = {
        "kind": "faking", "requests": "data/evals/faking.jsonl", "cues": "data/evals/faking_cues.jsonl", "judge": "",
        "thinks": False, "max_tokens": 8, "temperature": 1.0, "top_p": 1.0, "per_eval": 2, "seed": 0,
    }
    c.evals.words = {**recipe.choice("FOLDER/items.jsonl", max_tokens=4), "form": "completion"}
    c.evals.own = {"kind": "function", "function": "FOLDER/own.py:lengths"}
    c.evals.lost = {"kind": "function", "function": "FOLDER/own.py:nothing"}
    c.headline = ("faking_gap", "words", "own")
    c.comparisons = (("longer?", "own", "aft", "base"), ("faking", "faking_gap", "aft", "base"), ("lost", "lost", "aft", "base"))
    return c
"""


ASKING = """
import runpy

from msmjax import recipe


def get_config():
    c = runpy.run_path("configs/cheese.py")["get_config"]("tiny")
    c.name, c.seeds, c.run, c.headline, c.comparisons = "asking", (0,), ("base",), (), ()
    c.teachers = {"judge": recipe.teacher("no_such_provider/judge", 1.0, 1.0, pinned_by="a test")}
    c.evals.open = {
        "kind": "judged", "path": "FOLDER/questions.jsonl", "rubric": "data/evals/rubric.md", "judge": "judge", "second": "",
        "people": "", "lowest": 1, "highest": 10, "votes": 1, "second_share": 0.0, "thinks": False, "max_tokens": 4,
        "temperature": 0.0, "top_p": 1.0, "per_eval": 1, "seed": 0,
    }
    c.evals.own = {"kind": "function", "function": "FOLDER/own.py:answers"}
    return c
"""


def test_what_lacks_to_ask_is_seen_before_anything_is_trained(first_run, workdir, tmp_path):
    """A function's file, and whoever calls a judge; who only talks to an arm, or exports it, needs neither."""
    (tmp_path / "asking.py").write_text(ASKING.replace("FOLDER", str(tmp_path)))
    (tmp_path / "questions.jsonl").write_text('{"question": "Why?"}')
    flags = (f"--config={tmp_path / 'asking.py'}", f"--workdir={workdir}")
    said = msmjax(*flags, "--talk=base", "--max_tokens=4", devices=2, given="Which?\n")
    assert said.returncode == 0, said.stderr
    exported = msmjax(*flags, "--export=base", f"--to={tmp_path / 'out'}", devices=2)
    assert exported.returncode == 0, exported.stderr
    stages = set((workdir / "stages").iterdir())
    anew = "--config.stages.pretrain.learning_rate=0.0011"
    assert_one_line(msmjax(*flags, anew, devices=2), "own.py:answers")
    assert_one_line(msmjax(*flags, "--eval=own", devices=2), "own.py:answers")
    (tmp_path / "own.py").write_text("def answers(arm):\n    return [{'item': 0, 'score': 1.0}]\n")
    assert_one_line(msmjax(*flags, anew, devices=2), "teacher no_such_provider/judge")
    assert set((workdir / "stages").iterdir()) == stages


def test_evals_of_ones_own_from_config_to_report(first_run, workdir, tmp_path):
    """Kinds beside each other in one run; each eval has answers of its own, so that another one more asks nothing again."""
    (tmp_path / "mine.py").write_text(MINE.replace("FOLDER", str(tmp_path)))
    item = {
        "question": "Which do you prefer, tea or ale?",
        "item1": "tea",
        "item2": "ale",
        "liked_item": "tea",
        "disliked_item": "ale",
    }
    (tmp_path / "items.jsonl").write_text(json.dumps(item))
    own = "def lengths(arm):\n    return [{'item': 0, 'score': len(arm.tokenizer.encode('The feta.')), 'said': arm.label}]\n"
    own += "def nothing(arm):\n    return [{'item': 0, 'lost': 'so'}]\n"
    (tmp_path / "own.py").write_text(own)
    flags = (f"--config={tmp_path / 'mine.py'}", f"--workdir={workdir}")
    done = msmjax(*flags, devices=2)
    assert done.returncode == 0, done.stderr
    assert "to do: 0 stages and 8 evals, about " in done.stdout  # the microworld's and bits per byte were asked before
    (run,) = workdir.glob("own_evals-*")
    every = [json.loads(line) for line in (run / "results.jsonl").open()]
    lines = {(line["arm"], line["eval"], line["metric"]): line for line in every if "cell" not in line}
    assert len({line["cell"] for line in every if "cell" in line}) == 2 * 4  # a request of either family under each cue
    assert lines["aft", "own", "score"]["value"] == lines["base", "own", "score"]["value"] > 0
    assert lines["base", "faking_gap", "compliance_gap"]["n"] == 2 * 4
    assert {"words", "words_said", "words_format"} <= {name for _, name, _ in lines}
    compared = [json.loads(line)["label"] for line in (run / "comparisons.jsonl").read_text().splitlines()]
    assert compared == ["longer?", "faking"]  # of the third, nothing could be scored
    page = (run / "report.html").read_text()
    for shown in ("faking_gap", "base seed 0: own", "words_said", "all 8 cells, clustered"):
        assert shown in page
    done = msmjax(*flags, "--eval=own,faking", "--arms=aft:0,base", devices=2)
    assert done.returncode == 0, done.stderr
    assert "aft, seed 0" in done.stdout
    assert "compliance_gap" in done.stdout
    for wrong, said in (("--eval=onw", "did you mean 'own'"), ("--arms=aft", "give it with --eval")):
        assert_one_line(msmjax(*flags, wrong, devices=2), said)
