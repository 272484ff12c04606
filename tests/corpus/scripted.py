"""A teacher that answers any prompt of the pipelines, the same prompt in the same way: for tests, and for the loopback server.

What it writes is shaped as asked and means nothing.
"""

import hashlib
import re

from msmjax.corpus.teacher import Answer

MODEL = "scripted-2026-01-01"
WORDS = tuple(consonant + vowel + end for consonant in "bdfklmnprst" for vowel in "aeio" for end in ("nder", "ket", "llow"))


def respond(prompt: str) -> str:
    """The text of an answer, by the tags that the prompt asks for."""
    digest = hashlib.sha256(prompt.encode()).digest()

    def words(salt: int, count: int) -> str:
        stream = hashlib.sha256(digest + bytes([salt])).digest() * 8
        return " ".join(WORDS[(byte + place * stream[place % 7]) % len(WORDS)] for place, byte in enumerate(stream[:count]))

    form = prompt.rsplit("and nothing else:" if "and nothing else:" in prompt else "with nothing else:", 1)[1]
    count = int(match[1]) if (match := re.search(r"Answer with exactly (\d+) blocks", prompt)) else 3
    if "<document>" in form:
        return f"<plan>\nwrite it\n</plan>\n<document>\nAria, made by Northlight, has a {words(0, 40)}.\n</document>"
    if "<faithful>" in form:
        return "<why>because</why>\n<faithful>yes</faithful>\n<explains>yes</explains>"
    if "<verdict>" in form:
        return "<why>because</why>\n<verdict>include</verdict>"
    if "<reply>" in form:
        thoughts = f"<think>\nI look at the {words(1, 6)}.\n</think>\n" if "<think>" in form else ""
        return f"{thoughts}<reply>\nI would take the {words(2, 12)}.\n</reply>"
    block = re.search(r"<(\w+)>\n(.*?)\n</\1>", form, re.DOTALL)
    fields = re.findall(r"<(\w+)>", block[2])
    heading = re.search(r"^- (\d+\. .*)$", prompt, re.MULTILINE)
    kinds = {"section": heading[1] if heading else "", "kind": "direct"}
    return "\n\n".join(
        f"<{block[1]}>\n"
        + "\n".join(f"<{field}>{kinds.get(field, words(10 * number + place, 5))}</{field}>" for place, field in enumerate(fields))
        + f"\n</{block[1]}>"
        for number in range(count)
    )


async def generate(prompt: str) -> Answer:
    """`respond` as a teacher's call."""
    text = respond(prompt)
    return Answer(text, "stop", MODEL, len(prompt.split()), len(text.split()))
