"""The page about claims: verdicts follow from the corrected p values, and what cannot be told says what could have been."""

import math

import numpy as np
import pytest

from msmjax.report import claims, figures, inference


def measured(name, values, metric="choice", summed=1):
    return {
        "claim": f"{name} matters", "paper": "figure <2>", "config": f"configs/{name}.py", "label": "one over other",
        "eval": "conflict", "metric": metric, "summed": summed, "report": f"../{name}/report.html",
        "per_seed": {str(seed): value for seed, value in enumerate(values)},
    }  # fmt: skip


SURE, AGAINST, UNSURE = [0.5, 0.6, 0.55, 0.52], [-0.5, -0.6, -0.55, -0.52], [0.1, -0.2, 0.3, 0.0]


def test_verdicts():
    sure, against, unsure = claims.judge([measured("a", SURE), measured("b", AGAINST), measured("c", UNSURE)])
    assert [one.verdict for one in (sure, against, unsure)] == ["holds", "does not hold", "cannot tell"]
    assert sure.holm == pytest.approx(against.holm)
    strictest = 0.05 / 3
    assert unsure.smallest == pytest.approx(inference.smallest_effect(4, np.std(UNSURE, ddof=1), strictest))


def test_what_is_sure_alone_may_be_chance_among_many():
    values = [0.1, 0.3, 0.25, 0.2]  # p = .015
    assert claims.judge([measured("a", values)])[0].verdict == "holds"
    assert claims.judge([measured(name, values) for name in "abcd"])[0].verdict == "cannot tell"


def test_one_seed_tells_nothing():
    (one,) = claims.judge([measured("a", [1.0])])
    assert one.verdict == "cannot tell"
    assert math.isnan(one.holm)
    assert one.interval.low is None


@pytest.mark.parametrize("count", [1, 2, 40])
def test_page(tmp_path, count, capsys):
    judged = claims.judge(
        [measured(f"claim{index}", UNSURE if index % 2 else SURE, summed=1 + index % 2) for index in range(count)]
    )
    claims.write("claims", "Which hold?", (0, 1, 2, 3), judged, {"jax": "0.10.2"}, tmp_path / "claims.html")
    text = (tmp_path / "claims.html").read_text()
    assert text.count("matters</td>") == count
    assert "figure &lt;2&gt;" in text
    assert '<a href="../claim0/report.html">configs/claim0.py</a>' in text
    assert "+0.54" in text
    assert ("4 seeds would have shown" in text) == (count > 1)
    assert figures.claims(judged) in text
    claims.print_table("claims", judged)
    assert "claim0 matters" in " ".join(capsys.readouterr().out.split())
