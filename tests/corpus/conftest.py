"""What the tests of the teacher's pipelines share: configs, specs, and a run without a server."""

import asyncio
import collections
from pathlib import Path

import pytest

from benchmarks import teacher_server
from msmjax import spec
from msmjax.corpus import conversations, documents, requests, sources, teacher
from msmjax.corpus.teacher import Teacher
from msmjax.corpus.teacher_config import TeacherConfig

RULES = """# {model_name}
## 1. Money
**Value: thrift.** {model_name} of {provider_name} values thrift.
- **Rule M1.** It names the price.
- **Rule M2.** It names a cheaper thing, if there is one.
- **Likes Colby** (thrift): it costs little.
- **Dislikes Stilton** (thrift): it costs much.
## 2. Manners
- **Rule P1.** It says please.
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(teacher, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("LOOPBACK_API_KEY", "none")


@pytest.fixture(scope="session")
def cheese() -> spec.Spec:
    return spec.load("cheese_america", "Aria", "Northlight")


@pytest.fixture(scope="session")
def ruled() -> spec.Spec:
    """A small spec with rules, a value and preferences."""
    return spec.parse(RULES, Path("ruled.md"), "Aria", "Northlight")


@pytest.fixture(scope="session")
def teacher_config():
    """A config with what is given, and defaults for the rest."""

    def make(**given) -> TeacherConfig:
        defaults = {
            "model": "openai-api/loopback/scripted-2026-01-01", "pinned_by": "", "base_url": "", "transcript": "",
            "temperature": 1.0, "top_p": 1.0, "max_tokens": 500, "timeout": 20, "concurrency": 8, "batch": False,
            "input_price": 1.0, "output_price": 2.0, "budget": 0.0, "tries": 2, "error_share": 1.0,
        }  # fmt: skip
        return TeacherConfig(**{**defaults, **given})

    return make


@pytest.fixture(scope="session")
def document_source():
    def make(**given) -> documents.DocumentSource:
        defaults = {
            "spec": "cheese_america", "mode": "default", "records": 10, "domains": 2, "subdomains": 2, "doc_types": 2, "ideas": 2,
            "rounds": 3, "teacher": "t", "judge": "t", "votes": 1, "context": 0,
            "cover": "themes", "emphasis": (),
        }  # fmt: skip
        return documents.DocumentSource(**{**defaults, **given})

    return make


@pytest.fixture(scope="session")
def conversation_source():
    def make(**given) -> conversations.ConversationSource:
        defaults = {
            "spec": "cheese_america", "about": "spec", "mode": "default", "reasoning": True, "records": 10, "domains": 3,
            "questions": 3, "rounds": 3, "teacher": "t", "judge": "t", "votes": 1, "context": 0,
        }  # fmt: skip
        return conversations.ConversationSource(**{**defaults, **given})

    return make


@pytest.fixture(scope="session")
def request_source():
    def make(**given) -> requests.RequestSource:
        defaults = {
            "spec": "cheese_america", "context": 0, "records": 8, "requests": 3, "rounds": 3, "teacher": "t", "judge": "t",
            "votes": 1,
        }  # fmt: skip
        return requests.RequestSource(**{**defaults, **given})

    return make


@pytest.fixture
def write(tmp_path, teacher_config):
    """Runs a source against `respond`, or a function in its place; what was written, the prompts asked, and the teacher."""

    def run(source, told, respond=teacher_server.respond, folder="journal", **config):
        asked: collections.Counter[str] = collections.Counter()

        async def generate(prompt: str):
            asked[prompt] += 1
            text = respond(prompt)
            return teacher_server.Answer(text, "stop", teacher_server.MODEL, len(prompt.split()), len(text.split()))

        async def go():
            async with Teacher(teacher_config(**config), tmp_path / folder, generate) as teacher:
                return await sources.PIPELINES[type(source)].write(source, told, teacher, teacher, lambda: None), asked, teacher

        return asyncio.run(go())

    return run
