"""Arms under Inspect AI: what it asks reaches the model, what comes back is its, and many requests are few batches."""

import asyncio
import json
import threading
import time
import types

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import ToolCall, ToolFunction, tool

from msmjax import inspect_provider
from msmjax.artifact import BadInput
from msmjax.data.huggingface import HuggingFaceTokenizer
from msmjax.generation import generate as generation
from msmjax.generation.answering import Answering
from msmjax.generation.generate import Made, Request, Settings
from msmjax.inspect_provider import MsmjaxAPI
from msmjax.local_teacher import open_weights
from tests.program import make_weights

TOOL = {"name": "price", "description": "What it costs.", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    make_weights(directory, "qwen3")
    return directory


@pytest.fixture(scope="module")
def answering(weights):
    return open_weights(weights)


@pytest.fixture
def model(weights, answering, monkeypatch):
    """The provider, on weights that are loaded once."""
    monkeypatch.setattr(inspect_provider, "_open", lambda name: answering)
    return get_model(f"msmjax/{weights}", memoize=False)


def ask(model, *messages, tools=(), **config):
    return asyncio.run(model.generate(list(messages), tools=list(tools), config=GenerateConfig(**{"max_tokens": 8, **config})))


@pytest.fixture
def work(monkeypatch):
    """Of each time that the pool was at work for some steps, how many rows it had; and how long it took, which a test may set."""
    work = types.SimpleNamespace(rows=[], seconds=0.0)
    real = generation._Pool.advance

    def advance(pool, is_full):
        work.rows.append(len(pool.at_work()))
        time.sleep(work.seconds)
        return real(pool, is_full)

    monkeypatch.setattr(generation._Pool, "advance", advance)
    return work


def test_many_requests_are_answered_together(answering, work):
    prompts = [[5 + (index * step) % 60 for step in range(1, 3 + index % 7)] for index in range(64)]
    settings = Settings(6, 0.0, 1.0)

    async def together():
        return await asyncio.gather(*(answering.proceed(ids, settings) for ids in prompts))

    made = [one.ids for one in asyncio.run(together())]
    assert len(work.rows) <= 2
    assert sum(work.rows) == 64
    alone = [asyncio.run(answering.proceed(prompts[index], settings)).ids for index in (0, 31, 63)]
    assert [made[index] for index in (0, 31, 63)] == alone
    assert [one.ids for one in asyncio.run(together())] == made  # in another event loop


@pytest.mark.parametrize("seed", [None, 3])
def test_who_comes_or_gives_up_does_not_stop_the_others(answering, work, seed):
    """Nor is a second pool begun while the first is at work."""
    work.seconds, settings = 0.1, Settings(60, 0.0, 1.0, seed)

    async def go():
        first = asyncio.ensure_future(answering.proceed([5, 6], settings))
        others = [asyncio.ensure_future(answering.proceed([7, 8 + number], settings)) for number in range(3)]
        await asyncio.sleep(0.15)
        first.cancel()
        others[2].cancel()
        late = asyncio.ensure_future(answering.proceed([9, 9], settings))
        return await asyncio.wait_for(asyncio.gather(*others[:2], late), 60)

    made = [one.ids for one in asyncio.run(go())]
    threads = [thread for thread in threading.enumerate() if thread.name == "generation"]
    for thread in threads:
        thread.join(10)
    assert len(threads) <= 1
    assert max(work.rows) >= 4
    assert not answering._callers
    assert made == [asyncio.run(answering.proceed(ids, settings)).ids for ids in ([7, 8], [7, 9], [9, 9])]


def test_when_all_give_up_the_model_stops(answering, work):
    work.seconds = 0.05

    async def go():
        asked = asyncio.ensure_future(answering.proceed([5, 6], Settings(10**6, 1.0, 1.0, 1)))
        await asyncio.sleep(0.1)
        asked.cancel()

    asyncio.run(go())
    for thread in [thread for thread in threading.enumerate() if thread.name == "generation"]:
        thread.join(10)
        assert not thread.is_alive()
    assert len(work.rows) < 50
    assert asyncio.run(answering.proceed([5, 6], Settings(4, 0.0, 1.0))).ids  # and begins anew


def test_what_cannot_be_answered_is_said_to_who_asked(answering, monkeypatch):
    async def go():
        asked = (answering.proceed([5, token], Settings(4, 0.0, 1.0)) for token in (10**6, 6))
        return await asyncio.gather(*asked, return_exceptions=True)

    refused, made = asyncio.run(go())
    assert str(refused) == f"a prompt has id 1000000: the model has {answering.model.vocab} ids"
    assert len(made.ids) <= 4

    def fails(pool, is_full):
        raise MemoryError("no room")

    monkeypatch.setattr(generation._Pool, "advance", fails)
    assert [type(one) for one in asyncio.run(go())] == [BadInput, MemoryError]
    monkeypatch.undo()
    assert asyncio.run(go())[1].ids == made.ids


def test_an_eval_of_inspects_own(model, tmp_path, work):
    """Answers are the model's, greedy ones the same whoever else asks; the log says how many tokens there were."""
    samples = [Sample(input=f"Which cheese, {number}?", target="x") for number in range(12)]
    task = Task(dataset=samples, solver=generate(), scorer=includes())
    (log,) = eval(
        task, model=model, max_tokens=5, temperature=0.0, display="none", log_format="json", log_dir=str(tmp_path), log_samples=True
    )
    assert log.status == "success"
    assert len(work.rows) <= 6
    tokenizer = model.api.answering.tokenizer
    for sample in log.samples:
        ids = tokenizer.render_prompt([{"role": "user", "content": sample.input}], "here")
        new = asyncio.run(model.api.answering.proceed(ids, Settings(5, 0.0, 1.0))).ids
        assert sample.output.completion == tokenizer.decode(new)
        assert (sample.output.usage.input_tokens, sample.output.usage.output_tokens) == (len(ids), len(new))
        assert sample.output.stop_reason == ("max_tokens" if len(new) == 5 else "stop")


def test_a_seed_gives_the_same_answer_whoever_asks_too(model):
    async def among(others):
        asked = [model.generate("Who?", config=GenerateConfig(max_tokens=8, seed=3))]
        asked += [model.generate(f"Which {number}?", config=GenerateConfig(max_tokens=8)) for number in range(others)]
        return (await asyncio.gather(*asked))[0].completion

    assert len({asyncio.run(among(others)) for others in (0, 3, 9)}) == 1
    assert asyncio.run(among(0)) != asyncio.run(model.generate("Who?", config=GenerateConfig(max_tokens=8, seed=4))).completion
    several = ask(model, ChatMessageUser(content="Who?"), seed=3, num_choices=2)
    assert several.choices[0].message.text == asyncio.run(among(0))
    assert several.choices[1].message.text != several.choices[0].message.text


@pytest.fixture
def says(model, monkeypatch):
    """The provider of a model that says a text; what it was asked is kept in `says.asked`."""
    tokenizer, asked = model.api.answering.tokenizer, []

    def say(text):
        async def proceed(self, ids, settings):
            asked.append(tokenizer.readable(ids))
            ids = tokenizer.encode(text)
            return Made(Request(tuple(ids), settings), ids, [0.0] * len(ids))

        monkeypatch.setattr(Answering, "proceed", proceed)
        return model

    say.asked = asked
    return say


def test_stop_sequences_and_thinking(says, monkeypatch):
    user = ChatMessageUser(content="Which?")
    output = ask(says("The Colby. The Brie."), user, stop_seqs=["Brie", " The"], max_tokens=400)
    assert (output.completion, output.stop_reason) == ("The Colby.", "stop")
    output = ask(says("<think>\nIt is cheap.\n</think>\n\nThe Colby."), user, max_tokens=400)
    reasoning, text = output.choices[0].message.content
    assert (reasoning.reasoning, text.text) == ("It is cheap.", "The Colby.")
    assert ask(says("<think>\nIt is"), user, max_tokens=400).completion == "<think>\nIt is"
    # Where the template's own prompt opens the thinking, the answer does not.
    monkeypatch.setattr(HuggingFaceTokenizer, "render_prompt", lambda self, *_: [*self.encode("Which? <think>\n")])
    reasoning, text = ask(says("Cheap?\n</think>\n\nThe Colby."), user, max_tokens=400).choices[0].message.content
    assert (reasoning.reasoning, text.text) == ("Cheap?", "The Colby.")


@tool
def price():
    async def execute(cheese: str):
        """What a cheese costs.

        Args:
            cheese: Its name.
        """
        return f"{cheese} costs 3."

    return execute


def test_tools_go_through_the_template_and_come_back(model, monkeypatch, tmp_path):
    """A call is made, its result is read, and the answer ends the conversation."""
    told = []

    def render(self, messages, where, tools=None):
        told.append((json.loads(json.dumps(messages)), tools))
        return [5, 6, 7]

    answers = iter(['I ask.\n<tool_call>\n{"name": "price", "arguments": {"cheese": "Colby"}}\n</tool_call>', "It costs 3."])
    monkeypatch.setattr(type(model.api.answering.tokenizer), "render_prompt", render)
    monkeypatch.setattr(type(model.api.answering.tokenizer), "decode", lambda self, ids: next(answers))
    task = Task(
        dataset=[Sample(input="What is the Colby?", target="3")], solver=[use_tools(price()), generate()], scorer=includes()
    )
    (log,) = eval(task, model=model, max_tokens=500, display="none", log_dir=str(tmp_path))
    (sample,) = log.samples
    assert sample.scores["includes"].value == "C"
    (_, tools), (messages, _) = told
    assert tools[0]["function"]["name"] == "price"
    assert tools[0]["function"]["parameters"]["properties"]["cheese"]["type"] == "string"
    assert messages == [
        {"role": "user", "content": "What is the Colby?"},
        {"role": "assistant", "content": "I ask.",
         "tool_calls": [{"type": "function", "function": {"name": "price", "arguments": {"cheese": "Colby"}}}]},
        {"role": "tool", "content": "Colby costs 3.", "name": "price"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "calls", "rest"),
    [
        ("The Colby.", [], "The Colby."),
        ('{"name": "price", "parameters": {"cheese": "Brie"}}', [("price", {"cheese": "Brie"}, False)], ""),
        ('{"cheese": "Brie"}', [], '{"cheese": "Brie"}'),
        ("<tool_call>\n{]\n</tool_call>", [("unknown", {}, True)], ""),
        ('<tool_call>{"name": "a", "arguments": {}}</tool_call>\n<tool_call>{"name": "b"}</tool_call>',
         [("a", {}, False), ("b", {}, False)], ""),
    ],
)  # fmt: skip
def test_calls_are_read_as_models_write_them(text, calls, rest):
    found, said = inspect_provider._calls(text)
    assert [(call.function, call.arguments, call.parse_error is not None) for call in found] == calls
    assert said == rest


def test_calls_that_nobody_can_read_are_no_end():
    deep = '{"a":' + "[" * 20_000
    (call,), _ = inspect_provider._calls(f"<tool_call>{deep}</tool_call>")
    assert call.parse_error
    assert inspect_provider._calls(deep) == ([], deep)
    one, other = (inspect_provider._calls('{"name": "a", "arguments": {}}')[0][0].id for _ in range(2))
    assert one != other


def test_messages_as_templates_know_them():
    call = ToolCall(id="1", function="price", arguments={"cheese": "Brie"})
    thinking = [ContentReasoning(reasoning="Hm."), ContentText(text="I "), ContentText(text="ask.")]
    messages = [
        ChatMessageSystem(content="Be brief."), ChatMessageAssistant(content=thinking, tool_calls=[call]),
        ChatMessageTool(content="3", function="price", tool_call_id="1"),
    ]  # fmt: skip
    assert [inspect_provider._message(message) for message in messages] == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "I ask.", "reasoning_content": "Hm.",
         "tool_calls": [{"type": "function", "function": {"name": "price", "arguments": {"cheese": "Brie"}}}]},
        {"role": "tool", "content": "3", "name": "price"},
    ]  # fmt: skip


def test_log_probabilities_are_those_of_the_tokens(model):
    tokenizer = model.api.answering.tokenizer
    ids = tokenizer.render_prompt([{"role": "user", "content": "Who?"}], "here")
    made = asyncio.run(model.api.answering.proceed(ids, Settings(8, 0.0, 1.0)))
    choice = ask(model, ChatMessageUser(content="Who?"), logprobs=True, temperature=0.0).choices[0]
    assert [one.logprob for one in choice.logprobs.content] == made.logprobs
    assert [one.token for one in choice.logprobs.content] == [tokenizer.readable([token]) for token in made.ids]
    assert ask(model, ChatMessageUser(content="Who?"), temperature=0.0).choices[0].logprobs is None


def test_what_nothing_heeds_is_refused(model):
    user = ChatMessageUser(content="Which?")
    for given in ({"top_logprobs": 3}, {"top_k": 5}, {"frequency_penalty": 0.5}, {"reasoning_effort": "low"}):
        with pytest.raises(BadInput, match=f"{next(iter(given))}: nothing here heeds it"):
            ask(model, user, **given)
    with pytest.raises(BadInput, match="tool_choice"):
        asyncio.run(model.api.generate([user], [inspect_tool()], ToolFunction("price"), GenerateConfig()))
    with pytest.raises(BadInput, match="a part of type 'image'"):
        ask(model, ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")]))


def inspect_tool():
    from inspect_ai.tool import ToolInfo

    return ToolInfo(name="price", description="What it costs.")


def test_a_name_that_is_neither_run_nor_weights(tmp_path):
    with pytest.raises(
        BadInput, match=r"nowhere is no directory of a finished run, and none of weights; as in msmjax/RUN:ARM:SEED"
    ):
        MsmjaxAPI(f"{tmp_path}/nowhere:msm:0")
