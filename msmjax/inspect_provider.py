"""Arms as models of Inspect AI, found by its entry point: any task on any arm.

    inspect eval TASK --model msmjax/RUN:ARM:SEED        # RUN is a directory of a finished run: runs/own-0123456789ab
    inspect eval TASK --model msmjax/DIRECTORY           # weights, such as --export --merge writes

In: messages, tools and settings of Inspect's. Out: its ModelOutput. Requests are answered together, each as it ends; one with a
seed is answered in the same way again. What is asked for and cannot be done is an error, never passed over.
"""

import dataclasses
import json
import re
import uuid
from pathlib import Path

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolCall, ToolChoice, ToolInfo

from msmjax.artifact import BadInput
from msmjax.corpus.teacher import Teacher
from msmjax.data import chat
from msmjax.generation.answering import Answering, Settings

MAX_TOKENS = 2048  # of an answer, where nobody says
CONNECTIONS = 64  # requests at a time, as many as a batch takes
# Settings that would change an answer and that nothing here heeds.
UNHEEDED = (
    "best_of", "frequency_penalty", "presence_penalty", "logit_bias", "top_k", "top_logprobs", "prompt_logprobs",
    "response_schema", "parallel_tool_calls", "modalities", "reasoning_effort", "reasoning_mode", "reasoning_tokens", "effort",
    "verbosity", "extra_body",
)  # fmt: skip


@modelapi(name="msmjax")
class MsmjaxAPI(ModelAPI):
    """A model that answers in this process."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008, Inspect's own default
        answering: Answering | None = None,
    ):
        super().__init__(model_name, base_url, api_key, [], config)
        self.answering = answering or _open(model_name)

    def max_connections(self) -> int:
        return CONNECTIONS

    def max_tokens(self) -> int:
        return MAX_TOKENS

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        if asked := [name for name in UNHEEDED if getattr(config, name, None) not in (None, ())]:
            raise BadInput(f"msmjax/{self.model_name}: {', '.join(asked)}: nothing here heeds it; leave it out")
        if tools and tool_choice not in ("auto", "none"):
            raise BadInput(f"msmjax/{self.model_name}: tool_choice={tool_choice!r}: the chat template has no say in it; use auto")
        tools = [] if tool_choice == "none" else tools
        tokenizer = self.answering.tokenizer
        told = [_described(tool) for tool in tools] or None
        ids = tokenizer.render_prompt([_message(one) for one in input], f"msmjax/{self.model_name}", told)
        settings = Settings(
            config.max_tokens or MAX_TOKENS,
            1.0 if config.temperature is None else config.temperature,
            1.0 if config.top_p is None else config.top_p,
            config.seed,
        )
        is_open = tokenizer.readable(ids).rstrip().endswith("<think>")  # by the template's generation prompt
        choices, count = [], 0
        for number in range(config.num_choices or 1):
            seed = None if config.seed is None else config.seed + number
            made = await self.answering.proceed(ids, dataclasses.replace(settings, seed=seed))
            count += len(made.ids)
            stop = "max_tokens" if len(made.ids) == settings.max_tokens else "stop"
            text = ("<think>" if is_open else "") + tokenizer.decode(made.ids)
            if ends := [text.index(end) for end in config.stop_seqs or () if end in text]:
                text, stop = text[: min(ends)], "stop"
            choices.append(_choice(text, stop, tools, self.model_name))
            if config.logprobs:
                tokens = [tokenizer.readable([token]) for token in made.ids]
                own = [Logprob(token=token, logprob=nats) for token, nats in zip(tokens, made.logprobs, strict=True)]
                choices[-1].logprobs = Logprobs(content=own)
        usage = ModelUsage(input_tokens=len(ids), output_tokens=count, total_tokens=len(ids) + count)
        return ModelOutput(model=self.model_name, choices=choices, usage=usage)


@modelapi(name="msmjax_judge")
class JudgeAPI(ModelAPI):
    """A teacher that grades: what a task's grader is asked, and its answers, are in the teacher's journal and budget.

    `failed` is what made the teacher stop, for whom Inspect would only have samples without a score.
    """

    def __init__(self, teacher: Teacher):
        super().__init__(teacher.config.model, None, None, [], GenerateConfig())
        self.teacher = teacher
        self.failed: BadInput | None = None

    def max_connections(self) -> int:
        return self.teacher.config.concurrency

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        if tools:
            raise BadInput(f"judge {self.model_name}: is asked in texts, and has no tools")
        texts = [_text(message.content) for message in input]
        prompt = texts[0] if len(texts) == 1 else "\n\n".join(f"{m.role}: {text}" for m, text in zip(input, texts, strict=True))
        try:
            found = await self.teacher.ask("a grader's question", prompt, str)
        except BadInput as error:
            self.failed = self.failed or error
            raise
        if found is None:
            raise RuntimeError(f"judge {self.model_name}: gave no answer that can be used")
        return ModelOutput.from_content(self.model_name, found[0])


def _open(name: str) -> Answering:
    """What answers for a directory of weights, or for RUN:ARM or RUN:ARM:SEED. Raises BadInput for neither."""
    from ml_collections import ConfigDict  # and JAX, where no model of ours is asked for

    from msmjax.config import from_config_dict
    from msmjax.experiment.use import open_arm
    from msmjax.local_teacher import open_weights

    run, _, arm = name.partition(":")
    path = Path(run)
    if not arm and (path / "config.json").is_file() and not (path / "run.json").is_file():
        return open_weights(path)
    if not (path / "run.json").is_file():
        raise BadInput(f"msmjax/{name}: {run} is no directory of a finished run, and none of weights; as in msmjax/RUN:ARM:SEED")
    config = from_config_dict(ConfigDict(json.loads((path / "config.json").read_text(encoding="utf-8"))))
    if not arm:
        raise BadInput(f"msmjax/{name}: which arm? One of {', '.join(config.run)}, as in msmjax/{run}:{config.run[-1]}")
    return open_arm(config, path.parent, arm, "--model")[0]


def _message(message: ChatMessage) -> dict:
    """A message as chat templates know it."""
    said = {"role": message.role, "content": _text(message.content)}
    if isinstance(message, ChatMessageAssistant):
        if not isinstance(message.content, str):
            thoughts = "\n".join(part.reasoning for part in message.content if isinstance(part, ContentReasoning))
            said |= {"reasoning_content": thoughts} if thoughts else {}
        if message.tool_calls:
            calls = [{"name": call.function, "arguments": call.arguments} for call in message.tool_calls]
            said["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    elif isinstance(message, ChatMessageTool):
        said |= {"name": message.function} if message.function else {}
        said |= {"content": f"Error: {message.error.message}"} if message.error else {}
    return said


def _text(content: str | list[Content]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if not isinstance(part, ContentText | ContentReasoning):
            raise BadInput(f"a part of type {part.type!r} in a message; a model of ours reads text alone")
    return "".join(part.text for part in content if isinstance(part, ContentText))


def _described(tool: ToolInfo) -> dict:
    """A tool as chat templates know it."""
    schema = {"name": tool.name, "description": tool.description, "parameters": tool.parameters.model_dump(exclude_none=True)}
    return {"type": "function", "function": schema}


def _choice(text: str, stop: str, tools: list[ToolInfo], model: str) -> ChatCompletionChoice:
    """The answer, its thinking and its calls of tools apart."""
    try:
        thought, said = chat.split_think(text, "an answer")
    except BadInput:
        thought, said = None, text  # as it stands: a cut off or broken block is no thinking
    said = said if thought is not None else text
    calls, said = _calls(said) if tools else ([], said)
    parts = [ContentReasoning(reasoning=thought), ContentText(text=said)] if thought else said
    message = ChatMessageAssistant(content=parts, tool_calls=calls or None, model=model, source="generate")
    return ChatCompletionChoice(message=message, stop_reason="tool_calls" if calls and stop == "stop" else stop)


def _calls(text: str) -> tuple[list[ToolCall], str]:
    """The calls in an answer, and the rest of it: blocks of <tool_call> (Qwen), or an answer that is one call (Llama)."""
    blocks = re.findall(r"<tool_call>\s*(.*?)\s*</tool_call>", text, re.DOTALL)
    if blocks:
        return [_call(block) for block in blocks], re.sub(r"\s*<tool_call>.*?</tool_call>\s*", "", text, flags=re.DOTALL)
    call = _call(text.strip()) if re.match(r"\s*\{", text) else None
    return ([call], "") if call and not call.parse_error else ([], text)


def _call(block: str) -> ToolCall:
    name = f"call_{uuid.uuid4().hex[:12]}"  # Inspect finds results by it, in the whole conversation
    try:
        found = json.loads(block)
        function, arguments = found["name"], found.get("arguments", found.get("parameters", {}))
        if not isinstance(function, str) or not isinstance(arguments, dict):
            raise ValueError("no name, or arguments that are no object")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return ToolCall(id=name, function="unknown", arguments={}, parse_error=f"no call that can be read: {error}")
    return ToolCall(id=name, function=function, arguments=arguments)
