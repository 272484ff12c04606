"""The page about a corpus: do the gates pass, what does it hold, what was lost and spent, and how does it read.

In: a corpus's records and the findings of its gates. Out: one html file that needs nothing else, and a table in the terminal.
"""

import collections
from pathlib import Path

from msmjax import artifact
from msmjax.corpus.gates import Finding, text_of
from msmjax.report import figures, html

FIELDS = ("section", "domain", "subdomain", "doc_type", "question_kind", "source")  # that records may have, and are counted by
MOST_BARS = 20
SAMPLES = 6


def write(name: str, records: list[dict], findings: list[Finding], allowed: tuple[str, ...], said: dict, path: Path) -> None:
    """Writes the page to `path`; `said` is what the corpus's manifest says of its making."""
    from markupsafe import Markup

    words = [len(text_of(record).split()) for record in records]
    panels = {"words a record": figures.lengths(words)}
    for field in FIELDS:
        counts = collections.Counter(str(record[field]) for record in records if record.get(field))
        if counts:
            hidden = f" (the {MOST_BARS} most frequent of {len(counts)})" if len(counts) > MOST_BARS else ""
            panels[field.replace("_", " ") + hidden] = figures.shares(field, dict(counts.most_common(MOST_BARS)))
    # Spread over the corpus: its first records are the first ideas of every topic.
    shown = [records[len(records) * at // SAMPLES] for at in range(min(SAMPLES, len(records)))]
    page = html.template("corpus.html.j2").render(
        name=name,
        records=len(records),
        words=sum(words),
        findings=findings,
        refused=[finding.gate for finding in findings if not finding.passed and finding.gate not in allowed],
        allowed=allowed,
        panels={label: Markup(svg) for label, svg in panels.items()},
        lost=said.get("lost", {}),
        asked_for=said.get("asked_for", len(records)),
        teachers=said.get("teachers", {}),
        samples=[_sample(record) for record in shown],
    )
    artifact.write_text(path, page)


def print_table(name: str, findings: list[Finding], allowed: tuple[str, ...]) -> None:
    """The gates in the terminal, with an example of each that fails."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"gates of {name}", title_justify="left")
    for column in ("gate", "measured", "bound", "", "of what"):
        table.add_column(column, justify="right" if column in ("measured", "bound") else "left")
    for finding in findings:
        verdict = "passes" if finding.passed else "fails, allowed" if finding.gate in allowed else "fails"
        value = "unknown" if finding.value is None else f"{finding.value:.3f}"
        example = "" if finding.passed or not finding.examples else "; e.g. " + ": ".join(finding.examples[0])
        table.add_row(finding.gate, value, f"{'≥' if finding.at_least else '≤'} {finding.bound:g}", verdict, finding.note + example)
    Console(highlight=False).print(table)


def _sample(record: dict) -> dict:
    turns = [(message["role"], str(message["content"])) for message in record["messages"]] if "messages" in record else []
    about = {key: value for key, value in record.items() if key not in ("text", "messages")}
    return {"about": about, "text": record.get("text", ""), "turns": turns}
