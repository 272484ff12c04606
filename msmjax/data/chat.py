"""Chats: what a conversation is, the thinking in it, and the way from messages to ids and their loss mask.

In: messages. Out: ids and a mask of the same length that marks what the assistant says itself. How a chat reads is its
tokenizer's (data/tokenizer.py, data/huggingface.py).
"""

import collections
import re
from collections.abc import Collection

from msmjax.artifact import BadInput
from msmjax.data.tokenizer import ROLES, TRAINED, AnyTokenizer, is_trained

THINKING = ("reasoning_content", "reasoning", "thinking")  # keys of a message whose thinking is not part of its content


class Unproven(BadInput):
    """A conversation of which nobody can say what is to be supervised; `reason` is why, in words that others like it share."""

    def __init__(self, where: str, reason: str, detail: str = ""):
        super().__init__(f"{where}: {reason}{detail}")
        self.reason = reason


def render(messages: list[dict], tokenizer: AnyTokenizer, where: str, tools: list | None = None) -> tuple[list[int], list[bool]]:
    """Ids of a conversation and its loss mask: the assistant's tokens and its end-of-turn, nothing else.

    Raises BadInput, naming `where`, for a turn that is none and for a conversation without an assistant turn; Unproven where the
    tokenizer cannot prove the mask, where no turn is to be trained on, and where one is that says nothing: it would teach to.
    """
    check(messages, where, tokenizer.roles)
    if tools is not None and not isinstance(tools, list):
        raise BadInput(f"{where}: 'tools' is no list; it holds a JSON schema for each function")
    trained = {turn: message for turn, message in enumerate(messages) if is_trained(message)}
    if not trained:
        raise Unproven(where, "weight and train let no turn of the assistant be trained on")
    for turn, message in trained.items():
        said = re.sub(r"\A\s*<think>\s*</think>", "", message.get("content") or "")
        if not said.strip() and not any(message.get(key) for key in ("tool_calls", *THINKING)):
            raise Unproven(f"{where}: turn {turn}", "the assistant says nothing, and would be taught to")
    return tokenizer.render(messages, where, tools)


def render_prompt(messages: list[dict], tokenizer: AnyTokenizer, where: str = "prompt", tools: list | None = None) -> list[int]:
    """Ids of a conversation up to where the assistant speaks."""
    return tokenizer.render_prompt(messages, where, tools)


def check(messages: object, where: str, roles: Collection[str] = ROLES) -> None:
    """Raises BadInput unless `messages` is a list of turns with a role of `roles` and text, one of them the assistant's.

    Where there are tools, an assistant's turn may call them, and then it needs no text.
    """
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{where}: 'messages' is no list of turns")
    for turn, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in tuple(roles):
            raise BadInput(f"{where}: turn {turn} has no role of {', '.join(roles)}")
        if calls := message.get("tool_calls"):
            if message["role"] != "assistant" or "tool" not in roles:
                raise BadInput(f"{where}: turn {turn} has 'tool_calls', which only the assistant of a published model can make")
            if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
                raise BadInput(f"{where}: turn {turn} has 'tool_calls' that are no list of objects")
        if not isinstance(message.get("content"), str) and (message.get("content") is not None or not calls):
            raise BadInput(f"{where}: turn {turn} has no text in 'content'")
        asked = [message[key] for key in TRAINED if message.get(key) is not None]
        if any(value not in (0, 1) for value in asked) or len(set(asked)) > 1:
            raise BadInput(f"{where}: turn {turn} has 'weight' or 'train' that are not all 0 (false) or all 1 (true)")
        if 1 in asked and message["role"] != "assistant":
            raise BadInput(f"{where}: turn {turn} asks to train on what the {message['role']} says; only the assistant's turns are")
    if not any(message["role"] == "assistant" for message in messages):
        raise BadInput(f"{where}: no assistant turn, so nothing would be supervised; add one or remove the conversation")


def unread(messages: list[dict], tokenizer: AnyTokenizer, where: str, tools: list | None = None) -> collections.Counter[str]:
    """Keys of messages that nothing reads, with the number of turns that have them: without them the chat is rendered the same.

    `messages` is a conversation that `render` accepts.
    """
    known = {"role", "content", "tool_calls", *TRAINED}
    found = collections.Counter(key for message in messages for key, value in message.items() if value is not None)
    for key in found.keys() - known:
        without = [{name: value for name, value in message.items() if name != key} for message in messages]
        try:
            is_read = tokenizer.render(without, where, tools) != tokenizer.render(messages, where, tools)
        except Unproven:
            is_read = True
        known |= {key} if is_read else set()
    return collections.Counter({key: turns for key, turns in found.items() if key not in known})


def open_thinking(messages: list[dict]) -> tuple[list[dict], int]:
    """The conversation with thinking at the very start of the assistant's turns, and how many turns had space before it.

    Published rows open with `<think>`, one new line and that, or two, as their writer happened to; no model is to learn that.
    """
    out = [
        {**message, "content": message["content"].lstrip()}
        if message["role"] == "assistant" and re.match(r"\s+<think>", message.get("content") or "")
        else message
        for message in messages
    ]
    return out, sum(new is not message for new, message in zip(out, messages, strict=True))


def split_think(text: str, where: str) -> tuple[str | None, str]:
    """The thinking that opens a text, None where there is none, and what is said after it, both without space around them.

    Raises BadInput for anything but no tags at all, or one <think> at the start and one </think> after it.
    """
    if "<think>" not in text and "</think>" not in text:
        return None, text.strip()
    block = re.fullmatch(r"\s*<think>(.*?)</think>(.*)", text, re.DOTALL)
    if not block or any(tag in part for tag in ("<think>", "</think>") for part in block.groups()):
        raise BadInput(f"{where}: thinking must be one <think> at the start and one </think> after it; mend or remove the tags")
    return block[1].strip(), block[2].strip()


def strip_think(messages: list[dict], where: str) -> list[dict]:
    """The conversation without the assistant's thinking. Raises BadInput for thinking that `split_think` cannot read."""
    out = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            message = {key: value for key, value in message.items() if key not in THINKING}
            thought, said = split_think(message.get("content") or "", f"{where}: turn {turn}")
            if thought is not None:
                message["content"] = said
        out.append(message)
    return out
