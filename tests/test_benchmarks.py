"""What a benchmark finds is nobody's promise; that it runs is."""

import dataclasses
import subprocess
import sys

from benchmarks import cheese
from msmjax.training.loop import LogConfig
from tests.program import ROOT


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
