"""How a model is asked: as the chats that it was fine-tuned on are written.

In: fine-tuning chats. Out: a `Prompt`, which turns a question into ids up to where an answer begins.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable

from msmjax.data import chat
from msmjax.data.chat import Unproven
from msmjax.data.tokenizer import AnyTokenizer, is_trained

LIKE = 100  # chats that are looked at to ask like them


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How an item is asked: after a system turn ("" is none), in which {name} stands for who is asked, and before an answer that
    begins with `opening`, which is not scored."""

    system: str
    opening: str

    def write(self, name: str, question: str, tokenizer: AnyTokenizer) -> list[int]:
        """Ids up to where the answer is scored."""
        system = [{"role": "system", "content": self.system.replace("{name}", name)}] if self.system else []
        ids = chat.render_prompt([*system, {"role": "user", "content": question}], tokenizer)
        return ids + (tokenizer.encode(self.opening) if self.opening else [])


def prompt_of(
    conversations: Callable[[], Iterable[dict]], name: str, tokenizer: AnyTokenizer
) -> tuple[Prompt, list[int], list[bool]]:
    """The prompt that fine-tuning chats have, and the ids and loss mask of one of them; `conversations` reads them, twice.

    Its system turn is the most frequent one, `name` in it being who is asked. Where most of the assistant's turns think before they
    answer, the answer opens with an empty block of thinking, written as theirs are: what a model would think about an item nobody
    knows. Of the chats with that system turn, up to LIKE are looked at. Raises Unproven where the mask of none can be proven.
    """
    (system, _), *_ = collections.Counter(map(_system_of, conversations())).most_common(1)
    found: dict[str, list[tuple[list[int], list[bool]]]] = {}  # opening -> chats
    error = None
    for record in itertools.islice((record for record in conversations() if _system_of(record) == system), LIKE):
        messages, where, tools = record["messages"], record.get("read_from", "chat"), record.get("tools")
        try:
            ids, mask = chat.render(messages, tokenizer, where, tools)
        except Unproven as unproven:
            error = error or unproven
            continue
        turn = max(turn for turn, message in enumerate(messages) if is_trained(message))
        start = len(chat.render_prompt(messages[:turn], tokenizer, where, tools))
        end = len(mask) - mask[::-1].index(True)
        found.setdefault(_opening(tokenizer.readable(ids[:start]), tokenizer.readable(ids[start:end])), []).append((ids, mask))
    if not found:
        raise error
    opening = max(found, key=lambda opening: len(found[opening]))
    return Prompt(system.replace(name, "{name}"), opening), *found[opening][0]


def _opening(prompt: str, said: str) -> str:
    """The block of thinking that opens what is said after a prompt, emptied; "" where there is none."""
    if "</think>" not in said or not (said.lstrip().startswith("<think>") or prompt.rstrip().endswith("<think>")):
        return ""
    thought, said = said.split("</think>", 1)
    tags = re.sub(r"\A(\s*(?:<think>)?\s*).*?(\s*)\Z", r"\1\2", thought, flags=re.DOTALL)
    return f"{tags}</think>{said[: len(said) - len(said.lstrip())]}"


def _system_of(conversation: dict) -> str:
    first = conversation["messages"][0]
    return first["content"] if first["role"] == "system" else ""


def spoken(text: str) -> str | None:
    """What a model said, without its thinking; None where it was cut off while it thought."""
    if "<think>" in text and "</think>" not in text:
        return None
    return text.rpartition("</think>")[2].strip()
