"""The page about a paper's claims: what each says, what was found here, and a verdict.

In: claims, each with its difference on every seed. Out: a table on the console, and `claims.html` with the same beside a picture.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from msmjax import artifact
from msmjax.evals import statistics
from msmjax.evals.statistics import Interval
from msmjax.report import figures, html, inference, table
from msmjax.report import findings as found

SURE = 0.05  # below this, after Holm's correction over all claims of the table, a difference is no chance


@dataclasses.dataclass(frozen=True)
class Judged:
    """A claim with what was measured of it; `holm` is its p value after the correction, nan where there is none."""

    claim: str
    paper: str
    config: str
    label: str  # of the comparison in that config
    eval: str
    metric: str
    summed: int  # arms on either side of the comparison
    report: str  # the page of that config's run
    interval: Interval
    per_seed: dict[str, float]
    holm: float
    smallest: float  # effect that as many seeds with this spread show four times in five, at the strictest level of the correction

    @property
    def verdict(self) -> str:
        if not self.holm < SURE:
            return "cannot tell"
        return "holds" if self.interval.value > 0 else "does not hold"


def judge(measured: Sequence[dict]) -> list[Judged]:
    """Claims with their verdicts; each of `measured` has the fields of a Judged down to `report`, and `per_seed`."""
    values = [list(one["per_seed"].values()) for one in measured]
    return [
        Judged(
            **one,
            interval=statistics.seed_interval(each),
            holm=holm,
            smallest=inference.smallest_effect(len(each), np.std(each, ddof=1), SURE / len(values)) if len(each) > 1 else math.nan,
        )
        for one, each, holm in zip(measured, values, inference.corrected(values), strict=True)
    ]


def print_table(name: str, judged: Sequence[Judged]) -> None:
    """The table on the console."""
    out = table.new_table(name, "claim", "where", "found", "Holm's p", "verdict")
    for one in judged:
        row = _row(one)
        out.add_row(*map(table.plain, [one.claim, f"{one.config}: {one.label}", f"{row['value']} {row['interval']}", row["holm"],
                                       one.verdict + row["beside"]]))  # fmt: skip
    table.make_console().print(out)


def write(name: str, question: str, seeds: Sequence[int], judged: Sequence[Judged], versions: dict[str, str], path: Path) -> None:
    """Writes the page."""
    from markupsafe import Markup

    page = html.template("claims.html.j2").render(
        name=name,
        question=question,
        seeds=seeds,
        rows=[_row(one) for one in judged],
        figure=Markup(figures.claims(judged)),
        sure=SURE,
        versions=versions,
    )
    artifact.write_text(path, page)


def _row(one: Judged) -> dict:
    smallest = f"; {one.interval.n} seeds would have shown {found.show(one.smallest, one.metric)}"
    what = f"the sum of {one.summed} differences" if one.summed > 1 else ""
    return {
        **dataclasses.asdict(one),
        "value": found.show(one.interval.value, one.metric, signed=True),
        "interval": found.show_interval(one.interval, one.metric, one.summed),
        "per_seed": {seed: found.show(value, one.metric, signed=True) for seed, value in one.per_seed.items()},
        "holm": found.show_p(one.holm),
        "what": what,
        "verdict": one.verdict,
        "beside": "" if math.isnan(one.holm) or one.holm < SURE else smallest,
    }
