"""What the report is told: arms in the order of the design, whatever a config writes."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from msmjax import config as configs
from msmjax.experiment import findings

ROOT = Path(__file__).resolve().parents[2]
SPECS = ("affordability", "america")
MSM = (*(f"msm_{spec}" for spec in SPECS), *(f"msm_{spec}_aft" for spec in SPECS))
CONTROLS = ("neutral", *(f"broken_{spec}" for spec in SPECS))
RULES = ("rules", "rules_augmented", "value_augmented")
RUNGS = (1_250, 2_500, 5_000, 10_000, 20_000, 40_000, 80_000)
ORDERS = {
    "cheese:": ("base", "aft", *MSM),
    "written:": ("base", "aft", *MSM),
    "written:teacher": ("base", "aft", *MSM),
    "shapes:": ("msm_aft",),
    "paper/cheese:": ("import", "baseline", "aft", *MSM),
    "paper/philosophy:": ("import", "baseline", "aft", "msm", "msm_aft"),
    "paper/rules:": (
        "import", "baseline", *(f"aft_{spec}" for spec in RULES), *(f"msm_{spec}" for spec in RULES),
        *(f"msm_{spec}_aft_{other}" for spec in RULES for other in RULES),
    ),
    "paper/scaling:": ("import", *(f"{arm}_{rows}" for arm in ("aft", "msm_aft") for rows in RUNGS)),
}  # fmt: skip


def load(name):
    path, _, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location("experiment", ROOT / "configs" / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return configs.from_config_dict(module.get_config(variant))


@pytest.mark.parametrize("name", ORDERS)
def test_arms_are_shown_in_the_order_of_the_design(name):
    """As the config lists them, and as a ConfigDict does, which sorts its keys."""
    config = load(name)
    for run in (config.run, tuple(sorted(config.run))):
        assert findings.design_order(dataclasses.replace(config, run=run)) == list(ORDERS[name]), run


def test_controls_come_last():
    config = load("cheese:controls")
    for run in (config.run, tuple(sorted(config.run))):
        order = findings.design_order(dataclasses.replace(config, run=run))
        assert order[: len(MSM) + 2] == list(ORDERS["cheese:"])
        alone, finetuned = order[-6:-3], order[-3:]
        assert set(alone) == set(CONTROLS)
        assert finetuned == [f"{arm}_aft" for arm in alone]


def test_arms_of_one_place_keep_the_order_of_the_run():
    config = load("paper/cheese:")
    turned = dataclasses.replace(config, run=config.run[::-1])
    assert findings.design_order(turned)[-2:] == ["msm_america_aft", "msm_affordability_aft"]
    assert findings.design_order(turned)[:3] == ["import", "baseline", "aft"]


def test_what_midtraining_reads_does_not_move_an_arm():
    config = load("cheese:")
    data = tuple((corpus, 0.2) for corpus in ("america", "affordability", "held_out", "cheese_chats", "base"))
    mixed = {"midtrain_america": dataclasses.replace(config.stages["midtrain_america"], data=data)}
    config = dataclasses.replace(config, stages={**config.stages, **mixed})
    assert findings.design_order(config) == list(ORDERS["cheese:"])
