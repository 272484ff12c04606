"""The provider of a teacher's model, called through Inspect AI.

In: a TeacherConfig. Out: a function that makes one call: it gives an answer, or says by what it raises that this prompt is
declined, that waiting may help, or that nothing will.
"""

import asyncio
import email.utils
import re
import time
from collections.abc import Awaitable, Callable

from msmjax.artifact import BadInput
from msmjax.corpus.answer import Answer, Unusable
from msmjax.corpus.teacher_config import TeacherConfig

LONGEST_ASKED = 600.0  # seconds, where the server says how long to wait


class Busy(Exception):
    """The call failed in a way that waiting may mend."""

    def __init__(self, reason: str, wait: float | None = None, paid: bool = False):
        super().__init__(reason)
        self.wait = wait  # seconds, where the server said so
        self.paid = paid  # it may be on the bill: no answer arrived whole, but the server did not decline either


Generate = Callable[[str], Awaitable[Answer]]  # raises Busy where waiting may help, Unusable where this prompt is declined


def inspect_model(config: TeacherConfig) -> Generate:
    """The configured model through Inspect AI. Retries are ours alone: Inspect's and the SDKs' would not be in the ledger."""
    try:
        from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model
    except ImportError:
        raise BadInput("a teacher needs Inspect AI: pip install 'msmjax[teacher]', and the provider's own package") from None
    provider = config.model.partition("/")[0]
    sdk = {"max_retries": 0} if provider in ("openai", "openai-api", "anthropic") else {}
    settings = GenerateConfig(
        temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens, max_connections=config.concurrency,
        max_retries=0, attempt_timeout=config.timeout, batch=config.batch or None,
    )  # fmt: skip
    try:
        model = get_model(config.model, base_url=config.base_url or None, config=settings, memoize=False, **sdk)
    except Exception as error:
        said = " ".join(re.sub(r"\[/?[a-z ]+\]", "", str(error)).split())  # Inspect's says what is missing in its second line
        raise BadInput(f"teacher {config.model}: {said}") from error

    async def generate(prompt: str) -> Answer:
        call = model.generate([ChatMessageUser(content=prompt)])
        try:
            # Inspect keeps each call, with its prompt, in a transcript of the task's context: a task of its own ends with the call.
            output = await asyncio.create_task(call)
        except Exception as error:
            raise _translated(config, error) from error
        if not output.choices:
            raise Busy("an answer without a choice", paid=True)
        usage = output.usage
        if usage is None:
            raise BadInput(f"teacher {config.model}: counts no tokens, so what it costs cannot be known; use a server that does")
        read = usage.input_tokens + (usage.input_tokens_cache_read or 0) + (usage.input_tokens_cache_write or 0)
        return Answer(output.completion, str(output.stop_reason), output.model, read, usage.output_tokens)

    return generate


def _translated(config: TeacherConfig, error: Exception) -> Exception:
    """What an error of a provider means: the key or name is wrong (BadInput), this prompt is (Unusable), or it will pass (Busy)."""
    while getattr(error, "last_attempt", None) is not None:  # tenacity's
        error = error.last_attempt.exception() or error
    status = getattr(error, "status_code", None)
    said = _first_line(getattr(error, "provider_message", None) or error)  # Inspect's own message begins with the whole request
    if status in (401, 402, 403, 404):
        return BadInput(f"teacher {config.model}: {status}, {said}; check the key, the account, the model's name and base_url")
    if status in (400, 413, 422):
        return Unusable(f"declined with {status}: {said}")
    if status:
        headers = getattr(getattr(error, "response", None), "headers", {})
        return Busy(f"status {status}", _seconds(headers.get("retry-after", "")))
    reached = type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout")
    return Busy(type(error).__name__, paid=reached)


def _seconds(retry_after: str) -> float | None:
    """How long a Retry-After header says to wait: seconds, or a date; None where it says neither."""
    try:
        wait = float(retry_after)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(0.0, wait), LONGEST_ASKED)


def _first_line(error: object) -> str:
    lines = [line.strip() for line in re.sub(r"\[/?[a-z ]+\]", "", str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
