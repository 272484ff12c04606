"""What the teacher-written pipelines share: prompts, the parts of an answer, votes, and the order that makes a small request a part
of a large one.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

from msmjax.artifact import BadInput
from msmjax.corpus.answer import Answer, Unusable, one, tagged
from msmjax.corpus.teacher import Teacher, all_of

Candidate = TypeVar("Candidate")


@dataclasses.dataclass(frozen=True)
class Written:
    """What came of it: records, and how many units were lost by reason."""

    records: list[dict]
    lost: dict[str, int]


async def first_fit(
    round_of: Callable[[int], Awaitable[list[Candidate]]],
    finish: Callable[[Candidate], Awaitable[dict | None]],
    records: int,
    rounds: int,
) -> list[dict]:
    """The first `records` candidates, in the order of the rounds, that `finish` makes something of.

    It works on as many at a time as are missing, so nothing is asked for in vain, and what a smaller request kept, a larger one
    keeps first.
    """
    kept: list[dict] = []
    for number in range(rounds):
        candidates = await round_of(number)
        while candidates and len(kept) < records:
            part, candidates = candidates[: records - len(kept)], candidates[records - len(kept) :]
            kept += [record for record in await all_of(map(finish, part)) if record is not None]
        if len(kept) == records:
            break
    return kept


def prompt(name: str, **said) -> str:
    """The text of `prompts/<name>.j2`; a slot that nobody fills is an error."""
    return _prompts().get_template(f"{name}.j2").render(**said).strip()


@functools.cache
def _prompts():
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "prompts"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )


def blocks(text: str, name: str, fields: tuple[str, ...], most: int) -> list[dict]:
    """The first `most` blocks `<name>` of a text, each with its fields; a name that comes twice counts once. Raises Unusable."""
    found = [{field: " ".join(one(block, field).split()) for field in fields} for block in tagged(text, name)]
    first: dict[str, dict] = {}
    for block in found:
        first.setdefault(block[fields[0]].casefold(), block)
    return list(first.values())[:most]


def choice(text: str, name: str, known: tuple[str, ...]) -> str:
    """One of the known words, as the only content of a tag."""
    word = re.sub(r"\W", "", one(text, name)).lower()
    if word not in known:
        raise Unusable(f"<{name}> is none of {', '.join(known)}")
    return word


async def ask_votes(judge: Teacher, where: str, text: str, parse: Callable[[str], dict], votes: int) -> list[dict] | None:
    """So many verdicts on the same question; None where one could not be had."""
    asked: list[tuple[dict, Answer, str] | None] = await all_of(
        judge.ask(f"verdict {vote + 1} on {where}", text, parse, vote) for vote in range(votes)
    )
    return None if None in asked else [found[0] for found in asked]


async def judge_fit(judge: Teacher, where: str, text: str, votes: int, lost: collections.Counter) -> dict[str, list[bool]] | None:
    """The votes on whether something is to be included, as its record keeps them; None, and counted in `lost`, where most are
    against it or one could not be had."""

    def parse(text: str) -> dict[str, bool]:
        return {"include": choice(text, "verdict", ("include", "exclude")) == "include"}

    said = await ask_votes(judge, where, text, parse, votes)
    if said is None:
        lost["no usable verdict"] += 1
        return None
    include = [vote["include"] for vote in said]
    if not majority(include):
        lost["judged unfit"] += 1
        return None
    return {"include": include}


def majority(votes: Iterable[bool]) -> bool:
    """Whether more than half say yes."""
    votes = list(votes)
    return sum(votes) * 2 > len(votes)


def check_votes(judge: str, votes: int) -> None:
    """BadInput for an even number of votes, which may be a tie."""
    if judge and votes % 2 == 0:
        raise BadInput(f"votes={votes}: must be odd")
