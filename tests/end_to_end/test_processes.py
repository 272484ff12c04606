"""Several processes make the run that one makes, stop together, and one may go on where others stopped."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from msmjax.main import INTERRUPTED, PREEMPTED

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--config=configs/cheese.py:tiny", "--config.seeds=(0,)", "--config.mesh.data=2", "--config.mesh.tensor=2")
WHOLE = (*TINY, "--config.run=('aft',)")
# Long enough to be interrupted, and hot enough that another batch would be another loss.
LONG = (
    *TINY, "--config.run=('base',)", "--config.stages.pretrain.steps=600", "--config.log.metrics_every=10",
    "--config.log.checkpoint_every=1000",
)  # fmt: skip


def environment(devices):
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}


def start(workdir, processes, arguments):
    """The run in one process of eight devices, or in two of four by launch/local.sh."""
    python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    launcher = ["launch/local.sh", "--processes=2", "--devices-per-process=4", "--"]
    command = [sys.executable, "-m", "msmjax.main"] if processes == 1 else launcher
    return subprocess.Popen(
        [*command, *arguments, f"--workdir={workdir}"], cwd=ROOT, env={**environment(8), "PATH": python},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background have it ignored, for good
    )  # fmt: skip


def run(workdir, processes, arguments, code=0):
    """Runs to the end; what was said."""
    process = start(workdir, processes, arguments)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == code, said
    return said


def logs(workdir):
    stages = sorted((workdir / "stages").iterdir())
    return {stage.name: [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()] for stage in stages}


def wait_for_steps(workdir, steps):
    """Returns when the first stage has logged so many."""
    until = time.monotonic() + 300
    while not any(len(path.read_text().splitlines()) >= steps for path in workdir.glob("stages/*/metrics.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.02)


def free_port():
    with contextlib.closing(socket.socket()) as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start_two(command, logs):
    """Two processes of four devices, without a launcher that would end one when the other fails."""
    port = free_port()
    flags = [[f"--coordinator=localhost:{port}", "--processes=2", f"--process={number}"] for number in range(2)]
    return [
        subprocess.Popen([sys.executable, *command, *own], cwd=ROOT, env=environment(4), stdout=log, stderr=log)
        for own, log in zip(flags, logs, strict=True)
    ]


def test_two_processes_equal_one(tmp_path):
    run(tmp_path / "one", 1, WHOLE)
    said = run(tmp_path / "two", 2, WHOLE)
    one, two = logs(tmp_path / "one"), logs(tmp_path / "two")
    assert one.keys() == two.keys()
    assert len(one) == 2
    for name, lines in one.items():
        assert [line["batch"] for line in lines] == [line["batch"] for line in two[name]]
        for ours, theirs in list(zip(lines, two[name], strict=True))[:5]:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    # The first process alone says and writes what is written once.
    assert "[0] report:" in said
    assert "[1] report:" not in said
    (directory,) = (tmp_path / "two").glob("cheese_tiny-*")
    assert (directory / "report.html").exists()
    results = [
        [json.loads(line) for line in next(work.glob("cheese_tiny-*/results.jsonl")).read_text().splitlines()]
        for work in (tmp_path / "one", tmp_path / "two")
    ]
    for ours, theirs in zip(*results, strict=True):
        assert [ours[name] for name in ("arm", "eval", "metric", "n")] == [theirs[name] for name in ("arm", "eval", "metric", "n")]
        if ours["metric"] != "choice":  # which may turn over on a hair
            assert ours["value"] == pytest.approx(theirs["value"], rel=1e-3)


@pytest.mark.nightly
def test_two_processes_find_what_is_finished(tmp_path):
    run(tmp_path, 2, WHOLE)
    assert "nothing to run" in run(tmp_path, 2, WHOLE)


def test_preempted_and_continued_by_another_number_of_processes(tmp_path):
    """SIGTERM in one process, then Ctrl-C in two, then to the end in one: the batches are the undisturbed run's, and so is the loss
    of the step after each restart."""
    arguments = (*LONG, "--config.stages.pretrain.steps=120")
    run(tmp_path / "undisturbed", 1, arguments)
    for processes, steps, number, code in ((1, 20, signal.SIGTERM, PREEMPTED), (2, 50, signal.SIGINT, INTERRUPTED)):
        process = start(tmp_path / "moved", processes, arguments)
        wait_for_steps(tmp_path / "moved", steps)
        os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches all
        said, _ = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert said.count(", saved at step") == processes, said
    saved = [len(lines) for lines in logs(tmp_path / "moved").values()]
    said = run(tmp_path / "moved", 1, arguments)
    assert f"continues from step {saved[0]}; 0 s of work lost" in said
    (one,), (moved,) = (logs(tmp_path / name).values() for name in ("undisturbed", "moved"))
    assert [line["batch"] for line in one] == [line["batch"] for line in moved]
    for ours, theirs in zip(one[: saved[0] + 1], moved, strict=False):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_lost_process_stops_the_other(tmp_path, victim):
    paths = [tmp_path / f"{number}.log" for number in range(2)]
    with contextlib.ExitStack() as stack:
        processes = start_two(
            ["-m", "msmjax.main", *LONG, f"--workdir={tmp_path / 'work'}"], [stack.enter_context(path.open("w")) for path in paths]
        )
        wait_for_steps(tmp_path / "work", 20)
        processes[victim].kill()
        code = processes[1 - victim].wait(timeout=10)
    last = paths[1 - victim].read_text().splitlines()[-1]
    assert last.endswith(
        f"msmjax: process {victim} of this run was killed, so process {1 - victim} stops too; "
        "its log says why; start all with the same command to continue"
    )
    assert code == 1


FAIL = """
import sys
from absl import flags
from msmjax import main
from msmjax.artifact import BadInput
flags.FLAGS(sys.argv)
main._join_processes()
import jax, numpy as np
from msmjax.training import processes, sharding
processes.watch_others()
mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=2, tensor=1))
rows = []
def read(start, stop):
    rows.extend(range(start, stop))
    return {"tokens": np.arange(start, stop)[:, None] * np.ones((1, 4), int)}
placed = sharding.place_batch(mesh, 16, read)["tokens"]
print(f"process {jax.process_index()} read {sorted(rows)}; sum {int(jax.jit(lambda x: x.sum())(placed))}", flush=True)
processes.wait_for_all("both said so")
if jax.process_index() == 0:  # as where it alone makes the data
    print("msmjax: not a spec")
    main._exit(2)
processes.wait_for_all("never comes")
"""


def test_each_reads_its_own_rows_and_ends_as_the_other_did(tmp_path):
    script = tmp_path / "fail.py"
    script.write_text(FAIL)
    paths = [tmp_path / f"{number}.log" for number in range(2)]
    with contextlib.ExitStack() as stack:
        processes = start_two([str(script)], [stack.enter_context(path.open("w")) for path in paths])
        assert [process.wait(timeout=60) for process in processes] == [2, 2]
    for number, path in enumerate(paths):
        own = list(range(8 * number, 8 * number + 8))
        assert f"process {number} read {own}; sum {4 * sum(range(16))}\n" in path.read_text()
    assert "process 0 of this run ended with exit code 2, so process 1 stops too" in paths[1].read_text()


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    first = start(tmp_path / "work", 1, LONG)
    wait_for_steps(tmp_path / "work", 10)
    said = run(tmp_path / "work", 1, LONG, code=2)
    assert said.splitlines()[-1].startswith("msmjax: ")
    assert f"another run (process {first.pid} on " in said
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == INTERRUPTED
    assert "Traceback" not in said
    assert "msmjax: Ctrl-C: saves and stops as soon as it can; once more stops at once" in said
    assert re.fullmatch(r"msmjax: pretrain seed 0: stopped by Ctrl-C, saved at step \d+; run the same .*", said.splitlines()[-1])


def test_ctrl_c_before_anything_is_trained(tmp_path):
    """One line and 130 where nothing has to be saved."""
    early = start(tmp_path / "early", 1, LONG)
    while not (tmp_path / "early").exists():  # from here on it makes data
        time.sleep(0.02)
    early.send_signal(signal.SIGINT)
    said, _ = early.communicate(timeout=60)
    assert early.returncode == INTERRUPTED
    assert said.splitlines()[-1] == "msmjax: stopped by Ctrl-C; run the same command to continue"
    assert "Traceback" not in said
