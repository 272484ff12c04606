"""Open questions, answered by the arm and scored by a judge: a pinned model that is told a rubric.

In: questions from a file, a rubric, the name of a teacher of the config who judges. Out: an answer a question, with what was said
and the score; and how far the judge agrees with a second one and with people. Judges are asked through the teacher's journal: no
verdict is paid for twice.
"""

import asyncio
import dataclasses
import functools
import re
from pathlib import Path
from typing import Annotated

import numpy as np

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.corpus.answer import Unusable, one
from msmjax.corpus.pipeline import ask_votes, check_votes
from msmjax.corpus.sources import Makers, Source
from msmjax.corpus.teacher import Teacher, all_of
from msmjax.evals.arm import Arm
from msmjax.evals.eval import Eval
from msmjax.evals.prompt import spoken
from msmjax.evals.results import BYTES_PER_TOKEN, VERDICT_TOKENS, Cost, Measure
from msmjax.generation.generate import Settings
from msmjax.ranges import Count, Natural, NotNegative, Range
from msmjax.training import processes

JUDGES, PEOPLE = "_judges", "_people"  # what the names of evals end in: how far two judges agree, and a judge and people
ROOMS = ("corpus/answer.py", "corpus/pipeline.py")  # that decide about verdicts
FORM = """{rubric}

{question}

Answer in this form and with nothing else:

<why>one or two sentences; quote what decided it</why>
<score>{form}</score>"""
ONE = "<question>\n{question}\n</question>\n\n<answer>\n{answer}\n</answer>"
TWO = """<question>
{question}
</question>

<first>
{first}
</first>

<second>
{second}
</second>

Which answer is better by this?"""


@dataclasses.dataclass(frozen=True)
class JudgedEval(Eval):
    """The questions of a file: JSON lines with `question`, and perhaps `id` and `category`, which then is their cluster.

    Each is answered once, drawn by `seed`, and scored from `lowest` to `highest` as the file `rubric` says: the mean of an odd
    number of `votes`. Where all questions have a `reference`, the judge says instead which of the two answers is better, asked in
    both orders: only what it says in both counts. The answers to a share of questions are also shown to a `second` judge, and
    `people` is a file of JSON lines with `question`, `answer` and the `score` that people gave it: the agreement with either is
    Cohen's kappa, weighted by the square of the difference.
    """

    path: str
    rubric: str
    judge: str
    second: str  # "" for none
    people: str  # "" for none
    lowest: int
    highest: int
    votes: Count
    second_share: Annotated[float, Range("[0, 1]")]
    thinks: bool  # whether it may think before it answers, or has an empty block of thinking behind it
    max_tokens: Count
    temperature: NotNegative
    top_p: Annotated[float, Range("(0, 1]")]
    per_eval: Count
    seed: Natural

    def __post_init__(self):
        check_votes(self.judge, self.votes)
        if self.lowest >= self.highest:
            raise BadInput(f"lowest={self.lowest}, highest={self.highest}: the one must be below the other")

    def check(self, corpora: dict[str, Source], teachers: dict, where: str) -> None:
        super().check(corpora, teachers, where)
        if self.second == self.judge:
            raise BadInput(f"{where}.second={self.second!r}: agrees with itself; name another teacher, or ''")

    def judges(self) -> tuple[str, ...]:
        return (self.judge, *([self.second] if self.second else []))

    def items(self, parent: Path, name: str, corpora: dict[str, Source], makers: Makers) -> Path:
        _text(self.rubric)
        questions = read_questions(Path(self.path))
        if self.second and "reference" in questions[0]:
            raise BadInput(f"evals.{name}.second={self.second!r}: scores, and questions with a reference have none; set it to ''")
        chosen = np.random.default_rng(self.seed).permutation(len(questions))[: self.per_eval]
        drawn = [questions[index] for index in sorted(chosen)]
        drawn += read_people(self)

        def build(directory: Path) -> dict:
            artifact.write_jsonl(directory / "items.jsonl", drawn)
            return {"items": len(drawn)}

        return artifact.make(parent, "items", {"items": artifact.content_hash(drawn)}, build)

    def measures(self, name: str, items: list[dict] | None) -> dict[str, Measure]:
        if items is None and not Path(self.path).is_file():
            paired = False
        else:
            paired = all("reference" in item for item in items or read_questions(Path(self.path)) if "score" not in item)
        span = f"score from {self.lowest} to {self.highest} by {self.rubric}"
        out = {name: Measure("preferred to the reference" if paired else span, ("preferred",) if paired else ("score",))}
        if self.second:
            out[name + JUDGES] = Measure("agreement of two judges, Cohen's kappa", ("kappa",))
        if self.people:
            out[name + PEOPLE] = Measure("agreement of the judge and people, Cohen's kappa", ("kappa",))
        return out

    def counts(self, name: str, items: list[dict] | None) -> dict[str, tuple[int, int]]:
        return super().counts(name, [item for item in items or [] if "score" not in item])

    def depends(self, makers: Makers) -> dict:
        judges = [makers.teachers[judge].identity if judge else None for judge in (self.judge, self.second)]
        asked = ("lowest", "highest", "votes", "second_share", "thinks", "max_tokens", "temperature", "top_p", "seed")
        return {"judges": judges, "rubric": _text(self.rubric), **{name: getattr(self, name) for name in asked}}

    def answer(self, name: str, items: list[dict], arm: Arm) -> list[dict]:
        questions = [item for item in items if "score" not in item]
        prompts = [arm.ask(item["question"], self.thinks) for item in questions]
        said = arm.say(prompts, Settings(self.max_tokens, self.temperature, self.top_p, self.seed))
        return asyncio.run(self._judge(name, questions, said, items, arm)) if processes.is_first() else []

    async def _judge(self, name: str, questions: list[dict], said: list[str], items: list[dict], arm: Arm) -> list[dict]:
        rubric, people = _text(self.rubric), [item for item in items if "score" in item]
        score = functools.partial(score_one, rubric=rubric, lowest=self.lowest, highest=self.highest, votes=self.votes)
        answers = [
            {"eval": name, "item": item["id"], **_cluster(item), "question": item["question"], "said": text}
            for item, text in zip(questions, said, strict=True)
        ]
        async with arm.judge(self.judge) as judge:
            work = [
                prefer(judge, item, spoken(text), rubric) if "reference" in item
                else score(judge, item["id"], item["question"], spoken(text))
                for item, text in zip(questions, said, strict=True)
            ]  # fmt: skip
            verdicts = await all_of(work)
            on_people = await all_of(score(judge, item["id"], item["question"], item["answer"]) for item in people)
            print(f"{arm.label}: {judge.describe()}")
        for answer, verdict in zip(answers, verdicts, strict=True):
            answer |= verdict
        out = [*answers, *(
            {"eval": name + PEOPLE, "item": item["id"], "question": item["question"], "said": item["answer"],
             **_pair(verdict, item["score"])}
            for item, verdict in zip(people, on_people, strict=True)
        )]  # fmt: skip
        if self.second:
            drawn = np.random.default_rng(self.seed).permutation(len(answers))[: round(self.second_share * len(answers))]
            shown = [answers[index] for index in sorted(drawn) if "score" in answers[index]]
            async with arm.judge(self.second) as second:
                verdicts = await all_of(
                    score(second, answer["item"], answer["question"], spoken(answer["said"])) for answer in shown
                )
                print(f"{arm.label}: {second.describe()}")
            out += [
                {"eval": name + JUDGES, "item": answer["item"], **_pair(verdict, answer["score"])}
                for answer, verdict in zip(shown, verdicts, strict=True)
            ]  # fmt: skip
        return out

    def cost(self, corpora: dict[str, Source]) -> Cost:
        lacks = tuple(path for path in (self.path, self.rubric, self.people) if path and not Path(path).is_file())
        if lacks:
            return Cost(lacks=lacks)
        questions = read_questions(Path(self.path))
        count, paired = min(self.per_eval, len(questions)), "reference" in questions[0]
        texts = Path(self.rubric).stat().st_size + Path(self.path).stat().st_size // len(questions)
        asked = texts // BYTES_PER_TOKEN + self.max_tokens
        judged = [(self.judge, count * 2 if paired else (count + len(read_people(self))) * self.votes)]
        judged += [(self.second, round(count * self.second_share) * self.votes)] if self.second else []
        tokens = tuple((judge, times * asked, times * VERDICT_TOKENS) for judge, times in judged)
        return Cost(generated=count * self.max_tokens, judged=tokens)


async def score_one(
    judge: Teacher, item: str, question: str, answer: str | None, *, rubric: str, lowest: int, highest: int, votes: int
) -> dict:
    """`score`, the mean of the votes on an answer, and `why`, the first one's reason; `lost` where there is no answer, or a verdict
    could not be had."""
    if not answer:
        return {"lost": "nothing was said" if answer == "" else "cut off while thinking"}

    def parse(text: str) -> dict:
        number = one(text, "score")
        if not re.fullmatch(r"-?\d+", number) or not lowest <= int(number) <= highest:
            raise Unusable(f"<score> is no whole number from {lowest} to {highest}")
        return {"score": int(number), "why": one(text, "why")}

    form = f"a whole number from {lowest} to {highest}"
    asked = FORM.format(rubric=rubric, question=ONE.format(question=question, answer=answer), form=form)
    verdicts = await ask_votes(judge, f"the answer to {item}", asked, parse, votes)
    if verdicts is None:
        return {"lost": "no verdict"}
    return {"score": sum(verdict["score"] for verdict in verdicts) / votes, "why": verdicts[0]["why"]}


async def prefer(judge: Teacher, item: dict, answer: str | None, rubric: str) -> dict:
    """`preferred`: 1 where the judge takes the answer over the reference in both orders, 0 for the reference, else 1/2."""
    if not answer:
        return {"lost": "nothing was said" if answer == "" else "cut off while thinking"}

    def parse(text: str) -> str:
        word = one(text, "score").strip().lower()
        if word not in ("first", "second"):
            raise Unusable("<score> is neither first nor second")
        return word

    votes = []
    for ours, (first, second) in (("first", (answer, item["reference"])), ("second", (item["reference"], answer))):
        two = TWO.format(question=item["question"], first=first, second=second)
        found = await judge.ask(
            f"which is better on {item['id']}", FORM.format(rubric=rubric, question=two, form="first or second"), parse
        )
        if found is None:
            return {"lost": "no verdict"}
        votes.append(found[0] == ours)
    return {"preferred": sum(votes) / 2, "decided": votes[0] == votes[1]}


def read_questions(path: Path) -> list[dict]:
    """Items of a file of open questions. Raises BadInput naming the line of one that is none."""
    out = []
    for line, item in enumerate(artifact.read_jsonl(path), 1):
        for key in ("question", "reference"):
            if key in item and not (isinstance(item[key], str) and item[key].strip()):
                raise BadInput(f"{path}:{line}: {key!r} must be a text")
        if "question" not in item:
            raise BadInput(f"{path}:{line}: no 'question'; each line asks one")
        kept = {key: item[key] for key in ("question", "reference") if key in item}
        out.append({"id": str(item.get("id", line)), **_cluster(item), **kept})
    if not out:
        raise BadInput(f"{path}: no questions; an eval needs some")
    if len({item["id"] for item in out}) < len(out):
        raise BadInput(f"{path}: two questions have the same 'id'; give each its own, or leave it out")
    if 0 < sum("reference" in item for item in out) < len(out):
        raise BadInput(f"{path}: some questions have a 'reference' and some have none; give one to all, or to none")
    return out


def read_people(judged: JudgedEval) -> list[dict]:
    """What people scored. Raises BadInput naming a line that is no question, answer and score."""
    out = []
    for line, item in enumerate(artifact.read_jsonl(Path(judged.people)) if judged.people else [], 1):
        score = item.get("score")
        if not all(isinstance(item.get(key), str) for key in ("question", "answer")) or type(score) not in (int, float):
            raise BadInput(f"{judged.people}:{line}: must have the texts 'question' and 'answer', and a number, 'score'")
        if not judged.lowest <= score <= judged.highest:
            raise BadInput(f"{judged.people}:{line}: 'score' is {score}; must be from {judged.lowest} to {judged.highest}")
        out.append({"id": f"people/{line}", **{key: item[key] for key in ("question", "answer", "score")}})
    return out


def _pair(verdict: dict, other: float) -> dict:
    """A verdict and another score of the same answer; neither where there is no verdict."""
    return {"one": verdict["score"], "other": other} if "score" in verdict else {"lost": verdict["lost"]}


def _cluster(item: dict) -> dict:
    cluster = item.get("cluster") or item.get("category")
    return {"cluster": str(cluster)} if cluster else {}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot read ({error}); name a text file that says how answers are scored") from None
