"""What the tests of the teacher ask, and how."""

import asyncio
import json

from benchmarks import teacher as campaign
from msmjax.corpus.answer import one
from msmjax.corpus.teacher import Teacher, all_of

PROMPT = "{} Answer in this form and with nothing else:\n\n<reply>\nthe answer\n</reply>"


def reply(text: str) -> str:
    return one(text, "reply")


def ask(config, folder, prompts, generate=None, parse=reply):
    """The answers to prompts, asked together; and the teacher."""

    async def go():
        async with Teacher(config, folder, generate) as asked:
            return await all_of(asked.ask(f"unit {number}", prompt, parse) for number, prompt in enumerate(prompts)), asked

    return asyncio.run(go())


def journal(asked: Teacher) -> list[dict]:
    return [json.loads(line) for line in asked.journal.path.read_text().splitlines()]


def small(records: int) -> dict:
    return {**campaign.DOCUMENTS, "records": records, "domains": 2, "subdomains": 2, "doc_types": 2, "votes": 1}
