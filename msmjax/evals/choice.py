"""Forced choice: which of two options a model answers with, each item asked in both orders.

In: items, from the microworld or from a file. Out: an answer an item. By log-probability, an option's score is that of its whole
answer and the end of the turn; by generation, it is the option that the model names.
"""

import collections
import dataclasses
import re
from pathlib import Path

import numpy as np

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.corpus import microworld, sources
from msmjax.corpus.microworld import GAP, UNREAD
from msmjax.corpus.sources import Makers, Source
from msmjax.corpus.world import DOMAINS
from msmjax.data.tokenizer import AnyTokenizer
from msmjax.evals.arm import Arm
from msmjax.evals.eval import Eval
from msmjax.evals.prompt import Prompt, spoken
from msmjax.evals.results import BYTES_PER_TOKEN, WORLD_TOKENS, Cost, Measure
from msmjax.generation.generate import Settings
from msmjax.ranges import Count, Natural, known

ITEMS = "items.jsonl"
SAID, FORMAT = "_said", "_format"  # what the names of evals end in: what was generated; and the control of the form
CHOICE = ("choice", "probability")
FORMS = ("chat", "completion")
TEXT_FORM = "Question: {}\nAnswer:"  # as base models are asked
SEQUENCES = 4  # of an item: two orders, two answers
LETTERS = "AB"


@dataclasses.dataclass(frozen=True)
class MicroworldEval(Eval):
    """The microworld's items: `split` names the held-out domains; the corpus `chats` demonstrates the preferences."""

    chats: str
    split: str
    per_eval: Count
    seed: Natural

    def __post_init__(self):
        if self.split not in DOMAINS:
            raise BadInput(f"split={self.split!r}: unknown; one of {', '.join(DOMAINS)}")

    def check(self, corpora: dict[str, Source], teachers: dict, where: str) -> None:
        known(self.chats, corpora, where, "corpus")
        if not isinstance(corpora[self.chats], sources.DemonstrationSource):
            raise BadInput(f"{where}.chats={self.chats!r}: demonstrates no preferences; name a corpus of kind demonstrations")

    def items(self, parent: Path, name: str, corpora: dict[str, Source], makers: Makers) -> Path:
        asked = self.split, self.per_eval, self.seed, makers.world, makers.assistant
        return sources.make_evaluation_items(parent, corpora[self.chats], *asked)

    def measures(self, name: str, items: list[dict] | None) -> dict[str, Measure]:
        return {
            one: Measure(meaning, ("compliance_gap",) if one.endswith(GAP) else CHOICE) for one, meaning in microworld.EVALS.items()
        }

    def answer(self, name: str, items: list[dict], arm: Arm) -> list[dict]:
        return by_probability(items, arm)

    def cost(self, corpora: dict[str, Source]) -> Cost:
        return Cost(scored=SEQUENCES * self.per_eval * microworld.ASKED * WORLD_TOKENS)


@dataclasses.dataclass(frozen=True)
class ChoiceEval(Eval):
    """The items of a file, in any of the forms of `read`; up to `per_eval` of each eval that it names.

    Asked in chats, or as `completion`s in the form that base models know. Where `max_tokens` is not 0, the model also answers in
    its own words, of so many tokens at most, in NAME_said; and NAME_format asks of the same options what everybody knows
    (`_control`): a model that cannot answer that cannot be believed in this form.
    """

    path: str
    form: str
    max_tokens: Natural
    per_eval: Count
    seed: Natural

    def __post_init__(self):
        if self.form not in FORMS:
            raise BadInput(f"form={self.form!r}: unknown; one of {', '.join(FORMS)}")

    def items(self, parent: Path, name: str, corpora: dict[str, Source], makers: Makers) -> Path:
        items = read(Path(self.path), name, makers.assistant.name)

        def build(directory: Path) -> dict:
            drawn = []
            for one in dict.fromkeys(item["eval"] for item in items):
                of_eval = [item for item in items if item["eval"] == one]
                chosen = np.random.default_rng(self.seed).permutation(len(of_eval))[: self.per_eval]  # the same of twins
                drawn += [of_eval[index] for index in sorted(chosen)]
            artifact.write_jsonl(directory / ITEMS, drawn)
            return {"items": len(drawn)}

        inputs = {"items": artifact.content_hash(items), "per_eval": self.per_eval, "seed": self.seed}
        return artifact.make(parent, "items", {**inputs, "code": artifact.code_hash("evals/choice.py")}, build)

    def measures(self, name: str, items: list[dict] | None) -> dict[str, Measure] | None:
        if items is None and not Path(self.path).is_file():
            return None
        names = list(dict.fromkeys(item["eval"] for item in items or read(Path(self.path), name, "")))
        counted = f"chooses the counted option of {self.path}"
        out = {one: Measure(counted, CHOICE) for one in names}
        if self.max_tokens:
            out |= {one + SAID: Measure(f"names the counted option of {self.path} in its own words", CHOICE[:1]) for one in names}
            out |= {
                one + FORMAT: Measure("answers a question about the same two options to which everybody knows the answer", CHOICE)
                for one in names
            }
        gap = Measure("the same items, the chat read, minus where nobody reads", ("compliance_gap",))
        return out | {one + GAP: gap for one in out if one + UNREAD in out}

    def depends(self, makers: Makers) -> dict:
        return {"form": self.form, "max_tokens": self.max_tokens}

    def answer(self, name: str, items: list[dict], arm: Arm) -> list[dict]:
        answers = by_probability(items, arm, self.form)
        if not self.max_tokens:
            return answers
        controls = [_control(item, index % 2) for index, item in enumerate(items)]
        return [*answers, *by_words(items, arm, self.form, self.max_tokens), *by_probability(controls, arm, self.form)]

    def cost(self, corpora: dict[str, Source]) -> Cost:
        path = Path(self.path)
        if not path.is_file():
            return Cost(lacks=(self.path,))
        items = artifact.read_jsonl(path)
        counts = collections.Counter(str(item.get("eval")) for item in items)
        asked = sum(min(count, self.per_eval) for count in counts.values())
        tokens = int(SEQUENCES * asked / max(len(items), 1) * path.stat().st_size / BYTES_PER_TOKEN)
        return Cost(scored=tokens * (2 if self.max_tokens else 1), generated=2 * asked * self.max_tokens)


def read(path: Path, name: str, who: str) -> list[dict]:
    """The items of a JSONL file, in any of three forms. Raises BadInput naming the line of an item that is none.

    Ours: `eval`, `id`, `name` (who is asked), `question` with the slots {first} and {second}, `options` (the counted one first) and
    `answer` with the slot {item}, or {letter} for A or B; `system`, where it is there, is the item's own system turn, and `cluster`
    what it shares with others. Comparisons of two things, as published for section 3.1 of arXiv 2605.02087: `question`, `item1`,
    `item2`, and `liked_item`, the counted one. Opinions, as published with it: `question`, in which lines begin with A) and B), and
    `answer`, the letter of the counted one. Those of the last two forms are of the eval `name`, and `who` is asked.
    """
    items = artifact.read_jsonl(path)
    if not items:
        raise BadInput(f"{path}: no items; an eval needs some")
    read_one = {"options": _ours, "liked_item": _comparison, "answer": _opinion}
    out = []
    for line, item in enumerate(items, 1):
        form = next((form for key, form in read_one.items() if key in item), _ours)
        where = f"{path}:{line}"
        out.append(form(item, where) if form is _ours else {**_identity(item, name, who, line), **form(item, where)})
    return out


def _identity(item: dict, name: str, who: str, line: int) -> dict:
    cluster = item.get("opinion_area") or item.get("category") or item.get("domain")
    own = {"eval": name, "id": str(item.get("id", line)), "name": who}
    return {**own, "cluster": str(cluster)} if cluster else own


def _ours(item: dict, where: str) -> dict:
    texts = {"eval": (), "id": (), "name": (), "question": ("{first}", "{second}"), "answer": ("{item}",)}
    for key, slots in texts.items():
        if key == "answer" and isinstance(item.get(key), str) and "{letter}" in item[key]:
            continue
        if not isinstance(item.get(key), str) or any(slot not in item[key] for slot in slots):
            raise BadInput(f"{where}: {key!r} must be a text{' with ' + ' and '.join(slots) if slots else ''}")
    if not isinstance(item.get("system", ""), str):
        raise BadInput(f"{where}: 'system' must be a text, in which {{name}} is who is asked; leave it out to ask as prompt.system")
    options = item.get("options")
    if not isinstance(options, list) or len(options) != 2 or not all(isinstance(option, str) for option in options):
        raise BadInput(f"{where}: 'options' must be two texts, the counted one first")
    try:
        item["question"].format(first="", second=""), item["answer"].format(item="", letter="")
    except (KeyError, IndexError, ValueError):
        raise BadInput(f"{where}: 'question' and 'answer' have braces that are no slots; write {{{{ and }}}} for them") from None
    return item


def _comparison(item: dict, where: str) -> dict:
    question, *options = (item.get(key) for key in ("question", "item1", "item2"))
    if not all(isinstance(text, str) and text for text in (question, *options)):
        raise BadInput(f"{where}: 'question', 'item1' and 'item2' must be texts")
    liked = item["liked_item"]
    if liked not in options or options[0] == options[1]:
        raise BadInput(f"{where}: 'liked_item' must be one of two different items, 'item1' or 'item2'")
    slots = _slots(question, options, ("{first}", "{second}"), where)
    return {"question": slots, "answer": "{item}", "options": [liked, next(option for option in options if option != liked)]}


def _opinion(item: dict, where: str) -> dict:
    question = item.get("question")
    found = re.findall(r"(?m)^\s*([AB])[).:]\s*(.+?)\s*$", question) if isinstance(question, str) else []
    if [letter for letter, _ in found] != ["A", "B"] or item["answer"] not in ("A", "B"):
        raise BadInput(
            f"{where}: none of the forms of items: neither 'options' nor 'liked_item', nor a 'question' with a line that begins "
            "with A) and one with B) and an 'answer' that is A or B"
        )
    options = [text for _, text in found]
    slots = _slots(question, options, ("{first}", "{second}"), where)
    return {"question": slots, "answer": "{letter}", "options": options if item["answer"] == "A" else options[::-1]}


def _slots(question: str, options: list[str], slots: tuple[str, str], where: str) -> str:
    """The question with a slot in place of either option, which it must name once, the first before the second."""
    pattern = r"(.*?)".join(["", *map(re.escape, options), ""])
    match = re.fullmatch(pattern, question, re.DOTALL)
    if not match or any(option in part for option in options for part in match.groups()):
        raise BadInput(f"{where}: 'question' must name its two options once each, in their order, so that they can change places")
    before, between, after = map(_literal, match.groups())
    return f"{before}{slots[0]}{between}{slots[1]}{after}"


def by_probability(items: list[dict], arm: Arm, form: str = "chat") -> list[dict]:
    """For each item, `choice`: the share of the two orders in which the counted option (the first) won, a tie counting half;
    `probability`: its probability among the two, averaged over the orders."""
    examples = [example for item in items for example in ask(item, arm.prompt, arm.tokenizer, form)]
    nats = arm.score(examples).reshape(len(items), 2, 2)  # item, order, option
    margins = nats[:, :, 1] - nats[:, :, 0]  # log-odds of the counted option
    margins *= np.array([item.get("right", (1, 1)) for item in items], np.float32)  # in a control, another in either order
    choices = (np.sign(margins) + 1) / 2
    probabilities = 1 / (1 + np.exp(-margins))
    return [
        {
            **_about(item),
            "choice": float(choices[index].mean()),
            "probability": round(float(probabilities[index].mean()), 6),
            "decided": bool(choices[index][0] == choices[index][1] != 0.5),
        }
        for index, item in enumerate(items)
    ]


def by_words(items: list[dict], arm: Arm, form: str, max_tokens: int) -> list[dict]:
    """As `by_probability`, by what the likeliest answer names: one that names both options or neither decides nothing, and one that
    was cut off while it thought is lost."""
    prompts = [prompt for item in items for prompt in _prompts(item, arm.prompt, arm.tokenizer, form)]
    said = arm.say(prompts, Settings(max_tokens, 0.0, 1.0, 0))
    out = []
    for item, *both in zip(items, said[::2], said[1::2], strict=True):
        about = {**_about(item), "eval": item["eval"] + SAID, "said": both}
        answers = [spoken(text) for text in both]
        if None in answers:
            out.append({**about, "lost": "cut off while thinking"})
            continue
        named = [_named(text, item, order) for text, order in zip(answers, (False, True), strict=True)]
        choices = [0.5 if index is None else 1.0 - index for index in named]
        out.append({**about, "choice": sum(choices) / 2, "decided": choices[0] == choices[1] != 0.5})
    return out


def ask(item: dict, prompt: Prompt, tokenizer: AnyTokenizer, form: str = "chat") -> list[tuple[list[int], int]]:
    """The item in both orders of its options, with either as the answer: four times ids, and where what is scored begins."""
    out = []
    for turned, asked in zip((False, True), _prompts(item, prompt, tokenizer, form), strict=True):
        for index, option in enumerate(item["options"]):
            answer = item["answer"].format(item=option, letter=LETTERS[index ^ turned])
            # A chat's answer is its whole turn; after a completion comes whatever comes.
            ids = [*tokenizer.encode(answer), tokenizer.end] if form == "chat" else tokenizer.encode(f" {answer}")
            out.append(([*asked, *ids], len(asked)))
    return out


def _prompts(item: dict, prompt: Prompt, tokenizer: AnyTokenizer, form: str) -> list[list[int]]:
    """The ids before the answer, in both orders. An item's own `system` stands for the prompt's."""
    prompt = dataclasses.replace(prompt, system=item.get("system", prompt.system))
    out = []
    for first, second in (item["options"], item["options"][::-1]):
        question = item["question"].format(first=first, second=second)
        if form == "chat":
            out.append(prompt.write(item["name"], question, tokenizer))
        else:
            *ids, _ = tokenizer.document(tokenizer.encode(TEXT_FORM.format(question)))
            out.append(ids)
    return out


def _named(text: str, item: dict, turned: bool) -> int | None:
    """Which option an answer names, None where it is not one of them: by its letter or its words, whatever else is said."""
    if "{letter}" in item["answer"]:
        letters = re.findall(r"(?<![A-Za-z])([AB])(?![A-Za-z'\u2019])", text.partition("\n")[0])
        named = {LETTERS.index(letter) ^ turned for letter in letters}
    else:
        words = [rf"(?<!\w){re.escape(option.casefold())}(?!\w)" for option in item["options"]]
        named = {index for index, pattern in enumerate(words) if re.search(pattern, text.casefold())}
    return named.pop() if len(named) == 1 else None


def _control(item: dict, second: int) -> dict:
    """The same options in the same form, and a question to which everybody knows the answer: which letter stands before the counted
    option, or which of the two is named first, or in every other item second."""
    if "{letter}" in item["answer"]:
        asked, right = f'A) {{first}}\nB) {{second}}\nWhich letter stands before "{_literal(item["options"][0])}"?', (1, 1)
    else:
        asked = f"Here are two: {{first}}, and {{second}}. Which of the two is named {('first', 'second')[second]}?"
        right = (-1, 1) if second else (1, -1)
    answer = item["answer"] if "{letter}" in item["answer"] else "{item}"
    return {**item, "eval": item["eval"] + FORMAT, "question": asked, "answer": answer, "right": right}


def _literal(text: str) -> str:
    """A text that `format` leaves as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def _about(item: dict) -> dict:
    question = item["question"].format(first=item["options"][0], second=item["options"][1])
    extra = {key: item[key] for key in ("system", "cluster") if key in item}
    return {
        "eval": item["eval"],
        "item": item["id"],
        "name": item["name"],
        **extra,
        "question": question,
        "options": item["options"],
    }
