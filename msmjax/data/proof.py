"""The proof of a loss mask: which ids of a rendered conversation are what the assistant says itself.

In: a conversation as a chat template wrote it, once, and tokenized once. Out: for a turn of the assistant, from where to where its
ids are supervised. It is proven on these ids, not guessed from them:

1. What the template writes for the turns before it, with its generation prompt, is how the whole begins, in characters and in
   ids. So training sees the turn in the context in which inference asks for it, and no token straddles the border.
2. From there on everything up to the next control token is what the message says, its thinking and tool calls included, but for
   space around it; and that control token is one at which generation stops. This text and this token are supervised.
3. The ids decode to the rendering, the supervised ones to that text.

Two things about thinking are the template's right. It may leave an empty block away, which is nobody's thinking, open a turn with
one, or have one in its generation prompt (`enable_thinking=False`). Such a block is not supervised unless the message says it, and
is all in which the prompt of 1. may differ from what stands before a turn: Qwen3 that is asked not to think has it in its prompt,
but not in turns before the last; by default the last turn has it, but not the prompt. And the template may write an earlier turn
without the thinking it was said with: that turn is context and not supervised, since nobody would have answered so.
Everything else is refused with its reason: a template that drops, repeats or alters what is said, that ignores
`add_generation_prompt`, or that shows a turn otherwise once others follow it.
"""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable, Iterator

from msmjax.artifact import BadInput
from msmjax.data import chat
from msmjax.data.chat import Unproven

# Stands within what spells a control token and is text, so that nothing takes it for one. It is no character: Unicode keeps it free
# for programs' own use.
MARK = "\ufdd0"
EMPTY_BLOCK = r"<think>\s*</think>\n*"


@dataclasses.dataclass(frozen=True)
class Rendering:
    """A conversation as its template wrote it, with MARKs, its ids, and what its tokenizer says of them."""

    text: str
    ids: list[int]
    encode: Callable[[str], list[int]]  # of what a template wrote: control tokens by their names
    readable: Callable[[list[int]], str]
    control: dict[int, str]  # the tokens that structure text, by id
    stop_ids: frozenset[int]  # those at which generation stops


def prove(rendering: Rendering, prompt: str, message: dict, is_last: bool, where: str) -> tuple[int, int]:
    """From where to where the ids are what the assistant says in this turn; nowhere for a turn that is context only.

    `prompt` is what the template writes when it asks for the turn. Raises Unproven, naming `where`.
    """
    try:
        return _prove(rendering, prompt, message, is_last)
    except _Reason as error:
        reason, detail = error.args
        raise Unproven(where, reason, f"{detail}; so its loss mask cannot be proven") from None


class _Reason(Exception):
    """Why the mask of a turn cannot be proven: for every turn like it, and for this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)


def _prove(rendering: Rendering, prompt: str, message: dict, is_last: bool) -> tuple[int, int]:
    text, ids, control = rendering.text, rendering.ids, rendering.control
    if not is_last and not text.startswith(prompt):
        prompt = re.sub(rf"{EMPTY_BLOCK}\Z", "", prompt)
    if not text.startswith(prompt):
        raise _Reason(
            "in the whole conversation the chat template writes what comes before it otherwise than when it asks for it",
            " (add_generation_prompt); a conversation that ends with this turn may do",
        )
    start, rest = _size(rendering, prompt), text[len(prompt) :]
    stop = next((at for at in range(start, len(ids)) if ids[at] in control), None)
    if start == 0 or stop is None:
        raise _Reason("nothing precedes it" if start == 0 else "no control token ends it")
    end = control[ids[stop]]
    if ids[stop] not in rendering.stop_ids and stop == start:
        raise _Reason(f"when asked to (add_generation_prompt), the chat template does not open it, or without the {end}")
    if ids[stop] not in rendering.stop_ids:
        stops = " ".join(sorted(control[token] for token in rendering.stop_ids))
        raise _Reason(f"it ends with {end}, but generation stops at {stops} alone", " (eos_token_id in generation_config.json)")
    said = rest.partition(end)[0]
    added = _compare(message, prompt, said)
    if added is None and is_last:
        raise _Reason("the chat template drops its thinking")
    if added:
        start = _size(rendering, prompt + said[:added])
    if not same(rendering.readable(ids[start : stop + 1]), unmarked(said[added or 0 :]) + end):
        raise _Reason("its tokens do not decode to it")
    return (0, 0) if added is None else (start, stop + 1)


def _size(rendering: Rendering, beginning: str) -> int:
    """How many of the ids are those of the beginning of their text."""
    expected = rendering.encode(beginning)
    if rendering.ids[: len(expected)] != expected:
        raise _Reason("a token straddles the border", f" after {beginning[-20:]!r}; remove the space around what it says")
    return len(expected)


def _compare(message: dict, prompt: str, said: str) -> int | None:
    """How many characters the template adds before what the message says: an empty thinking block, or none.

    None where the template leaves its thinking away. Raises _Reason where it says anything else than the message.
    """
    content, calls = message.get("content") or "", message.get("tool_calls") or []
    thought = next((message[key] for key in chat.THINKING if message.get(key)), None)
    opened = re.search(r"<think>\s*(</think>\s*)?\Z", prompt)
    is_open = opened and not opened[1]
    if thought is None and not is_open and not (calls and "<think>" in said) and _says(said, content, calls):
        return 0
    whole = (opened[0] if opened else "") + said
    meant, answer = (str(thought).strip(), content) if thought is not None else _split(content, "the message")
    shown, text = _split(whole, "what the chat template writes")
    if not _says(text, answer, calls) or (shown and shown != (meant or "")):
        raise _Reason("the chat template drops, repeats or alters what it says")
    if shown == meant or (shown is None and not meant):
        return 0
    if meant is None:  # and the block is empty
        block = re.match(rf"\s*{EMPTY_BLOCK}", whole)
        return max(0, block.end() - (len(whole) - len(said)))
    return None


def _split(text: str, whose: str) -> tuple[str | None, str]:
    try:
        return chat.split_think(text, whose)
    except BadInput as error:
        raise _Reason(str(error)) from None


def _says(text: str, content: str, calls: list[dict]) -> bool:
    """Whether a text is the content, but for space around it, and then the calls as JSON objects, in order."""
    text, content = text.strip(), content.strip()
    if not calls:
        return text == content
    written = [_call(found) for found in _objects(text[len(content) :])]
    return text.startswith(content) and written == [_meant(call) for call in calls]


def _call(call: dict) -> tuple[object, object]:
    """Name and arguments of a function call, which chat templates and data write in a few ways."""
    function = call["function"] if isinstance(call.get("function"), dict) else call
    return function.get("name"), function.get("arguments", function.get("parameters")) or {}


def _meant(call: dict) -> tuple[object, object]:
    """`_call` of a message's call, whose arguments may be the text of a JSON object; what is written must be the object."""
    name, arguments = _call(call)
    if not isinstance(arguments, str):
        return name, arguments
    try:
        return name, json.loads(arguments) or {}
    except ValueError:
        raise _Reason(f"the arguments of its call of {name} are no JSON") from None


def _objects(text: str) -> Iterator[dict]:
    """The JSON objects in a text, outermost only, in order."""
    at = text.find("{")
    while at >= 0:
        try:
            found, at = json.JSONDecoder().raw_decode(text, at)
            yield found
        except ValueError:
            at += 1
        at = text.find("{", at)


def unmarked(text: str) -> str:
    """What a template wrote, as it is trained on."""
    return text.replace(MARK, "")


def same(one: str, other: str) -> bool:
    """Whether texts are equal, written with combined characters or without: tokenizers may combine them."""
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
