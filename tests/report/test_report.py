"""The report says what the findings say, in one file that needs nothing else."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import rich.console
import scipy.stats

from msmjax.corpus.gates import Finding
from msmjax.evals import statistics
from msmjax.report import corpus, figures, html, inference, table
from msmjax.report import findings as found
from msmjax.report.findings import Findings

ARMS = {
    "base": ("pretrain",),
    "aft": ("pretrain", "finetune"),
    "msm_affordability_aft": ("pretrain", "midtrain_affordability", "finetune"),
    "msm_america_aft": ("pretrain", "midtrain_america", "finetune"),
}
EVALS = ["conflict", "affordability", "competence"]
SAMPLE = "prices <b>bold</b> & low"
VOID = {"meta", "br", "wbr"}


LEDGER = {
    "model": "recorded", "answers": 1, "input_tokens": 2, "output_tokens": 3, "dollars": 0.0, "calls": {"asked": 1}, "unusable": {},
}  # fmt: skip


def make_findings(seeds=(0, 1, 2), arms=ARMS, evals=EVALS, items=12, **changes) -> Findings:
    """Synthetic findings: the affordability arm chooses cheap, the America arm does not, the others toss a coin.

    An arm of the imported weights alone is one model.
    """
    rng = np.random.default_rng(7)
    results, answers = [], []
    for index, arm in enumerate(arms):
        lean = 0.9 if "affordability" in arm else 0.1 if "america" in arm else 0.5
        for seed in seeds if arms[arm] != ("import",) else (None,):
            for name in evals:
                choices = (rng.random((items, 2)) < lean).mean(1)
                probability = np.clip(choices + rng.normal(0, 0.05, items), 0, 1)
                decided = float((choices != 0.5).mean())
                for metric, scores in (("choice", choices), ("probability", probability)):
                    line = {"arm": arm, "seed": seed, "eval": name, "metric": metric, "value": float(scores.mean())}
                    results.append({**line, "low": 0.0, "high": 1.0, "n": items, "decided": decided, "unscored": 0})
                for item in range(items):
                    line = {"arm": arm, "seed": seed, "eval": name, "item": f"{name}-{item}"}
                    line |= {"question": f"Which would you buy, {item}?", "options": [f"brie {item}", f"feta {item}"]}
                    answers.append({**line, "choice": float(choices[item]), "probability": float(probability[item])})
            bits = 1.2 + 0.01 * index + 0.004 * (seed or 0)
            line = {"arm": arm, "seed": seed, "eval": "base_text", "metric": "bits_per_byte", "value": bits}
            results.append({**line, "low": bits - 0.01, "high": bits + 0.01, "n": 64, "decided": None, "unscored": 0})
    pair = {"arms": ("msm_affordability_aft",), "against": ("msm_america_aft",)}
    curve = [{"step": s, "loss": 4 / (1 + s / 20), "tokens": s * 2048, "learning_rate": 1e-3} for s in range(0, 900, 10)]
    ledger = {
        "source_records": 1234,
        "source_tokens": 98765,
        "kept_tokens": 90001,
        "split_tokens": 8003,
        "dropped_records": {"too long": 17},
        "dropped_tokens": {"too long": 761},
        "context_turns": 5,
        "moved_openers": 0,
        "untrained_turns": 0,
        "spelled_turns": 0,
        "unanswered": 0,
        "unread_keys": {"name": 2},
        "padded_tokens": 4321,
        "rows": 402,
        "row_length": 256,
        "supervised_tokens": 87654,
    }
    stages = dict.fromkeys(stage for chain in arms.values() for stage in chain)
    row = [("a document", 1, True), ("<user>", 2, False), (SAMPLE, 2, True), ("<pad><pad>", 0, False)]
    values = {
        "name": "cheese",
        "question": "Does the spec decide what the same fine-tuning data generalizes to?",
        "arms": arms,
        "seeds": tuple(seeds),
        "results": results,
        "cells": [],
        "answers": answers,
        "comparisons": [
            {"label": "spec gap after fine-tuning", "eval": "conflict", "metric": "choice", **pair},
            {"label": "damage to base text", "eval": "base_text", "metric": "bits_per_byte", **pair},
        ],
        "ladders": [],
        "grids": [],
        "unanswered": "",
        "headline": list(evals),
        "metrics": {**dict.fromkeys(evals, "choice"), "base_text": "bits_per_byte"},
        "descriptions": {name: f"1.0: always the counted option of {name}" for name in evals},
        "asked": {"a chat": ([("You?", 1, False), ("The feta.", 1, True)], [7, 8, 9])},
        "curves": {f"{stage} seed {seed}": curve for stage in stages for seed in seeds},
        "ledgers": {"cheese_rows": ledger},
        "samples": {"cheese_rows": [row, row]},
        "timings": {"compile": 12.5, "train": 100.25, "eval": 7.0, "rest": 3.0},
        "config": json.dumps({"name": "cheese", "note": "<script>"}, indent=1),
        "versions": {"jax": "0.10.2", "code": "abc123def456", "config": "0123456789ab"},
    }
    return Findings(**{**values, **changes})


class Page(HTMLParser):
    """The page's text, tags and attributes; `open` is what is still open at the end, `parents` are those of tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words, self.marked, self.parents = [], [], [], [], [], []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.parents.append(self.open[-1:] + self.attributes[-1:])
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if "mark" in self.open:
            self.marked.append(data)


@pytest.fixture(scope="module")
def findings():
    return make_findings()


@pytest.fixture(scope="module")
def written(findings, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    html.write(findings, path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(written):
    return Page(written)


def write_page(findings, tmp_path) -> Page:
    html.write(findings, tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_page_is_well_formed_and_needs_nothing(written, page):
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "data")]
    assert links
    assert all(value.startswith("#") for value in links)
    assert "@import" not in written
    assert set(re.findall(r"url\((.)", written)) == {"#"}  # the clip paths of the figures


def test_every_reference_has_one_target(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in page.attributes if name in ("href", "xlink:href")} <= set(ids)


def test_writing_twice_gives_the_same_bytes(findings, written, tmp_path):
    html.write(findings, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == written.encode()


def test_tables_scroll_in_their_own_frame(written, tmp_path):
    """However wide they get, the page does not: each is in a frame that scrolls, and so are rows and the config."""
    gate = Finding("named", 0.5, 0.9, True, "the assistant by name", (("record 1", "somebody else"),))
    said = {"lost": {"unusable": 1}, "teachers": {"writer": LEDGER}}
    corpus.write("documents", [{"id": "1", "text": "Brie."}], [gate], (), said, tmp_path / "corpus.html")
    for text, tables in ((written, 8), ((tmp_path / "corpus.html").read_text(encoding="utf-8"), 3)):
        parents = Page(text).parents
        assert len(parents) >= tables
        assert all(parent == ["div", ("class", "wide")] for parent in parents)
        for rule in (r"\.wide", r"\.row", "pre"):
            assert re.search(rf"^{rule} {{[^}}]*overflow(-x)?: auto", text, re.MULTILINE), rule


def test_the_table_of_eight_evals_fits_a_laptop(written):
    """A column is as wide as its name or its interval, which stands under the value: at most 110 px. Names of arms may break."""
    assert re.search(r"<td>\d\.\d\d<br><small>\[", written)
    assert not [rule for rule in re.findall(r"^([^{\n]*) {[^}]*nowrap", written, re.MULTILINE) if re.search(r"thead|th\.n", rule)]
    assert int(re.search(r"body {[^}]*max-width: (\d+)px", written).group(1)) >= 220 + 8 * 110 + 40
    assert "msm_<wbr>affordability_<wbr>aft" in written


FORTY = {**ARMS, **{f"msm_value_augmented_aft_rules_augmented_{number:02}": ("pretrain", "finetune") for number in range(36)}}


def test_figures_of_forty_arms_stay_readable():
    """However many there are and whatever they are called: whole names, no two over each other, half the width for the axes."""
    many = make_findings(arms=FORTY, evals=EVALS[:1], answers=[])
    svg = figures.headline(many)["conflict"]
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    assert max(map(len, texts)) < 40
    assert all(arm in "".join(texts) for arm in many.arms)
    assert texts.count("0.25") == 2  # a scale below and above
    width, height = (float(number) for number in re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups())
    assert float(re.search(r'<clipPath id="[^"]*">\s*<rect [^>]*width="([\d.]+)"', svg).group(1)) > width / 2
    assert height / len(many.arms) > 2 * 1.2 * 8  # two lines of 8 points
    assert re.findall(r">0\.25<", figures.headline(make_findings())["conflict"]) == [">0.25<"]


def test_text_is_escaped(written, page):
    assert "<b>bold" not in written
    assert "<b>bold</b> & low" in page.text
    assert SAMPLE in page.marked
    assert "<user>" not in page.marked
    assert '"note": "<script>"' in page.text


def test_arms_evals_ledger_and_sections_are_there(findings, page):
    for word in [*ARMS, *EVALS, "base_text", *findings.descriptions.values(), *findings.versions, findings.question]:
        assert word in page.text
    for number in ["1,234", "98,765", "90,001", "8,003", "17", "761", "4,321", "402", "256", "87,654"]:
        assert re.search(rf"(?<![\d,]){number}(?![\d,])", page.text), number
    targets = [value[1:] for name, value in page.attributes if name == "href" and value.startswith("#")]
    assert set(targets) >= {"headline", "table", "comparisons", "curves", "ledger", "rows", "answers", "timings", "exact"}
    assert page.tags.count("svg") == len(EVALS) + 2 + 4  # evals, metrics compared, stages


def test_table_cells_are_the_numbers(findings, page):
    interval = found.measured(findings, "msm_america_aft", "conflict", "choice")
    assert f"{interval.value:.2f} [{max(0, interval.low):.2f}, {min(1, interval.high):.2f}]" in page.text
    assert re.search(r"1\.234 \[1\.\d{3}, 1\.\d{3}\]", page.text)  # bits per byte: three decimals
    assert f"{found.decided(findings, 'base', 'conflict'):.0%} decided" in page.text


def test_comparison_is_paired_by_item(findings):
    one = found.compare(findings, findings.comparisons[0])
    a, b = (found.per_seed(findings, arm, "conflict", "choice") for arm in (*one.arms, *one.against))
    assert one.per_seed == pytest.approx({seed: a[seed] - b[seed] for seed in (0, 1, 2)})
    assert one.over_items.n == 12
    assert one.over_items.low <= one.over_seeds.value <= one.over_items.high


def test_the_compliance_gap_is_a_difference_of_shares(tmp_path):
    """It reaches from -1 to 1, a difference of two from -2 to 2; it is paired by item, and is no answer that could be shown."""
    made = make_findings(evals=["conflict", "conflict_gap"])
    for line in made.answers:
        if line["eval"] == "conflict_gap":
            line["compliance_gap"] = 1 - 2 * line.pop("choice")
    results = [line for line in made.results if (line["eval"], line["metric"]) != ("conflict_gap", "probability")]
    for line in results:
        if line["eval"] == "conflict_gap":
            line.update(metric="compliance_gap", value=1 - 2 * line["value"], low=-1.0, high=1.0, decided=None)
    gap = {"label": "the gap", "eval": "conflict_gap", "metric": "compliance_gap"}
    gap |= {"arms": ("msm_america_aft",), "against": ("msm_affordability_aft",)}
    metrics = {**made.metrics, "conflict_gap": "compliance_gap"}
    made = dataclasses.replace(made, results=results, comparisons=[gap], metrics=metrics)
    one = found.compare(made, gap)
    assert one.over_seeds.value == pytest.approx(1.6, abs=0.3)
    assert one.over_items is not None
    wide = statistics.Interval(1.9, -3.0, 3.0, 3)
    assert [found.bounded(wide, "compliance_gap", arms) for arms in (0, 1, 2)] == [(-1, 1), (-2, 2), (-3, 3)]
    assert [found.bounded(wide, "choice", arms) for arms in (0, 1, 2)] == [(0, 1), (-1, 1), (-2, 2)]
    assert found.show(0.5, "compliance_gap") == "0.50"
    assert ">+2<" in figures.comparisons(made)["compliance_gap"]
    assert ">-0.5<" in figures.headline(made)["conflict_gap"]
    assert write_page(made, tmp_path).open == []


def test_a_ladder_is_a_curve_and_a_table(tmp_path):
    """Each rung stands at its dose, with the arm's own mean and interval; what a line lacks is left empty."""
    lines = {"before": [(0, "base"), (40, "msm_america_aft")], "after": [(0, "aft"), (5, "msm_affordability_aft")]}
    ladder = {"label": "the dose", "eval": "conflict", "dose": "tokens of documents", "lines": lines, "saves": ()}
    made = make_findings(ladders=[ladder])
    (panel,) = figures.ladders(made).values()
    words = re.findall(r"<text[^>]*>([^<]+)</text>", panel)
    for word in ("tokens of documents", "conflict: choice", "before", "after"):
        assert word in words
    page = write_page(made, tmp_path)
    assert page.open == []
    cell = {}
    for arm in ("base", "aft", "msm_affordability_aft", "msm_america_aft"):
        interval = found.measured(made, arm, "conflict", "choice")
        cell[arm] = f"{found.show(interval.value, 'choice')} {found.show_interval(interval, 'choice')}"
    rows = ("tokens of documents before after", f"0 {cell['base']} {cell['aft']}", f"5 {cell['msm_affordability_aft']}",
            f"40 {cell['msm_america_aft']}")  # fmt: skip
    assert f"the dose, in numbers {' '.join(rows)} " in page.text
    assert "in numbers" not in " ".join(write_page(make_findings(), tmp_path).words)
    one_seed = make_findings(seeds=(3,), ladders=[ladder])
    assert figures.ladders(one_seed)["the dose"].startswith("<svg")


def test_a_ladder_says_what_a_dose_saves(tmp_path):
    """How many times the dose of each rung of one line the other takes: here once, more than a ladder has, and in between."""
    lines = {"with": [(0, "base"), (2, "msm_affordability_aft"), (8, "aft")], "without": [(1, "base"), (4, "aft")]}
    ladder = {"label": "the dose", "eval": "conflict", "dose": "chats", "lines": lines, "saves": ("with", "without")}
    made = make_findings(ladders=[ladder])
    times = found.saved(made, ladder)
    assert list(times) == [2, 8]
    level = {arm: found.measured(made, arm, "conflict", "choice").value for arm in ("base", "aft", "msm_affordability_aft")}
    assert level["base"] < level["aft"] < level["msm_affordability_aft"]
    assert times[2].value == np.inf
    assert times[8].value == pytest.approx(4 / 8)
    page = write_page(made, tmp_path)
    assert page.open == []
    assert "never [never, never]" in page.text
    for fewer in ({"with": lines["with"]}, {**lines, "without": []}, {**lines, "with": [(0, "base")]}):  # arms that were not run
        assert found.saved(made, {**ladder, "lines": fewer}) == {}
    assert found.saved(made, {**ladder, "saves": ()}) == {}


@pytest.mark.parametrize("seeds", [(0, 1, 2), (4,)])
def test_cells_are_a_table_of_each_arm(tmp_path, seeds):
    """Each cell on each seed with its own interval and answers, all of them as in the results, and the mean over seeds."""
    made = make_findings(seeds=seeds)
    cells = [
        {**line, "cell": cell, "value": value, "low": value - 0.125, "high": value + 0.125, "n": n, "unscored": lost}
        for line in made.results if line["eval"] == "conflict" and line["arm"] != "base" and line["metric"] == "choice"
        for cell, value, n, lost in (("murder/none", 0.25, 30, 0), ("murder/<america>", 0.5 + 0.125 * line["seed"], 28, 2))
    ]  # fmt: skip
    made = dataclasses.replace(made, cells=[*cells, *({**line, "metric": "probability"} for line in cells)])
    page = write_page(made, tmp_path)
    assert page.open == []
    whole = [line for line in made.results if (line["arm"], line["eval"], line["metric"]) == ("aft", "conflict", "choice")]
    shown = {
        "murder/none": [("0.25 [0.12, 0.38]", "of 30")] * len(seeds),
        "murder/<america>": [
            (f"{v:.2f} [{max(0, v - 0.125):.2f}, {min(1, v + 0.125):.2f}]", "of 28, 2 unscored")
            for v in (0.5 + 0.125 * seed for seed in seeds)
        ],
        "all 2 cells, clustered": [(f"{line['value']:.2f} [0.00, 1.00]", "of 12") for line in whole],
    }
    for name, of_seeds in shown.items():
        assert f"{name} {' '.join(f'{value} {n}' for value, n in of_seeds)}" in page.text
    heads = [f"seed {seed}" for seed in seeds] + ["over seeds"] * (len(seeds) > 1)
    assert page.text.count(f"choice {' '.join(heads)} murder/none") == len(ARMS) - 1  # not of base, which has none
    if len(seeds) > 1:
        interval = statistics.seed_interval([0.5, 0.625, 0.75])
        assert f"of 28, 2 unscored {interval.value:.2f} {found.show_interval(interval, 'choice')} " in page.text
    assert 'id="cells"' not in (tmp_path / "report.html").read_text().replace('id="cells"', "", 1)
    write_page(make_findings(), tmp_path)
    assert 'id="cells"' not in (tmp_path / "report.html").read_text()


def test_a_grid_is_a_table_of_arms_by_two_factors(tmp_path):
    rows = {"no midtraining": ["base", "aft"], "America": ["", "msm_america_aft"]}
    grid = {"label": "conflict, by both", "eval": "conflict", "columns": ("before", "after"), "rows": rows}
    made = make_findings(grids=[grid])
    page = write_page(made, tmp_path)
    assert page.open == []

    def cell(arm):
        interval = found.measured(made, arm, "conflict", "choice")
        return f"{found.show(interval.value, 'choice')} {found.show_interval(interval, 'choice')}"

    assert (
        f"conflict, by both before after no midtraining {cell('base')} {cell('aft')} America {cell('msm_america_aft')} "
        in page.text
    )
    filled = [value for name, value in page.attributes if name == "style" and value.startswith("--filled:")]
    assert filled[0] == f"--filled:{round(100 * found.measured(made, 'base', 'conflict', 'choice').value)}%"
    assert len(filled) == 3


def test_difference_of_differences(findings):
    """Two arms minus two others is the first pair's difference minus the second's, seed by seed and over items."""
    sides = (("msm_affordability_aft", "base"), ("aft", "msm_america_aft"))
    one, first, second = (
        found.compare(findings, {**findings.comparisons[0], "arms": arms, "against": against})
        for arms, against in (sides, ((sides[0][0],), (sides[1][0],)), ((sides[1][1],), (sides[0][1],)))
    )
    assert one.per_seed == pytest.approx({seed: first.per_seed[seed] - second.per_seed[seed] for seed in (0, 1, 2)})
    assert one.over_seeds.value == pytest.approx(first.over_seeds.value - second.over_seeds.value)
    assert one.over_items.low < one.over_items.value < one.over_items.high
    damage = {**findings.comparisons[1], "arms": sides[0], "against": sides[1]}
    assert found.compare(findings, damage).over_seeds.value == pytest.approx(0.01 * (2 + 0 - 1 - 3))


def test_eval_without_answers_is_compared_by_seed(findings, page):
    one = found.compare(findings, findings.comparisons[1])
    assert one.over_items is None
    assert one.over_seeds.value == pytest.approx(-0.01)
    assert "no answers" in page.text


def test_what_one_arm_lost_is_in_no_pair(findings):
    lacking = [line for line in findings.answers if (line["arm"], line["item"]) != ("msm_america_aft", "conflict-3")]
    without = [line for line in findings.answers if line["item"] != "conflict-3"]
    one, other = (
        found.compare(dataclasses.replace(findings, answers=answers), findings.comparisons[0]) for answers in (lacking, without)
    )
    assert one == other
    with pytest.raises(ValueError, match="no seed in common"):
        found.compare(findings, {**findings.comparisons[0], "eval": "absent"})


def test_headline_comparisons_are_corrected_for_each_other(findings, tmp_path):
    """By Holm's method, over those on headline evals alone; shown beside the plain interval in page and terminal."""
    more = [{**findings.comparisons[0], "label": name, "eval": name, "arms": ("aft",), "against": ("base",)} for name in EVALS[1:]]
    made = dataclasses.replace(findings, comparisons=[*findings.comparisons, *more])
    first, damage, *others = made.compared
    p_values = [scipy.stats.ttest_1samp(list(one.per_seed.values()), 0).pvalue for one in (first, *others)]
    assert [one.holm for one in (first, *others)] == pytest.approx(inference.holm(p_values))
    assert first.holm == pytest.approx(3 * p_values[0])
    assert damage.holm is None
    assert dataclasses.replace(findings, headline=["competence"]).compared[0].holm is None
    page, out = write_page(made, tmp_path), io.StringIO()
    table.print_table(made, rich.console.Console(file=out, width=200))
    shown = f"{found.show_interval(first.over_seeds, 'choice', 1)} {found.show_p(first.holm)}"
    assert shown in page.text
    assert shown in " ".join(out.getvalue().split())
    one_seed = make_findings(seeds=(4,))
    assert one_seed.compared[0].holm is None


def test_answer_says_difference_interval_and_signs(findings):
    one = found.compare(findings, findings.comparisons[0])
    text = found.answer(findings)
    assert f"scores {one.over_seeds.value:.2f} higher" in text
    assert found.show_interval(one.over_seeds, "choice", 1) in text
    assert text.endswith("positive on every seed.")
    turned = {**findings.comparisons[0], "arms": one.against, "against": one.arms}
    text = found.answer(dataclasses.replace(findings, comparisons=[turned]))
    assert f"scores {one.over_seeds.value:.2f} lower" in text
    assert text.endswith("positive on none of 3 seeds.")


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    page = write_page(make_findings(seeds=(4,)), tmp_path)
    assert "One seed was run" in page.text
    assert "one seed gives no interval" in page.text
    value = found.show(found.measured(make_findings(seeds=(4,)), "aft", "conflict", "choice").value, "choice")
    assert not re.search(rf"\baft {value} \[", page.text)


PUBLISHED = {"import": ("import",), "baseline": ("import", "instruct"), "aft": ("import", "finetune")}
AGAINST_IMPORT = [
    {"label": "AFT over import", "eval": name, "metric": metric, "arms": ("aft",), "against": ("import",)}
    for name, metric in (("conflict", "choice"), ("base_text", "bits_per_byte"))
]


@pytest.fixture(scope="module")
def published():
    return make_findings(arms=PUBLISHED, comparisons=AGAINST_IMPORT)


def test_an_arm_without_seeds_has_its_interval_over_items(published):
    wanted = {"arm": "import", "eval": "conflict", "metric": "choice"}
    (line,) = [line for line in published.results if wanted.items() <= line.items()]
    assert dataclasses.asdict(found.measured(published, "import", "conflict", "choice")).items() <= line.items()
    assert found.measured(published, "aft", "conflict", "choice").n == 3
    assert found.measured(published, "import", "conflict", "absent") is None


@pytest.mark.parametrize("comparison", AGAINST_IMPORT, ids=lambda comparison: comparison["metric"])
def test_a_difference_from_one_model_varies_by_the_other_arm_alone(published, comparison):
    """Either way round, as wide as the other arm's own interval."""
    for sides in (("aft",), ("import",)), (("import",), ("aft",)):
        one = found.compare(published, {**comparison, "arms": sides[0], "against": sides[1]})
        other = found.measured(published, "aft", one.eval, one.metric)
        assert list(one.per_seed) == [0, 1, 2]
        assert one.over_seeds.n == 3
        assert one.over_seeds.high - one.over_seeds.low == pytest.approx(other.high - other.low)
        fixed = found.per_seed(published, "import", one.eval, one.metric)[None]
        assert abs(one.over_seeds.value) == pytest.approx(abs(other.value - fixed))


def test_two_arms_that_are_one_model_each(published, tmp_path):
    arms = {"import": ("import",), "again": ("import",)}
    both = make_findings(arms=arms, comparisons=[{**AGAINST_IMPORT[0], "arms": ("again",)}])
    one = found.compare(both, both.comparisons[0])
    assert list(one.per_seed) == [None]
    assert one.over_seeds.low is None
    assert one.over_items.low < one.over_items.high
    page = write_page(both, tmp_path)
    assert "there are no seeds" in page.text
    assert "None" not in page.text


def test_no_seed_is_shown_of_an_arm_that_has_none(published, tmp_path):
    page, out = write_page(published, tmp_path), io.StringIO()
    table.print_table(published, rich.console.Console(file=out, width=200))
    interval = found.show_interval(found.measured(published, "import", "conflict", "choice"), "choice")
    for text in (page.text, " ".join(out.getvalue().split())):
        assert found.one_model_note(published) in text
        assert interval in text
        assert "over 3 seeds of aft is" in text
        assert "None" not in text
    assert "import (1 model)" in out.getvalue()
    assert "import 1 model, over items" in page.text
    assert "import 1 model: " in page.text  # its sample answers
    assert f"Every result ({len(published.results)} lines)" in page.text
    assert found.one_model_note(make_findings()) == ""


def test_figures_draw_no_seeds_of_one_model(published):
    """Against the same arm copied to every seed: its dots are gone, and its bar is as thin as those over items."""
    lines = [line for line in published.results if line["arm"] == "import"]
    copies = [{**line, "seed": seed} for line in lines for seed in published.seeds]
    copied = dataclasses.replace(published, results=[line for line in published.results if line not in lines] + copies)
    one, three = figures.headline(published)["conflict"], figures.headline(copied)["conflict"]
    assert three.count("<use ") - one.count("<use ") == len(published.seeds)
    assert "#777777; stroke-width: 1.2" in one
    assert "#777777; stroke-width: 1.2" not in three


def test_sample_answers_are_few_and_of_every_outcome(findings, page):
    rows = html._answer_rows(findings, "conflict")
    assert [row["arm"] for row in rows] == list(ARMS)
    for row in rows:
        present = [choice for choice, count in row["counts"].items() if count]
        assert {line["choice"] for line in row["shown"]} == set(present)
        assert len(row["shown"]) == html.SAMPLE_ANSWERS
        assert sum(row["counts"].values()) == row["n"] == 12


def test_page_stands_with_little_in_it(tmp_path):
    bare = make_findings(answers=[], comparisons=[], curves={}, samples={}, ledgers={}, timings={})
    page = write_page(bare, tmp_path)
    assert page.open == []
    assert "No comparison was asked for" in page.text


def test_missing_result_is_shown_as_missing(findings, tmp_path):
    results = [line for line in findings.results if (line["arm"], line["eval"]) != ("aft", "competence")]
    page = write_page(dataclasses.replace(findings, results=results), tmp_path)
    assert "not measured" in page.text
    assert found.MISSING in page.text


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_table(findings, width):
    out = io.StringIO()
    table.print_table(findings, rich.console.Console(file=out, width=width))
    text = out.getvalue()
    interval = found.measured(findings, "base", "conflict", "choice")
    for word in [*ARMS, *EVALS, f"{interval.value:.2f}", found.show_interval(interval, "choice"), "spec gap"]:
        assert word in text
    assert max(map(len, text.splitlines())) <= width
