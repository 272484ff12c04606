"""What a number of seeds and items could show: against simulated experiments, and from the spread of an earlier run."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from msmjax import artifact, config, recipe
from msmjax.evals.harness import HarnessEval
from msmjax.evals.inspect_task import InspectEval
from msmjax.experiment import data, plan, power
from msmjax.report import inference
from tests.experiment.test_data import ITEM
from tests.experiment.test_plan import load
from tests.test_config import cheese


@pytest.fixture
def asked(tmp_path):
    """A config whose headline eval has 40 items, and another one 40 in 8 clusters; damage comes first among its comparisons."""
    path, c = tmp_path / "items.jsonl", cheese()
    lines = [{**ITEM, "id": f"{index}", "eval": "taste"} for index in range(50)]
    lines += [{**ITEM, "id": f"{index}", "eval": "thirst", "cluster": f"{index % 8}"} for index in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with c.unlocked():
        c.evals = {"mine": recipe.choice(str(path), per_eval=40, max_tokens=4), "base_text": c.evals.base_text}
    c.headline, c.seeds = ("taste", "thirst_said"), (0, 1, 2, 3, 4)
    c.comparisons = tuple(
        (label, name, "msm_affordability_aft", "msm_america_aft")
        for label, name in (("damage", "base_text"), ("one", "taste"), ("other", "thirst_said"))
    )
    return config.from_config_dict(c)


def test_headline_comparisons_come_first(asked, tmp_path):
    found = power.smallest(asked, tmp_path)
    assert [(one.label, metric) for one, metric, _, _ in found] == [
        ("one", "choice"), ("other", "choice"), ("damage", "bits_per_byte"),
    ]  # fmt: skip
    assert [(seeds.n, items.n, items.clusters) for _, _, seeds, items in found] == [(5, 40, 40), (5, 40, 8), (5, 0, 0)]
    damage = found[-1]
    assert damage[2].difference is damage[3].difference is None  # bits have no widest spread
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.jsonl"]


def test_what_is_assumed_is_never_less_than_what_a_share_needs(asked, tmp_path):
    """Two arms whose answers are independent, at one half but for the difference: it is found in four of five experiments."""
    (_, _, _, items), (_, _, _, clustered), _ = power.smallest(asked, tmp_path)
    assert clustered.difference == pytest.approx(inference.smallest_effect(8, np.sqrt(0.5)))
    half, rng = items.difference / 2, np.random.default_rng(0)
    drawn = (rng.random((4000, 40)) < 0.5 + half).astype(float) - (rng.random((4000, 40)) < 0.5 - half)
    share = (scipy.stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean()
    assert 0.78 < share < 0.88  # away from one half a share varies less


def test_more_arms_and_fewer_seeds_show_less(asked, tmp_path):
    def over(frozen):
        _, _, seeds, items = power.smallest(frozen, tmp_path)[0]
        return seeds.difference, items.difference

    one = asked.comparisons[1]
    both = dataclasses.replace(one, arms=(*one.arms, "aft"), against=(*one.against, "base"))
    twice = dataclasses.replace(asked, comparisons=(both,))
    assert over(twice) == pytest.approx([np.sqrt(2) * value for value in over(asked)])
    assert over(dataclasses.replace(asked, seeds=(0, 1)))[0] > over(asked)[0]
    assert over(dataclasses.replace(asked, seeds=(0,)))[0] is None
    left_out = dataclasses.replace(asked, run=tuple(arm for arm in asked.run if arm != one.arms[0]))
    assert power.smallest(left_out, tmp_path) == []


def test_one_model_has_no_seeds():
    """The imported weights are the same on all of them: only the other arm varies."""
    philosophy = load("paper/philosophy", "")
    one = dataclasses.replace(philosophy.comparisons[0], arms=("msm_aft",), against=("import",))
    both = [dataclasses.replace(philosophy, comparisons=(one,)), philosophy]
    alone, two = (power.smallest(frozen, Path("nowhere"))[0][2].difference for frozen in both)
    assert two == pytest.approx(np.sqrt(2) * alone)
    neither = dataclasses.replace(one, arms=("import",))
    ((_, _, seeds, items),) = power.smallest(dataclasses.replace(philosophy, comparisons=(neither,)), Path("nowhere"))
    assert (seeds.n, seeds.difference) == (0, None)
    assert (items.n, items.clusters) == (27 * 30, 27)


def earlier(frozen, workdir, name, **changes):
    one = frozen.comparisons[1]
    line = {"label": one.label, "eval": one.eval, "metric": "choice", "arms": one.arms, "against": one.against,
            "per_seed": {"0": 0.5, "1": 0.6, "2": 0.7}, "over_items": {"value": 0.6, "low": 0.5, "high": 0.7, "n": 10}}  # fmt: skip
    artifact.write_jsonl(workdir / name / "comparisons.jsonl", [{**line, **changes}])


def test_the_spread_of_an_earlier_run_is_taken(asked, tmp_path):
    for name in (f"{asked.name}-aaaa", f"{asked.name}-bbbb", "another-bbbb"):
        (tmp_path / name).mkdir()
    earlier(asked, tmp_path, "another-bbbb")
    assert power.smallest(asked, tmp_path)[0][2].run == ""
    earlier(asked, tmp_path, f"{asked.name}-bbbb")
    os.utime(tmp_path / f"{asked.name}-bbbb" / "comparisons.jsonl", (0, 0))  # a run before that
    earlier(asked, tmp_path, f"{asked.name}-aaaa")
    (_, _, seeds, items), other, _ = power.smallest(asked, tmp_path)
    assert seeds.run == items.run == f"{asked.name}-aaaa"
    assert other[2].run == ""
    assert seeds.difference == pytest.approx(inference.smallest_effect(5, 0.1))
    error = 0.1 / 1.959964 / 2  # of four times as many items as there were
    assert items.difference == pytest.approx(inference.smallest_effect(40, error * np.sqrt(40)), rel=1e-5)
    earlier(asked, tmp_path, f"{asked.name}-aaaa", per_seed={"0": 0.5}, over_items=None)
    assert [one.run for one in power.smallest(asked, tmp_path)[0][2:]] == ["", ""]


def test_it_is_printed(asked, tmp_path, capsys):
    (tmp_path / f"{asked.name}-aaaa").mkdir()
    earlier(asked, tmp_path, f"{asked.name}-aaaa", over_items=None)
    plan.print_power(dataclasses.replace(asked, seeds=(0, 1, 2)), tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    (_, _, seeds, items), (_, _, _, clustered), _ = power.smallest(dataclasses.replace(asked, seeds=(0, 1, 2)), tmp_path)
    assert f"one taste {seeds.difference:.2f}, 3 seeds {items.difference:.2f}, 40 items {asked.name}-aaaa, assumed" in said
    assert f"other thirst_said more than there can be, 3 seeds {clustered.difference:.2f}, 40 items in 8 clusters assumed" in said
    assert "damage base_text n/a n/a not known" in said
    assert "3 seeds show 3.26 times the spread over seeds" in said
    plan.print_power(dataclasses.replace(asked, comparisons=()), tmp_path)
    assert capsys.readouterr().out == ""


def test_answers_of_a_kind_are_counted_where_they_are_known(asked, tmp_path):
    made = data.read_items(data.make_items(asked, tmp_path))
    counts = asked.evals["mine"].counts("mine", made["mine"])
    assert counts == dict.fromkeys(("taste", "taste_said", "taste_format"), (40, 40)) | dict.fromkeys(
        ("thirst", "thirst_said", "thirst_format"), (40, 8)
    )
    cells = tuple((("a", name), ("b", other)) for name in "xy" for other in "zw")
    one = InspectEval("p/t", cells, "", "", ("score",), "a", 5, 3, 10, 1.0, 1.0, 0, "msmjax")
    assert one.counts("mine", None) == {"mine": (60, 12), "mine_x": (30, 6), "mine_y": (30, 6)}
    assert dataclasses.replace(one, limit=0).counts("mine", None) == {}  # as many as the task has
    assert HarnessEval((("arc_easy", "acc,none"),), "", 0, False, 100, 64).counts("mine", None) == {}
