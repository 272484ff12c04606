"""Figures in the README say which code they are of."""

import json
import re

from msmjax import artifact
from msmjax.config import from_config_dict
from tests.test_config import ROOT, module_of

ROOMS = ("corpus", "data", "evals", "model", "training")  # what the figures of an experiment depend on
STALE = ", and the code has changed since"


def test_figures_of_older_code_are_called_so():
    """Where code or config are others than those that the figures were made with, the README says it, or they are made again."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = r"`--config=(\S+\.py)(?::(\w+))? --config\.seeds='(\S+?)'`"
    said = re.findall(command + r" at commit `\w{7,}` \(code `(\w+)`, config `(\w+)`(.*?)\)", readme)
    assert said, "the README does not say what its figures are of"
    for path, variant, seeds, code, config, rest in said:
        c = module_of(ROOT / path).get_config(variant)
        c.seeds = tuple(json.loads(seeds.replace("(", "[").replace(")", "]")))
        now = artifact.code_hash(*ROOMS), artifact.content_hash(json.loads(from_config_dict(c).source))
        is_stale = now != (code, config)
        assert rest == (STALE if is_stale else ""), f"{path}: the figures are of code {code}, config {config}; now it is {now}"
