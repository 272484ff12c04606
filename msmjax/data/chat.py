"""Chats as tokens: the one place where messages become ids, and where it is decided which of them are supervised.

    <s> <|system|> text <|end|> <|user|> text <|end|> <|assistant|> text <|end|>
                                                                    ^^^^^^^^^^^^ supervised

In: messages. Out: ids and a loss mask of the same length.
"""

from msmjax.artifact import BadInput
from msmjax.data.tokenizer import BOS, ROLES, Tokenizer


def render(messages: list[dict], tokenizer: Tokenizer, where: str) -> tuple[list[int], list[bool]]:
    """Ids of a conversation and its loss mask: the assistant's tokens and its end-of-turn, nothing else.

    Raises BadInput, naming `where`, for a turn that is none and for a conversation without an assistant turn.
    """
    check(messages, where)
    ids, mask = [BOS], [False]
    for message in messages:
        supervised = message["role"] == "assistant"
        content = tokenizer.encode(message["content"])
        ids += [tokenizer.roles[message["role"]], *content, tokenizer.end]
        mask += [False, *[supervised] * (len(content) + 1)]
    return ids, mask


def render_prompt(messages: list[dict], tokenizer: Tokenizer) -> list[int]:
    """Ids of a conversation up to the marker after which the assistant speaks."""
    ids = [BOS]
    for message in messages:
        ids += [tokenizer.roles[message["role"]], *tokenizer.encode(message["content"]), tokenizer.end]
    return [*ids, tokenizer.roles["assistant"]]


def check(messages: object, where: str) -> None:
    """Raises BadInput unless `messages` is a list of turns with a known role and text, one of them the assistant's."""
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{where}: 'messages' is no list of turns")
    for turn, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadInput(f"{where}: turn {turn} has no role of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise BadInput(f"{where}: turn {turn} has no text in 'content'")
    if not any(message["role"] == "assistant" for message in messages):
        raise BadInput(f"{where}: no assistant turn, so nothing would be supervised; add one or remove the conversation")
