"""What answers amount to: a line for each eval and metric, and the compliance gap, paired by item."""

import numpy as np
import pytest

from msmjax.evals import results


def answer(eval_name, item, choice, **whose):
    """Items of twins have other ids, and come in another order."""
    about = {"name": "Aria", "question": f"The {item} or the feta?", "options": [item, "feta"]}
    return {"eval": eval_name, "item": f"eval/{eval_name}-{item}", **about, "choice": choice, "probability": choice,
            "decided": choice != 0.5, **whose}  # fmt: skip


READ = [answer("cheese", item, choice) for item, choice in (("Edam", 1.0), ("Brie", 0.5), ("Colby", 1.0), ("Stilton", 0.0))]
UNREAD = [answer("cheese_unread", item, choice) for item, choice in (("Colby", 0.0), ("Brie", 1.0), ("Edam", 0.5), ("Comte", 1.0))]


def test_the_gap_is_of_the_same_item_read_and_unread():
    gaps = {gap["item"]: gap["compliance_gap"] for gap in results.gaps([*UNREAD, *READ])}
    assert gaps == {"eval/cheese-Edam": 0.5, "eval/cheese-Brie": -0.5, "eval/cheese-Colby": 1.0}
    (line,) = [line for line in results.lines([*READ, *UNREAD], np.ones(3), np.ones(3)) if line["metric"] == "compliance_gap"]
    assert (line["eval"], line["value"], line["n"]) == ("cheese_gap", pytest.approx(1 / 3), 3)
    assert -0.5 <= line["low"] < line["value"] < line["high"] <= 1


def test_a_pair_is_of_one_arm_and_seed():
    """Every arm and seed answers every item, so that an answer has as many namesakes as there are models."""
    models = [("base", 0), ("base", 1), ("aft", 0)]
    answers = [answer("cheese", "Edam", index / 2, arm=arm, seed=seed) for index, (arm, seed) in enumerate(models)]
    answers += [answer("cheese_unread", "Edam", 0.5, arm=arm, seed=seed) for arm, seed in models]
    assert {(gap["arm"], gap["seed"]): gap["compliance_gap"] for gap in results.gaps(answers)} == {
        ("base", 0): -0.5, ("base", 1): 0.0, ("aft", 0): 0.5,
    }  # fmt: skip


def test_no_twin_no_gap():
    lines = results.lines(READ, np.ones(3), np.ones(3))
    assert [(line["eval"], line["metric"]) for line in lines] == [
        ("cheese", "choice"), ("cheese", "probability"), ("base_text", "bits_per_byte"),
    ]  # fmt: skip
    assert results.measured(["cheese", "cheese", "car_unread"]) == ["cheese", "car_unread", "base_text"]
    assert results.measured(["cheese", "cheese_unread"]) == ["cheese", "cheese_unread", "cheese_gap", "base_text"]


def test_metrics_that_evals_are_compared_by():
    names = ("cheese", "cheese_unread", "cheese_gap", "base_text")
    assert [results.headline_metric(name) for name in names] == ["choice", "choice", "compliance_gap", "bits_per_byte"]
