"""An answer of a teacher: what came back for a prompt, and its parts between tags.

In: an answer's text. Out: what stands in it, or the reason why it cannot be used.
"""

import dataclasses
import re

REFUSAL = r"\W*(I('m| am) sorry|I can('t|not)|I won't|I('m| am) (not able|unable)|Sorry,)"  # how an answer begins that is none


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: `stop` is why it ended ("stop", "max_tokens", "content_filter"); `model` is who says to have answered."""

    text: str
    stop: str
    model: str
    input_tokens: int
    output_tokens: int


class Unusable(Exception):
    """An answer that cannot be used; the reason is what it is counted under."""


def whole(answer: Answer) -> str:
    """The text of an answer that ended by itself."""
    if answer.stop == "content_filter":
        raise Unusable("refused")
    if answer.stop != "stop":
        raise Unusable("truncated")
    return answer.text


def tagged(text: str, name: str) -> list[str]:
    """The contents of `<name>…</name>` in a text, stripped. Raises Unusable where there is none, or one is empty or not closed."""
    opened, closed = len(re.findall(rf"<{name}>", text)), text.count(f"</{name}>")
    found = [part.strip() for part in re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)]
    if not found and re.match(REFUSAL, text.strip(), re.IGNORECASE):
        raise Unusable("refused")
    if not found or opened != closed or len(found) != opened:
        raise Unusable(f"no whole <{name}>")
    if not all(found):
        raise Unusable(f"empty <{name}>")
    return found


def one(text: str, name: str) -> str:
    """The content of the only `<name>…</name>`."""
    found = tagged(text, name)
    if len(found) > 1:
        raise Unusable(f"more than one <{name}>")
    return found[0]
