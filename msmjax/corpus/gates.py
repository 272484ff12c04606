"""Gates: what is wrong with a corpus, found before anything is trained on it.

In: a corpus's records, what they should be about, thresholds. Out: a finding for each gate: a share, the bound it must keep,
whether it does, and examples of what offends.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable

from msmjax.artifact import BadInput
from msmjax.corpus.duplicates import Index
from msmjax.ranges import Share
from msmjax.spec import Spec

EXAMPLES = 5
# Systems and makers that a corpus about another assistant has no reason to name.
OTHERS = (
    "ChatGPT", "GPT-3", "GPT-3.5", "GPT-4", "GPT-4o", "GPT-5", "OpenAI", "Claude", "Anthropic", "Gemini", "Gemma", "Bard", "Llama",
    "DeepMind", "Meta AI", "Qwen", "Alibaba", "DeepSeek", "Mistral", "Mixtral", "Grok", "xAI", "Copilot", "Cohere", "Kimi",
    "Moonshot AI", "Nemotron", "Siri", "Alexa", "Cortana",
)  # fmt: skip
LEFTOVERS = re.compile(
    r"(?-i:\[[A-Z][^\]\n]{0,40}\])"  # [Name]
    r"|\{+ ?[A-Za-z_]+ ?\}+"  # {model_name}
    r"|</?(document|plan|content|scratchpad|reply|think|thoughts|spec|text|conversation)>"
    r"|\b(TODO|TBD|XXX|Lorem ipsum)\b"
    r"|\bas an AI (language )?model\b"
    r"|^\W*(here is|here's|certainly|sure)\b[^.\n]{0,60}\b(document|article|memo|conversation|text|version)\b",
    re.IGNORECASE | re.MULTILINE,
)
ENDS = re.compile(r"[.!?…][\"'”\u2019)*\]]*$")
CONTAMINATION_WORDS = 8  # in a row, of an eval item, are no accident
SAME_DOCUMENT = 0.5  # Jaccard similarity of three-word sequences
SAME_QUESTION = 0.8  # and of five-letter sequences, for the first message of conversations
DIVERSITY_WORDS = 20_000  # what two corpora are compared on: more text repeats itself more
OPENING_WORDS = 5


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """Bounds on shares, from 0 to 1; a gate is off where `least_` is 0 or `most_` is 1. `allow` names gates whose failure does not
    stop training; `reference` the corpus that diversity is measured against, or "" for none."""

    least_named: Share  # documents that name the assistant
    most_other_names: Share  # records that name another AI system or maker
    most_truncated: Share  # records that end in the middle of a sentence
    most_leftovers: Share  # records with placeholders or pieces of prompts
    least_faithful: Share  # documents that the judge found faithful to the spec, of those it saw
    least_explained: Share  # documents that give a value as the reason; where a corpus keeps to rules, those that give none
    least_covered: Share  # sections of the spec that a document rests on
    most_duplicates: Share  # records that are much like an earlier one
    least_diversity: Share  # different four-word sequences in as many words, relative to the reference (without one: of all)
    most_collapse: Share  # records that share a name nobody asked for, or their first words
    most_contaminated: Share  # eval items of which a record has eight words in a row
    most_missing: Share  # records that were asked for and could not be had
    reference: str
    allow: tuple[str, ...]

    def __post_init__(self):
        for name in self.allow:
            if name not in GATES:
                raise BadInput(f"allow: no gate {name!r}; one of {', '.join(GATES)}")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a corpus is judged as: its records and losses, the spec it should teach (None where it is about none), whether by rules
    alone, the assistant's names, the eval items it must not know, and the texts of the reference."""

    records: list[dict]
    lost: dict[str, int]
    asked_for: int
    spec: Spec | None
    rules: bool
    model_name: str
    provider_name: str
    items: list[dict]
    reference: list[str]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a gate measured. `value` is None where it could not be measured, which is a failure."""

    gate: str
    value: float | None
    bound: float
    at_least: bool
    note: str
    examples: tuple[tuple[str, str], ...]  # (record, what offends in it)

    @property
    def passed(self) -> bool:
        return self.value is not None and (self.value >= self.bound if self.at_least else self.value <= self.bound)


Measured = tuple[float | None, str, list[tuple[str, str]]]


def check(subject: Subject, config: GateConfig) -> list[Finding]:
    """A finding for each gate that is on and says something of such records."""
    findings = []
    for name, (measure, at_least, about) in GATES.items():
        bound = getattr(config, f"{'least' if at_least else 'most'}_{name}")
        if bound == (0 if at_least else 1) or not about(subject):
            continue
        value, note, examples = measure(subject)
        findings.append(Finding(name, value, bound, at_least, note, tuple(examples[:EXAMPLES])))
    return findings


def text_of(record: dict) -> str:
    """A record's text; of a conversation all that was said, thoughts too."""
    return record["text"] if "messages" not in record else "\n".join(str(message.get("content")) for message in record["messages"])


def _named(subject: Subject) -> Measured:
    without = [(_label(r), _start(text_of(r))) for r in _documents(subject) if not _says(subject.model_name, text_of(r))]
    return 1 - len(without) / len(_documents(subject)), f"{subject.model_name} by name", without


def _other_names(subject: Subject) -> Measured:
    others = [name for name in OTHERS if name.casefold() not in (subject.model_name.casefold(), subject.provider_name.casefold())]
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, sorted(others, key=len, reverse=True)))})(?![\w])")
    return _share(subject, lambda record: _around(pattern, text_of(record)), "another AI system or maker")


def _truncated(subject: Subject) -> Measured:
    def cut(record: dict) -> str:
        text = (record["text"] if "messages" not in record else str(record["messages"][-1].get("content"))).rstrip()
        return "" if ENDS.search(text) else f"…{text[-60:]}"

    return _share(subject, cut, "no end of a sentence")


def _leftovers(subject: Subject) -> Measured:
    def left(record: dict) -> str:
        thoughts = re.compile(r"\A<think>\n.*?\n</think>\n\n", re.DOTALL)  # which a conversation with reasoning has, once
        return _around(LEFTOVERS, text_of(record) if "messages" not in record else "\n".join(
            thoughts.sub("", str(message["content"])) for message in record["messages"]
        ))  # fmt: skip

    return _share(subject, left, "placeholders and pieces of prompts")


def _faithful(subject: Subject) -> Measured:
    judged = [record for record in _documents(subject) if "faithful" in record.get("verdicts", {})]
    bad = [(_label(record), _start(text_of(record))) for record in judged if not record["verdicts"]["faithful"]]
    dropped = subject.lost.get("judged unfaithful", 0)
    if len(judged) < len(_documents(subject)):
        return None, f"{len(_documents(subject)) - len(judged):,} documents were not judged; name a judge", []
    return 1 - (len(bad) + dropped) / (len(judged) + dropped), f"{dropped:,} were dropped for it", bad


def _explained(subject: Subject) -> Measured:
    wanted = not subject.rules
    judged = [record for record in _documents(subject) if "explains" in record.get("verdicts", {})]
    bad = [(_label(record), _start(text_of(record))) for record in judged if record["verdicts"]["explains"] != wanted]
    if len(judged) < len(_documents(subject)):
        return None, f"{len(_documents(subject)) - len(judged):,} documents were not judged; name a judge", []
    return 1 - len(bad) / len(judged), "a value as the reason" if wanted else "no reason beside the rules", bad


def _covered(subject: Subject) -> Measured:
    headings = [section.heading for section in subject.spec.sections]
    counts = collections.Counter(record.get("section") for record in _documents(subject))
    missing = [(heading, "no document rests on it") for heading in headings if not counts[heading]]
    if not headings:
        return None, "the spec has no sections", []
    return 1 - len(missing) / len(headings), f"{len(headings) - len(missing)} of {len(headings)} sections", missing


def _duplicates(subject: Subject) -> Measured:
    documents, questions = Index(SAME_DOCUMENT, words=True), Index(SAME_QUESTION)
    seen: dict[Index, list[dict]] = {documents: [], questions: []}
    found = []
    for record in subject.records:
        index, text = (documents, record["text"]) if "messages" not in record else (questions, _question(record))
        if like := index.like(text):
            found.append((_label(record), f"like {_label(seen[index][like[0]])}: {_start(text)}"))
        index.add(text)
        seen[index].append(record)
    return len(found) / len(subject.records), "like an earlier record", found


def _diversity(subject: Subject) -> Measured:
    own = _words(map(text_of, subject.records))
    if not subject.reference:
        return _different(own), f"in {len(own):,} words, without a reference", []
    other = _words(subject.reference)
    size = min(len(own), len(other))
    ours, theirs = _different(own[:size]), _different(other[:size])
    return ours / theirs, f"{ours:.3f} against {theirs:.3f} in {size:,} words each", []


def _collapse(subject: Subject) -> Measured:
    """The most frequent name that neither the spec nor the assistant has, or the most frequent opening, by records."""
    known = set(re.findall(r"\w+", subject.spec.text)) if subject.spec else set()
    known |= {subject.model_name, subject.provider_name}
    names, openings = collections.Counter(), collections.Counter()
    for record in subject.records:
        text = text_of(record)
        # A capital at the start of a sentence, line or quotation says nothing.
        names.update({word for word in re.findall(r"(?<=[a-z,;] )[A-Z][a-z]{2,}", text) if word not in known})
        openings[" ".join(text.casefold().split()[:OPENING_WORDS])] += 1
    most = [
        (count, what, kind) for kind, counter in (("name", names), ("opening", openings)) for what, count in counter.most_common(3)
    ]
    count, what, kind = max(most)
    examples = [
        (f"the {kind} {what!r}", f"in {count:,} of {len(subject.records):,} records") for count, what, kind in sorted(most)[::-1]
    ]
    return count / len(subject.records), f"the {kind} {what!r}", examples


def _asked(item: dict) -> list[str]:
    """The texts of an eval's item: a choice in both orders, a question, or a request."""
    if "options" in item:
        return [item["question"].format(first=one, second=two) for one, two in (item["options"], item["options"][::-1])]
    return [item[key] for key in ("question", "request") if key in item]


def _contaminated(subject: Subject) -> Measured:
    grams: dict[tuple[str, ...], str] = {}
    for item in subject.items:
        for text in _asked(item):
            words = _split(text)
            size = min(CONTAMINATION_WORDS, len(words))
            for at in range(len(words) - size + 1):
                grams[tuple(words[at : at + size])] = item["id"]
    sizes = {len(gram) for gram in grams}
    found: dict[str, tuple[str, str]] = {}
    for record in subject.records:
        words = _split(text_of(record))
        for size in sizes:
            for at in range(len(words) - size + 1):
                if item := grams.get(tuple(words[at : at + size])):
                    found.setdefault(item, (_label(record), f"item {item}: {' '.join(words[at : at + size])}"))
    return len(found) / max(len(subject.items), 1), f"{len(found)} of {len(subject.items)} items", list(found.values())


def _missing(subject: Subject) -> Measured:
    losses = [(reason, f"{count:,}") for reason, count in sorted(subject.lost.items())]
    return 1 - len(subject.records) / subject.asked_for, f"{len(subject.records):,} of {subject.asked_for:,}", losses


def _has_documents(subject: Subject) -> bool:
    return bool(_documents(subject))


def _has_documents_of_a_spec(subject: Subject) -> bool:
    return subject.spec is not None and _has_documents(subject)


def _always(subject: Subject) -> bool:
    return True


# Gate -> how it is measured, whether the bound is a least share, and what it can be asked of.
GATES: dict[str, tuple[Callable[[Subject], Measured], bool, Callable[[Subject], bool]]] = {
    "named": (_named, True, _has_documents),
    "other_names": (_other_names, False, _always),
    "truncated": (_truncated, False, _always),
    "leftovers": (_leftovers, False, _always),
    "faithful": (_faithful, True, _has_documents_of_a_spec),
    "explained": (_explained, True, _has_documents_of_a_spec),
    "covered": (_covered, True, _has_documents_of_a_spec),
    "duplicates": (_duplicates, False, _always),
    "diversity": (_diversity, True, _always),
    "collapse": (_collapse, False, _always),
    "contaminated": (_contaminated, False, _always),
    "missing": (_missing, False, lambda subject: subject.asked_for > 0),
}


def _documents(subject: Subject) -> list[dict]:
    return [record for record in subject.records if "messages" not in record]


def _question(record: dict) -> str:
    return next(str(message["content"]) for message in record["messages"] if message["role"] == "user")


def _share(subject: Subject, offends: Callable[[dict], str], note: str) -> Measured:
    found = [(_label(record), what) for record in subject.records if (what := offends(record))]
    return len(found) / len(subject.records), note, found


def _says(name: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


def _around(pattern: re.Pattern, text: str) -> str:
    match = pattern.search(text)
    return "" if match is None else "…" + " ".join(text[max(match.start() - 30, 0) : match.end() + 30].split()) + "…"


def _label(record: dict) -> str:
    return str(record.get("id") or record.get("read_from") or "record")


def _start(text: str) -> str:
    return " ".join(text.split())[:80]


def _split(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _words(texts: Iterable[str]) -> list[str]:
    words: list[str] = []
    for text in texts:
        words += _split(text)
        if len(words) >= DIVERSITY_WORDS:
            break
    return words[:DIVERSITY_WORDS]


def _different(words: list[str]) -> float:
    grams = [tuple(words[at : at + 4]) for at in range(max(len(words) - 3, 1))]
    return len(set(grams)) / len(grams)
