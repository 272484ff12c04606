"""What a benchmark finds is nobody's promise; that it runs is."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from benchmarks import cheese
from msmjax.training.loop import LogConfig
from tests.program import ROOT


@pytest.mark.nightly
def test_the_shipped_experiment_is_timed():
    config = cheese.load()
    stages = {"pretrain": dataclasses.replace(config.stages["pretrain"], warmup_steps=1)}
    config = dataclasses.replace(config, stages=stages, log=LogConfig(10, 40))
    seconds, tokens = cheese.time_steps(config, 1)
    assert tokens == config.stages["pretrain"].batch_rows * config.row_length
    assert min(seconds["ours"], seconds["plain"]) > 0
    assert min(cheese.time_loop(config, blocks=1).values()) > 0


def test_back_ends_of_attention_are_compared():
    command = [sys.executable, str(ROOT / "benchmarks" / "attention.py"), "--rows=1", "--length=300", "--turns=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| xla |" in done.stdout
    assert "splash is left out: model.attention='splash': needs a TPU" in done.stderr


@pytest.mark.nightly
def test_influence_is_held_against_retraining(tmp_path):
    """With tiny shapes: every method has a score and every removal a change; what was trained is found again."""
    command = [sys.executable, str(ROOT / "benchmarks" / "influence.py"), "--config=configs/cheese.py:tiny", "--seeds=0"]
    command += ["--subsets=4", "--together=2", f"--workdir={tmp_path}"]
    first, again = (subprocess.run(command, capture_output=True, text=True, timeout=900) for _ in range(2))
    assert first.returncode == 0, first.stderr
    tables = [done.stdout[done.stdout.index("| method |") :] for done in (first, again)]
    assert tables[0] == tables[1]
    for method in ("gradient", "adam", "newton", "adam_newton", "text", "size", "random"):
        assert f"| {method} | " in tables[0]
    assert tables[0].count("% adam |") == 3


@pytest.mark.nightly
def test_all_that_is_measured_on_a_gpu_runs_dry(tmp_path):
    """Every part with tiny shapes here: what the script is on a card, where there is no time to find out that it does not run."""
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "--dry", f"--out={tmp_path}"]
    environment = os.environ | {"PYTHON": sys.executable, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout
    said = json.loads((tmp_path / "gpu.json").read_text())
    parts = said["parts"]
    assert {name for name, part in parts.items() if part["code"] == 0} == {
        "train 8B LoRA",
        "train 1B full",
        "generation",
        "attention",
        "tests",
    }
    assert "jax" in said["versions"]
    for name in ("train 8B LoRA", "train 1B full"):
        ours, theirs = parts[name]["figures"]
        assert ours["turns"][0]["losses"][0] - theirs["turns"][0]["losses"][0] < 1e-3 * theirs["turns"][0]["losses"][0]
    assert parts["generation"]["figures"]["equal"] == 1.0
    assert all(figure["leaks"] == 0 for figure in parts["attention"]["figures"])
    assert "| ours |" in (tmp_path / "gpu.md").read_text()


class Event:
    def __init__(self, name, start_ms, ms, **stats):
        self.name, self.start_ns, self.duration_ns, self.stats = name, start_ms * 1e6, ms * 1e6, list(stats.items())


@dataclasses.dataclass
class Line:
    name: str
    events: list


@dataclasses.dataclass
class Plane:
    name: str
    lines: list


def test_kernels_are_added_up_by_kind_and_part():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import kernels

    program = """
      %custom-call.7 = bf16[8,8] custom-call(), metadata={op_name="jit(step)/jvp(mlp)/dot_general" stack_frame_id=1}
      ROOT %loop_add_fusion.3 = f32[8] fusion(), metadata={op_name="jit(step)/optimizer/add"}
    """
    events = [
        Event("nvjet_sm90_tst", 0, 6, hlo_op="custom-call.7"), Event("loop_add_fusion_3", 6, 2), Event("MemcpyD2D", 8, 1),
        Event("cudnn_generated_sdpa_flash_bprop", 10, 10),
    ]  # fmt: skip
    planes = [Plane("/device:GPU:0", [Line("Stream #1(Compute)", events), Line("XLA Ops", events)]), Plane("/host:CPU", [])]
    found = kernels.add_up(planes, program, 2)
    assert found["lines"] == [
        ["attention kernels", "not named", 5.0, 0.5], ["products", "mlp", 3.0, 0.5], ["elementwise", "optimizer", 1.0, 0.5],
        ["copies", "not named", 0.5, 0.5],
    ]  # fmt: skip
    assert (found["busy"], found["span"]) == (9.5, 10.0)
