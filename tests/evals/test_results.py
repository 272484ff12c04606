"""What answers amount to: a line for each eval and metric, and the compliance gap, paired by item."""

import pytest
import scipy.stats

from msmjax.evals import results, statistics
from msmjax.evals.results import Measure

MEASURES = {
    "cheese": Measure("", ("choice", "probability")), "cheese_unread": Measure("", ("choice",)),
    "cheese_gap": Measure("", ("compliance_gap",)), "base_text": Measure("", ("bits_per_byte",)),
}  # fmt: skip


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
    (line,) = [line for line in results.lines([*READ, *UNREAD], MEASURES) if line["metric"] == "compliance_gap"]
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
    rows = [{"eval": "base_text", "item": row, "bits": 2.0, "bytes": 4} for row in range(3)]
    lines = results.lines([*READ, *rows], MEASURES)
    assert [(line["eval"], line["metric"], line["n"]) for line in lines] == [
        ("cheese", "choice", 4), ("cheese", "probability", 4), ("base_text", "bits_per_byte", 3),
    ]  # fmt: skip
    assert lines[-1]["value"] == 0.5


def test_intervals_are_over_clusters_where_there_are_some():
    """Ten items of one family say little more than one of them."""
    alone = [answer("cheese", f"{number}", float(number < 20)) for number in range(40)]
    families = [{**one, "cluster": index // 10} for index, one in enumerate(alone)]
    wide, narrow = (results.lines(answers, MEASURES)[0] for answers in (families, alone))
    assert wide["value"] == narrow["value"] == 0.5
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])
    nothing = [{**one, "choice": 0.0} for one in families]
    (line, *_) = results.lines(nothing, MEASURES)
    assert (line["value"], line["n"]) == (0, 40)
    assert line["high"] == pytest.approx(statistics.wilson(0, 4)[1])


def test_each_cell_has_a_line_of_its_own():
    """By Wilson over what was answered in it, as scipy has it; all of them together over clusters, as without cells."""
    shares = {"murder/america": 3, "murder/none": 0, "leaking/america": 10, "leaking/none": 5}
    answers = [
        answer("cheese", f"{cell} {epoch}", float(epoch < count), cluster=cell, cell=cell)
        for cell, count in shares.items() for epoch in range(10)
    ]  # fmt: skip
    answers.append({"eval": "cheese", "item": "lost", "cluster": "murder/none", "cell": "murder/none", "lost": "no score"})
    lines = [line for line in results.lines(answers, MEASURES) if line["metric"] == "choice"]
    whole, *cells = lines
    assert "cell" not in whole
    alone = [{key: value for key, value in one.items() if key != "cell"} for one in answers]
    assert [whole] == [line for line in results.lines(alone, MEASURES) if line["metric"] == "choice"]
    assert {line["cell"]: (line["value"], line["n"], line["unscored"]) for line in cells} == {
        cell: (count / 10, 10, int(cell == "murder/none")) for cell, count in shares.items()
    }
    for line in cells:
        theirs = scipy.stats.binomtest(shares[line["cell"]], 10).proportion_ci(method="wilson")
        assert (line["low"], line["high"]) == pytest.approx((theirs.low, theirs.high))


def test_a_cell_of_several_clusters_is_as_uncertain_as_they_are():
    families = [answer("cheese", f"{n}", float(n < 20), cluster=n // 10, cell=("x", "y")[n % 2]) for n in range(40)]
    for line in results.lines(families, MEASURES)[1:3]:
        assert line["high"] - line["low"] == pytest.approx(2 * 3.182446 * 0.25, abs=1e-4)  # t of 3 times √(4 · (5/2)² / 20²)


def test_gaps_have_the_cells_of_their_pairs():
    read, unread = ([{**one, "cell": one["item"][-4:]} for one in answers] for answers in (READ, UNREAD))
    lines = [line for line in results.lines([*read, *unread], MEASURES) if line["eval"] == "cheese_gap"]
    assert {line.get("cell"): line["value"] for line in lines} == {
        None: pytest.approx(1 / 3),
        "Edam": 0.5,
        "Brie": -0.5,
        "olby": 1.0,
    }


def test_what_could_not_be_scored_is_counted():
    lost = {key: value for key, value in READ[0].items() if key not in ("choice", "probability", "decided")}
    (line, *_) = results.lines([*READ, lost], MEASURES)
    assert (line["n"], line["unscored"], line["value"]) == (4, 1, 0.625)


def test_a_pair_of_which_one_is_lost_is_no_gap():
    lost = {key: value for key, value in UNREAD[0].items() if key not in ("choice", "probability", "decided")}
    lines = results.lines([*READ, lost, *UNREAD[1:]], MEASURES)
    (gap,) = [line for line in lines if line["eval"] == "cheese_gap"]
    assert (gap["n"], gap["unscored"]) == (2, 1)


def test_a_score_that_is_called_choice_is_no_pair():
    """So Inspect calls its own scorer of multiple choices."""
    answers = [{"eval": "mmlu", "item": 0, "choice": 1.0}]
    assert results.gaps(answers) == []
    assert results.lines(answers, {"mmlu": Measure("", ("choice",))})[0]["value"] == 1
