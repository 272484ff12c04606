"""The terminal table: what a run found, when it ends.

In: Findings. Out: two tables on the console: arms by headline evals, then the comparisons, intervals over seeds.
"""

import sys

import rich.box
import rich.console
import rich.measure
import rich.table
import rich.text

from msmjax.report import findings as found
from msmjax.report.findings import Findings

WIDTH_OF_FILES = 160


def print_table(findings: Findings, console: rich.console.Console | None = None) -> None:
    """Prints both tables and the answer in words; in a narrow terminal the intervals go under their values."""
    console = console or make_console()
    for build in (_arms, _comparisons):
        table = build(findings, " ")
        if _width(console, table) > console.width:
            table = build(findings, "\n")
        if table.row_count:
            console.print(table)
    if note := found.one_model_note(findings):
        console.print(note, markup=False, highlight=False)
    console.print(found.answer(findings), markup=False, highlight=False)


def make_console() -> rich.console.Console:
    """Standard output; where it is no terminal (a file, a pipe) lines may be long."""
    return rich.console.Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)


def _arms(findings: Findings, between: str) -> rich.table.Table:
    seeds = f"{len(findings.seeds)} seeds, 95 % intervals" if len(findings.seeds) > 1 else "one seed, no intervals over seeds"
    alone = found.one_models(findings)
    table = new_table(f"{findings.name} ({seeds})", "arm", *findings.headline)
    for arm in findings.arms:
        cells = []
        for name in findings.headline:
            metric = found.headline_metric(findings, name)
            interval = found.measured(findings, arm, name, metric)
            parts = [found.show(interval.value if interval else None, metric), found.show_interval(interval, metric)]
            cells.append(between.join(part for part in parts if part))
        table.add_row(*map(plain, [f"{arm} (1 model)" if arm in alone else arm, *cells]))
    return table


def _comparisons(findings: Findings, between: str) -> rich.table.Table:
    table = new_table("differences", "comparison", "eval", "over seeds", "Holm's p", "over items")
    for one in findings.compared:
        value = found.show(one.over_seeds.value, one.metric, signed=True)
        cells = [
            between.join(part for part in (value, found.show_interval(interval, one.metric, len(one.arms))) if part)
            for interval in (one.over_seeds, one.over_items)
        ]
        over_items = cells[1] if one.over_items else found.MISSING
        table.add_row(*map(plain, [one.label, one.eval, cells[0], found.show_p(one.holm), over_items]))
    return table


def new_table(title: str, *columns: str) -> rich.table.Table:
    table = rich.table.Table(title=plain(title), title_justify="left", box=rich.box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(plain(column), overflow="fold")
    return table


def _width(console: rich.console.Console, table: rich.table.Table) -> int:
    """The width the table would like; a console's own measure stops at its width."""
    return rich.measure.Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def plain(text: str) -> rich.text.Text:
    """Text with no markup: `[0.88, 0.98]` is an interval and no style."""
    return rich.text.Text(text)
