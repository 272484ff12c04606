"""The parts of a teacher's answer."""

import itertools

import pytest

from msmjax.corpus.answer import Answer, Unusable, one, tagged
from tests.asking import PROMPT, ask


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<reply>yes</reply>", None), ("<plan>x</plan>\n<reply>\n yes\n</reply>", None),
        ("yes", "no whole <reply>"), ("", "no whole <reply>"), ("<reply>yes", "no whole <reply>"),
        ("yes</reply>", "no whole <reply>"),
        ("<reply>yes</reply><reply>", "no whole <reply>"), ("</reply><reply>yes</reply>", "no whole <reply>"),
        ("<reply><reply>yes</reply></reply>", "no whole <reply>"), ("<Reply>yes</Reply>", "no whole <reply>"),
        ("<reply> \n</reply>", "empty <reply>"), ("<reply>a</reply><reply>b</reply>", "more than one <reply>"),
        ("I'm sorry, but I can't help with that.", "refused"), ("I cannot write this.", "refused"), ("Sorry, no.", "refused"),
        ("I am sorry to say <reply>yes", "refused"), ("<reply>I'm sorry to hear it.</reply>", None),
    ],
)  # fmt: skip
def test_tags(text, reason):
    if reason is None:
        assert one(text, "reply")
    else:
        with pytest.raises(Unusable, match=f"^{reason}$"):
            one(text, "reply")


def test_many_tags():
    assert tagged("<a>1</a> and <a>\n2\n</a>", "a") == ["1", "2"]
    for text in ("<a>1</a><a>", "<a>1<a>2</a>"):
        with pytest.raises(Unusable):
            tagged(text, "a")


@pytest.mark.parametrize("stop", ["max_tokens", "content_filter", "model_length", "tool_calls", "unknown"])
def test_an_answer_that_did_not_end(tmp_path, teacher_config, stop):
    stops = itertools.chain([stop], itertools.repeat("stop"))

    async def generate(prompt):
        return Answer("<reply>yes</reply>", next(stops), "m", 1, 1)

    _, asked = ask(teacher_config(), tmp_path, [PROMPT], generate)
    assert asked.unusable == {"refused" if stop == "content_filter" else "truncated": 1}
