"""Figures in the README say which answers they are of."""

import json
import re
from pathlib import Path

from msmjax.config import from_config_dict
from msmjax.experiment.data import make_data
from msmjax.experiment.evaluation import answers_hash, eval_path
from msmjax.experiment.stages import to_do
from tests.test_config import ROOT, module_of

STALE = ", and the code has changed since"


def test_figures_of_older_code_are_called_so(tmp_path):
    """Where today's code or config would compute other answers than those of the figures, the README says it, or they are made
    again. What is computed is named by its content, so that nothing has to be trained to know it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = r"`--config=(\S+\.py)(?::(\w+))? --config\.seeds='(\S+?)'`"
    said = re.findall(command + r" at commit `\w{7,}` \(answers `(\w+)`(.*?)\)", readme)
    assert said, "the README does not say what its figures are of"
    for path, variant, seeds, answers, rest in said:
        c = module_of(ROOT / path).get_config(*([variant] if variant else []))
        c.seeds = tuple(json.loads(seeds.replace("(", "[").replace(")", "]")))
        now = _answers(from_config_dict(c), tmp_path)
        is_stale = now != answers
        assert rest == (STALE if is_stale else ""), f"{path}: the figures are of answers {answers}; now they would be {now}"


def _answers(config, workdir: Path) -> str:
    data = make_data(config, workdir, {stage for arm in config.run for stage in config.arms[arm]})
    _, last = to_do(config, workdir, data)
    return answers_hash(eval_path(config, workdir, data, name, stage).name for stage in last for name in config.evals)
