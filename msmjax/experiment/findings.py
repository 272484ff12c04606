"""What the report is told: findings, read back from a run directory and the artifacts it was made from.

In: a config, its data and the run directory with `run.json`, `results.jsonl` and `answers.jsonl`. Out: `Findings`.
"""

import dataclasses
import json
from pathlib import Path

from msmjax import artifact
from msmjax.config import Comparison, ExperimentConfig
from msmjax.corpus import microworld
from msmjax.data import rows, show
from msmjax.evals import results
from msmjax.experiment.data import Data
from msmjax.report.findings import Findings


def read_findings(config: ExperimentConfig, data: Data, workdir: Path, run_directory: Path) -> Findings:
    """What the report shows, read back from the run directory and the artifacts it was made from."""
    said = json.loads((run_directory / "run.json").read_text(encoding="utf-8"))
    stages = {label: workdir / "stages" / name for label, name in said["stages"].items()}
    unanswered = ""
    if config.comparisons and (missing := _arms_of(config.comparisons[0]) - set(config.run)):
        unanswered = f"This run does not answer the question: that takes {' and '.join(sorted(missing))}, which it leaves out."
    return Findings(
        name=config.name,
        question=config.question,
        arms={arm: config.arms[arm] for arm in config.run},
        seeds=config.seeds,
        results=artifact.read_jsonl(run_directory / "results.jsonl"),
        answers=artifact.read_jsonl(run_directory / "answers.jsonl"),
        comparisons=[
            {**dataclasses.asdict(comparison), "metric": results.headline_metric(comparison.eval)}
            for comparison in config.comparisons
            if _arms_of(comparison) <= set(config.run)
        ],
        unanswered=unanswered,
        headline=list(config.evals.headline),
        descriptions=microworld.EVALS,
        curves={label: artifact.read_jsonl(directory / "metrics.jsonl") for label, directory in stages.items()},
        ledgers={name: rows.read_ledger(directory) for name, directory in data.rows.items()},
        samples={name: [show.pieces(row, data.tokenizer) for row in _first_rows(path)] for name, path in data.rows.items()},
        timings=said["seconds"],
        config=config.source,
        versions={**said["versions"], "computed with": "; ".join(dict.fromkeys(said["computed"].values()))},
    )


def _arms_of(comparison: Comparison) -> set[str]:
    return {*comparison.arms, *comparison.against}


def _first_rows(directory: Path, count: int = 2) -> list[dict]:
    source = rows.open_rows(directory)
    return [source[index] for index in range(min(count, len(source)))]
