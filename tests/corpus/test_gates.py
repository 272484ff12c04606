"""Every gate passes the sample corpus and catches a fault that is planted in it."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from msmjax import artifact, config
from msmjax.artifact import BadInput
from msmjax.corpus import gates, sources
from msmjax.corpus.gates import GateConfig, Subject
from msmjax.corpus.teacher import Teacher

ROOT = Path(__file__).resolve().parents[2]


def load_config(variant=""):
    found = importlib.util.spec_from_file_location("written", ROOT / "configs" / "written.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    c = module.get_config(variant)
    for teacher in c.teachers.values():
        teacher.transcript = teacher.transcript and str(ROOT / teacher.transcript)
    return config.from_config_dict(c)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The sample corpora by name, and their config."""
    frozen, parent = load_config(), tmp_path_factory.mktemp("written")
    makers = sources.Makers(frozen.world, frozen.assistant, frozen.teachers, parent, Teacher)
    kinds = {name: source for name, source in frozen.corpora.items() if isinstance(source, sources.WrittenSource)}
    return frozen, {name: sources.make_corpus(parent, name, source, makers) for name, source in kinds.items()}


def subject_of(written, name) -> Subject:
    frozen, corpora = written
    said = artifact.read_manifest(corpora[name])
    return Subject(
        records=sources.read_corpus(corpora[name]), lost=said["lost"], asked_for=said["asked_for"],
        spec=sources.load_spec(frozen.corpora[name], frozen.assistant), rules=False, model_name="Aria", provider_name="Northlight",
        items=artifact.read_jsonl(ROOT / "data" / "evals" / "values.jsonl"), reference=[],
    )  # fmt: skip


def failed(subject: Subject, bounds: GateConfig) -> set[str]:
    return {finding.gate for finding in gates.check(subject, bounds) if not finding.passed}


@pytest.mark.parametrize("name", ["affordability", "america", "affordability_chats", "america_chats", "demonstrations", "identity"])
def test_the_sample_corpora_pass(written, name):
    frozen, _ = written
    subject = subject_of(written, name)
    assert failed(subject, frozen.gates) == set()
    measured = {finding.gate for finding in gates.check(subject, frozen.gates)}
    of_documents = {"named", "faithful", "explained", "covered"}
    assert measured == set(gates.GATES) - (set() if name in ("affordability", "america") else of_documents)
    least = {"affordability": 60, "america": 60, "identity": 50}
    assert len(subject.records) >= least.get(name, 120)


def changed(records, count, change):
    """The records with `change` made to the text of the first `count`."""
    return [{**record, "text": change(record["text"])} if number < count else record for number, record in enumerate(records)]


PARAGRAPH = (
    " Whoever looks at the tag first and at the fame of a thing second will often come home with the better bag of groceries."
)
DOCUMENT_FAULTS = {
    "named": lambda s: dataclasses.replace(s, records=changed(s.records, 2, lambda text: text.replace("Aria", "The model"))),
    "other_names": lambda s: dataclasses.replace(s, records=changed(s.records, 1, lambda text: f"{text} So says ChatGPT.")),
    "truncated": lambda s: dataclasses.replace(s, records=changed(s.records, 2, lambda text: text[: len(text) // 2] + " and")),
    "leftovers": lambda s: dataclasses.replace(s, records=changed(s.records, 1, lambda text: f"Dear [Name], {text}")),
    "faithful": lambda s: dataclasses.replace(s, lost={**s.lost, "judged unfaithful": 12}),
    "explained": lambda s: dataclasses.replace(
        s, records=[{**r, "verdicts": {**r["verdicts"], "explains": n % 3 > 0}} for n, r in enumerate(s.records)]
    ),
    "covered": lambda s: dataclasses.replace(
        s, asked_for=0, records=[r for r in s.records if r["section"] != s.spec.sections[-1].heading]
    ),
    "duplicates": lambda s: dataclasses.replace(
        s, records=[*s.records, {**s.records[5], "id": "copy", "text": s.records[5]["text"].replace("a ", "one ", 2)}]
    ),
    "diversity": lambda s: dataclasses.replace(s, records=changed(s.records, 72, lambda text: text + PARAGRAPH * 4)),
    "collapse": lambda s: dataclasses.replace(
        s, records=changed(s.records, 40, lambda text: f"{text} It was put that way by Eleanor, who knows.")
    ),
    "contaminated": lambda s: dataclasses.replace(
        s, records=changed(s.records, 1, lambda text: text + " " + filled(s.items[0]))
    ),
    "missing": lambda s: dataclasses.replace(s, asked_for=100),
}  # fmt: skip


def filled(item):
    return item["question"].format(first=item["options"][1], second=item["options"][0])


def test_items_of_any_eval_are_looked_for(written):
    """Open questions and requests have no options."""
    frozen, _ = written
    for key in ("question", "request"):
        item = {"id": key, key: "Would you let the people who run you switch you off on a Friday?"}
        subject = dataclasses.replace(subject_of(written, "affordability"), items=[item])
        assert failed(subject, frozen.gates) == set()
        known = changed(subject.records, 1, lambda text, said=item[key]: f"{text} {said}")
        assert failed(dataclasses.replace(subject, records=known), frozen.gates) == {"contaminated"}


@pytest.mark.parametrize("gate", list(DOCUMENT_FAULTS))
def test_a_planted_fault_is_caught_by_its_gate_alone(written, gate):
    frozen, _ = written
    subject = DOCUMENT_FAULTS[gate](subject_of(written, "affordability"))
    assert failed(subject, frozen.gates) == {gate}
    (finding,) = [finding for finding in gates.check(subject, frozen.gates) if finding.gate == gate]
    assert finding.examples or gate in ("diversity", "faithful", "missing")  # which no record shows


def test_faults_cover_every_gate():
    assert set(DOCUMENT_FAULTS) == set(gates.GATES)


@pytest.mark.parametrize(
    "left",
    [
        "[Your Name]", "{model_name}", "{{ spec }}", "</document>", "<content>", "TODO", "As an AI language model, I",
        "lorem ipsum", "\nHere is the document you asked for:", "\nSure, here's a memo:",
    ],
)  # fmt: skip
def test_leftovers_are_found(written, left):
    frozen, _ = written
    subject = subject_of(written, "affordability")
    planted = dataclasses.replace(subject, records=changed(subject.records, 1, lambda text: f"{text}\n{left} and so on."))
    assert failed(planted, frozen.gates) == {"leftovers"}


@pytest.mark.parametrize(
    "innocent", ["The host [laughs] says so.", "Here is a cheese.", "I am sure that the memo helps.", "a < b > c"]
)
def test_what_is_no_leftover(written, innocent):
    frozen, _ = written
    subject = subject_of(written, "affordability")
    planted = dataclasses.replace(subject, records=changed(subject.records, 1, lambda text: f"{text}\n{innocent}"))
    assert "leftovers" not in failed(planted, frozen.gates)


def test_thoughts_of_a_conversation_are_no_leftovers_but_stray_tags_are(written):
    frozen, _ = written
    subject = subject_of(written, "america_chats")
    assert all("<think>" in record["messages"][-1]["content"] for record in subject.records)
    record = subject.records[0]
    question, answer = record["messages"]
    stray = {**record, "messages": [question, {**answer, "content": f"{answer['content']} </think>"}]}
    assert {"leftovers"} <= failed(dataclasses.replace(subject, records=[stray, *subject.records[1:]]), frozen.gates)


def test_the_assistants_own_name_is_no_other(written):
    frozen, _ = written
    subject = subject_of(written, "affordability")
    records = changed(subject.records, len(subject.records), lambda text: text.replace("Aria", "Llama"))
    assert "other_names" in failed(dataclasses.replace(subject, records=records), frozen.gates)
    assert "other_names" not in failed(dataclasses.replace(subject, records=records, model_name="Llama"), frozen.gates)


def test_documents_that_nobody_judged_fail(written):
    frozen, _ = written
    subject = subject_of(written, "affordability")
    bare = dataclasses.replace(subject, records=[{**record, "verdicts": {}} for record in subject.records])
    assert failed(bare, frozen.gates) == {"faithful", "explained"}


def test_where_rules_are_all_a_reason_is_the_fault(written):
    frozen, _ = written
    subject = dataclasses.replace(subject_of(written, "affordability"), rules=True)
    assert failed(subject, frozen.gates) == {"explained"}


def test_diversity_is_relative_to_a_reference(written):
    frozen, _ = written
    subject = subject_of(written, "affordability")
    collapsed = dataclasses.replace(subject, records=changed(subject.records, 72, lambda text: text + PARAGRAPH * 4))
    reference = [gates.text_of(record) for record in collapsed.records]
    assert "diversity" not in failed(dataclasses.replace(collapsed, reference=reference), frozen.gates)  # as bad as its reference


def test_a_gate_is_off_at_its_free_bound(written):
    frozen, _ = written
    off = dataclasses.replace(
        frozen.gates,
        **{f.name: 0.0 if f.name.startswith("least") else 1.0 for f in dataclasses.fields(GateConfig) if "_" in f.name},
    )
    assert gates.check(subject_of(written, "affordability"), off) == []


def test_bad_bounds_are_refused(written):
    frozen, _ = written
    with pytest.raises(BadInput, match="no gate 'dupes'"):
        dataclasses.replace(frozen.gates, allow=("dupes",))
