"""Two processes of four CPU devices each make the run that one process makes."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (
    "--config=configs/cheese.py:tiny",
    "--config.seeds=(0,)",
    "--config.run=('base','msm_affordability_aft')",
    "--config.mesh.data=2",
    "--config.mesh.tensor=2",
)


def free_port():
    with contextlib.closing(socket.socket()) as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def run(workdir, processes):
    """Runs the experiment in one process of eight devices, or two of four; what each said."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(8 // processes)}
    environment.pop("XLA_FLAGS")
    port = free_port()
    started = []
    for process in range(processes):
        flags = [f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={process}"] if processes > 1 else []
        command = [sys.executable, "-m", "msmjax.main", *COMMAND, *flags, f"--workdir={workdir}"]
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, said
    return said


def logs(workdir):
    stages = sorted((workdir / "stages").iterdir())
    return {stage.name: [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()] for stage in stages}


def test_two_processes_equal_one(tmp_path):
    run(tmp_path / "one", 1)
    said = run(tmp_path / "two", 2)
    one, two = logs(tmp_path / "one"), logs(tmp_path / "two")
    assert one.keys() == two.keys()
    assert len(one) == 3
    for name, lines in one.items():
        assert [line["batch"] for line in lines] == [line["batch"] for line in two[name]]
        for ours, theirs in list(zip(lines, two[name], strict=True))[:5]:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    # The first process alone says and writes what is written once.
    assert "report:" in said[0]
    assert "report:" not in said[1]
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
    said = run(tmp_path / "two", 2)  # and there is nothing left to do
    assert "nothing to run" in said[0]
