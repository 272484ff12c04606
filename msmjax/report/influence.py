"""The page about influence: which records moved a model's answers to an eval, and which sections and kinds of them.

In: the lines of `influence.jsonl`. Out: an html file that needs nothing.
"""

from pathlib import Path

import numpy as np

from msmjax import artifact
from msmjax.data import provenance
from msmjax.evals.statistics import seed_interval
from msmjax.report.html import template

FIELDS = ("section", "kind", "doc_type", "source", "domain")  # that a table is made of, where records have them
SHOWN = 30  # records at either end


def write(title: str, lines: list[dict], path: Path) -> None:
    """Writes the page; `lines` are sorted, those that raised margins most first."""
    groups = {field: _by(lines, field) for field in FIELDS if len({provenance.show(line.get(field)) for line in lines}) > 1}
    ends = {"They raised the margin most": lines[:SHOWN], "They lowered it most": lines[: -SHOWN - 1 : -1]}
    most = max((abs(line["influence"]) for line in lines), default=0) or 1.0
    page = template("influence.html.j2").render(
        title=title,
        groups=groups,
        ends={name: [_shown(line, most) for line in of_end] for name, of_end in ends.items()},
        records=len(lines),
    )
    artifact.write_text(path, page)


def _by(lines: list[dict], field: str) -> list[dict]:
    """For each value of a field the summed influence of its records, with its interval over seeds; the largest first."""
    values: dict[str, list[dict]] = {}
    for line in lines:
        values.setdefault(provenance.show(line.get(field)), []).append(line)
    out = []
    for value, of_value in values.items():
        summed = seed_interval(np.sum([line["per_seed"] for line in of_value], axis=0))
        ends = _interval(summed.low, summed.high)
        out.append({"value": value, "records": len(of_value), "summed": _number(summed.value), "interval": ends})
    return sorted(out, key=lambda row: -float(row["summed"]))


def _shown(line: dict, most: float) -> dict:
    fields = {name: provenance.show(line[name]) for name in ("corpus", "id", *FIELDS) if name in line}
    share = 100 * abs(line["influence"]) / most
    return {
        "influence": _number(line["influence"]), "interval": _interval(line["low"], line["high"]), "share": f"{share:.0f}",
        "fields": fields, "text": line["text"],
    }  # fmt: skip


def _number(value: float) -> str:
    return f"{value:+.3g}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f"[{_number(low)}, {_number(high)}]"
