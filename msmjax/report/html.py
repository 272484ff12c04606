"""The report page: one html file that holds everything and needs nothing.

In: Findings. Out: report.html with its style and figures inside; no script, no network, the same findings give the same bytes.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from msmjax import artifact
from msmjax.data import rows
from msmjax.evals import statistics
from msmjax.evals.statistics import Interval
from msmjax.report import figures
from msmjax.report import findings as found
from msmjax.report.findings import Compared, Findings

SHOWN = {"question", "asked", "said", "why", "lost"}  # what the page shows of an answer that is no choice
SAMPLE_ANSWERS = 3  # answers shown of one arm on one eval


def write(findings: Findings, path: Path) -> None:
    """Writes the report to `path`."""
    from markupsafe import Markup

    page = template("report.html.j2").render(
        findings=findings,
        answer=found.answer(findings),
        one_model_note=found.one_model_note(findings),
        evals=[{"name": name, "metric": found.headline_metric(findings, name)} for name in found.evals(findings)],
        arm_rows=[_arm_row(findings, arm) for arm in findings.arms],
        headline_figures=_drawn(figures.headline(findings), Markup),
        comparison_figures=_drawn(figures.comparisons(findings), Markup),
        comparison_rows=[_comparison_row(one) for one in findings.compared],
        ladder_figures=_drawn(figures.ladders(findings), Markup),
        ladder_rows=[_ladder_rows(findings, ladder) for ladder in findings.ladders],
        grid_rows=[_grid_rows(findings, grid) for grid in findings.grids],
        cell_groups={name: tables for name in findings.headline if (tables := _cell_tables(findings, name))},
        curve_figures=_drawn(figures.curves(findings), Markup),
        ledger_rows=[_ledger_row(name, ledger) for name, ledger in findings.ledgers.items()],
        samples={name: [_segments(row) for row in rows] for name, rows in findings.samples.items()},
        asked={label: {"segments": _segments(pieces), "ids": ids} for label, (pieces, ids) in findings.asked.items()},
        answer_groups={name: rows for name in found.evals(findings) if (rows := _answer_rows(findings, name))},
        said_groups={name: rows for name in found.evals(findings) if (rows := _said_rows(findings, name))},
        lines=[_line(line) for line in findings.results],
        total_seconds=sum(findings.timings.values()),
    )
    artifact.write_text(path, page)


def template(name: str):
    """A page of this folder; everything it is given is escaped unless it is Markup."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _drawn(panels: dict[str, str], markup: type) -> dict:
    """Figures are our own SVG, with their text escaped by matplotlib: the only thing on the page that is not escaped again."""
    return {name: markup(svg) for name, svg in panels.items()}


def _cell(findings: Findings, arm: str, eval_name: str) -> dict:
    metric = found.headline_metric(findings, eval_name)
    interval, decided = found.measured(findings, arm, eval_name, metric), found.decided(findings, arm, eval_name)
    return {
        "value": found.show(interval.value if interval else None, metric),
        "interval": found.show_interval(interval, metric),
        "decided": "" if decided is None else f"{decided:.0%} decided",
        "unscored": f"{unscored:,} unscored" if (unscored := found.unscored(findings, arm, eval_name)) else "",
    }


def _arm_row(findings: Findings, arm: str) -> dict:
    cells = [_cell(findings, arm, name) for name in found.evals(findings)]
    one_model = arm in found.one_models(findings)
    return {"arm": arm, "colour": figures.colour(findings, arm), "one_model": one_model, "cells": cells}


def _comparison_row(one: Compared) -> dict:
    return {
        "label": one.label,
        "eval": one.eval,
        "metric": one.metric.replace("_", " "),
        "arms": one.arms,
        "against": one.against,
        "value": found.show(one.over_seeds.value, one.metric, signed=True),
        "over_seeds": found.show_interval(one.over_seeds, one.metric, len(one.arms))
        or ("no seeds" if None in one.per_seed else "one seed"),
        "holm": found.show_p(one.holm),
        "over_items": found.show_interval(one.over_items, one.metric, len(one.arms)) or "no answers",
        "per_seed": {seed: found.show(value, one.metric, signed=True) for seed, value in one.per_seed.items() if seed is not None},
    }


def _cell_tables(findings: Findings, eval_name: str) -> list[dict]:
    """For each arm, a row a cell and one for all of them: value, interval and answers of each seed, and the mean over seeds."""
    metric, tables = found.headline_metric(findings, eval_name), []

    def of_seed(line: dict | None) -> dict:
        if line is None:
            return {"value": found.MISSING, "interval": "", "n": ""}
        lost = f", {line['unscored']:,} unscored" if line["unscored"] else ""
        interval = Interval(*(line[field.name] for field in dataclasses.fields(Interval)))
        shown = {"value": found.show(interval.value, metric), "interval": found.show_interval(interval, metric)}
        return {**shown, "n": f"of {interval.n:,}{lost}"}

    def over_seeds(lines: dict) -> dict:
        interval = statistics.seed_interval([line["value"] for line in lines.values()])
        return {"value": found.show(interval.value, metric), "interval": found.show_interval(interval, metric), "n": ""}

    for arm in findings.arms:
        by_cell = found.cells(findings, arm, eval_name)
        if not by_cell:
            continue
        seeds = list(by_cell[""])
        rows = [
            {"cell": cell or f"all {len(by_cell) - 1} cells, clustered",
             "seeds": [*(of_seed(lines.get(seed)) for seed in seeds), *([over_seeds(lines)] if len(seeds) > 1 else [])]}
            for cell, lines in by_cell.items()
        ]  # fmt: skip
        names = ["1 model" if seed is None else f"seed {seed}" for seed in seeds]
        heads = [*names, *(["over seeds"] if len(seeds) > 1 else [])]
        tables.append({"arm": arm, "metric": metric.replace("_", " "), "heads": heads, "rows": rows})
    return tables


def _ladder_rows(findings: Findings, ladder: dict) -> dict:
    """A row a dose, a cell a line; None where a line has no such rung."""
    doses = sorted({dose for rungs in ladder["lines"].values() for dose, _ in rungs})
    by_line = [{dose: _cell(findings, arm, ladder["eval"]) for dose, arm in rungs} for rungs in ladder["lines"].values()]
    saved = {f"{dose:,g}": found.show_times(times) for dose, times in found.saved(findings, ladder).items()}
    return {**ladder, "rows": {f"{dose:,g}": [cells.get(dose) for cells in by_line] for dose in doses}, "saved": saved}


def _grid_rows(findings: Findings, grid: dict) -> dict:
    """A cell an arm, with how far it is from nothing to all (`filled`, a percentage); None where there is no arm."""

    def cell(arm: str) -> dict:
        metric = found.headline_metric(findings, grid["eval"])
        interval = found.measured(findings, arm, grid["eval"], metric)
        shade = abs(interval.value) if interval and metric in found.RANGES else 0.0
        return {**_cell(findings, arm, grid["eval"]), "arm": arm, "filled": round(100 * shade)}

    return {**grid, "rows": {name: [cell(arm) if arm else None for arm in arms] for name, arms in grid["rows"].items()}}


def _ledger_row(name: str, ledger: dict) -> dict:
    dropped = sum(ledger["dropped_tokens"].values())
    return {
        "name": name,
        **ledger,
        "notes": rows.notes(ledger),
        "dropped": dropped,
        "unaccounted": ledger["source_tokens"] - ledger["kept_tokens"] - ledger["split_tokens"] - dropped,
        "filled": 1 - ledger["padded_tokens"] / max(1, ledger["rows"] * ledger["row_length"]),
    }


def _segments(row: list[tuple[str, int, bool]]) -> list[dict]:
    """The pieces of a row by document, in order."""
    return [
        {"id": segment, "pieces": [{"text": text, "supervised": supervised} for text, _, supervised in pieces]}
        for segment, pieces in itertools.groupby(row, key=lambda piece: piece[1])
    ]


def _answer_rows(findings: Findings, eval_name: str) -> list[dict]:
    """For each arm, how its answers on the first seed fell, and a few of them: one of every outcome before a second of any."""
    rows = []
    for arm in findings.arms:
        lines = [line for line in findings.answers_of.get((arm, eval_name), []) if found.CHOICE in line and "options" in line]
        seed = lines[0]["seed"] if lines else None
        lines = [line for line in lines if line["seed"] == seed]
        outcomes = {choice: [line for line in lines if np.sign(line["choice"] - 0.5) == choice * 2 - 1] for choice in (1, 0.5, 0)}
        shown = [line for turn in itertools.zip_longest(*outcomes.values()) for line in turn if line][:SAMPLE_ANSWERS]
        if lines:
            counts = {choice: len(members) for choice, members in outcomes.items()}
            rows.append({"arm": arm, "seed": seed, "counts": counts, "n": len(lines), "shown": shown})
    return rows


def _said_rows(findings: Findings, eval_name: str) -> list[dict]:
    """For each arm a few answers on its first seed, of an eval that is no choice and has more to show than a difference."""
    metric, rows = found.headline_metric(findings, eval_name), []
    for arm in findings.arms:
        lines = [line for line in findings.answers_of.get((arm, eval_name), []) if "options" not in line and line.keys() & SHOWN]
        lines = [line for line in lines if line["seed"] == lines[0]["seed"]]
        if lines:
            shown = [{**dict.fromkeys(SHOWN, ""), **line, "shown": found.show(line.get(metric), metric)} for line in lines]
            rows.append(
                {"arm": arm, "seed": lines[0]["seed"], "n": len(lines), "metric": metric.replace("_", " "),
                 "shown": shown[:SAMPLE_ANSWERS]}
            )  # fmt: skip
    return rows


def _line(line: dict) -> dict:
    metric = line["metric"]
    shown = {name: found.show(line[name], metric) for name in ("value", "low", "high")}
    seed = "none" if line["seed"] is None else line["seed"]
    return {**line, **shown, "seed": seed, "decided": found.MISSING if line["decided"] is None else f"{line['decided']:.0%}"}
