"""A published model's own tokenizer and chat template, and a loss mask that is proven or refused.

In: a local model directory with `tokenizer.json`, and messages. Out: ids, and which of them the assistant has to say itself.

A conversation is rendered once, by the template of the model, and tokenized once; both go unchanged into training. For each
turn of the assistant the mask is proven on these ids, not guessed from them:

1. What the template writes for the turns before it, with its generation prompt, is how the whole begins, in characters and in
   ids. So training sees the turn in the context in which inference asks for it, and no token straddles the border.
2. From there on everything up to the next control token is what the message says, its thinking and tool calls included, but for
   space around it; and that control token is one at which generation stops. This text and this token are supervised.
3. The ids decode to the rendering, the supervised ones to that text; BOS stands once, at the start, if the model has one there.

Two things about thinking are the template's right. It may open a turn that has none with an empty block, which the message does
not say and which is not supervised; if its generation prompt has that block too (`enable_thinking=False`), training and inference
agree. And it may write an earlier turn without the thinking it was said with: that turn is context and not supervised, since
nobody would have answered so. Everything else is refused with its reason: a template that drops, repeats or alters what is said,
that ignores `add_generation_prompt`, or that shows a turn otherwise once others follow it. No text can pass for a control token:
in documents it is tokenized as text, in chats it is refused.
"""

import dataclasses
import functools
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import chat
from msmjax.data.tokenizer import AnyTokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_EMPTY_BLOCK = r"<think>\s*</think>\n*"


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer:
    """The tokenizer and chat template in `path`; `arguments` are what its template is given beside the messages, by name."""

    path: Path
    arguments: tuple[tuple[str, object], ...] = ()
    roles = ("system", "user", "assistant", "tool")

    @functools.cached_property
    def name(self) -> str:
        """Names the content of all files that decide about ids, and the arguments."""
        files = [self.path / file for file in FILES] + sorted((self.path / "additional_chat_templates").glob("*.jinja"))
        made_of = {file.name: artifact.content_hash(file.read_bytes()) for file in files if file.exists()}
        return f"huggingface-{artifact.content_hash([made_of, sorted(self.stop_ids), sorted(self.arguments)])}"

    @functools.cached_property
    def vocab_size(self) -> int:
        return 1 + max(self._marked.get_vocab(with_added_tokens=True).values())

    @functools.cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids at which generation stops: the tokenizer's EOS and those of generation_config.json (else config.json)."""
        file = next((name for name in ("generation_config.json", "config.json") if (self.path / name).exists()), "")
        said = self._json(file).get("eos_token_id") if file else None
        said = said if isinstance(said, list) else [] if said is None else [said]
        for token in said:
            if token not in [added["id"] for added in self._added]:
                raise BadInput(f"{self.path / file}: eos_token_id {token!r} is no added token of tokenizer.json; correct it")
        return frozenset([*said, self._eos])

    @functools.cached_property
    def end(self) -> int:
        """The id that ends the assistant's turn, as a short conversation shows it."""
        ids, mask = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], str(self.path))
        return next(token for token, supervised in zip(reversed(ids), reversed(mask), strict=True) if supervised)

    @functools.cached_property
    def pad(self) -> int:
        """The pad token, or another control token if that one ends turns or documents too: those are supervised."""
        free = sorted(self._control.keys() - self.stop_ids - {self._bos})
        if not free:
            raise BadInput(f"{self.path}: no token to pad with that ends nothing; give the tokenizer a pad_token of its own")
        own = self._id("pad_token")
        return own if own in free else free[-1]

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: never a control token, whatever the text says."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return [encoding.ids for encoding in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def document(self, ids: list[int]) -> list[int]:
        """Ids of plain text after BOS, if the tokenizer puts one there, and before EOS."""
        return [*([self._bos] if self._adds_bos else []), *ids, self._eos]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; control tokens have none."""
        return self._marked.decode(ids, skip_special_tokens=True)

    def readable(self, ids: list[int]) -> str:
        """The text of ids as a person should see it: control tokens by name."""
        return self._marked.decode(ids, skip_special_tokens=False)

    def render_prompt(self, messages: list[dict], where: str, tools: list | None = None) -> list[int]:
        """Ids of a conversation and the template's generation prompt."""
        self._refuse_control(messages, tools, where)
        ids = self._encode(self._write(messages, tools, where, prompt=True))
        self._check_bos(ids, where)
        return ids

    def render(self, messages: list[dict], where: str, tools: list | None = None) -> tuple[list[int], list[bool]]:
        """Ids of a conversation and its loss mask, as the module says; BadInput where it cannot be proven."""
        self._refuse_control(messages, tools, where)
        text = self._write(messages, tools, where)
        ids = self._encode(text)
        self._check_bos(ids, where)
        if not _same(self.readable(ids), text):
            raise BadInput(f"{where}: its tokens do not decode to the text they are made from, so its loss mask cannot be proven")
        mask = [False] * len(ids)
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        for turn in turns:
            prompt = self._write(messages[:turn], tools, where, prompt=True)
            try:
                start, end = self._prove(text, ids, prompt, messages[turn], turn == turns[-1])
            except _Unproven as reason:
                raise BadInput(f"{where}: turn {turn}: {reason}; so its loss mask cannot be proven") from None
            mask[start:end] = [True] * (end - start)
        return ids, mask

    def _prove(self, text: str, ids: list[int], prompt: str, message: dict, is_last: bool) -> tuple[int, int]:
        """From where to where the ids are what the assistant says in this turn; nowhere for a turn that is context only."""
        is_context = not is_last and not text.startswith(prompt)
        if is_context:
            prompt = re.sub(rf"{_EMPTY_BLOCK}\Z", "", prompt)
        if not text.startswith(prompt):
            raise _Unproven(
                "in the whole conversation the chat template writes what comes before it otherwise than when it asks for it "
                "(add_generation_prompt); a conversation that ends with this turn may do"
            )
        start, rest = self._size(prompt, ids), text[len(prompt) :]
        stop = next((at for at in range(start, len(ids)) if ids[at] in self._control), None)
        if start == 0 or stop is None:
            raise _Unproven("nothing precedes it" if start == 0 else "no control token ends it")
        end = self._control[ids[stop]]
        if ids[stop] not in self.stop_ids and stop == start:
            raise _Unproven(f"when asked to (add_generation_prompt), the chat template does not open it, or without the {end}")
        if ids[stop] not in self.stop_ids:
            stops = " ".join(sorted(self._control[token] for token in self.stop_ids))
            raise _Unproven(f"it ends with {end}, but generation stops at {stops} alone (eos_token_id in generation_config.json)")
        said = rest.partition(end)[0]
        added = _compare(message, prompt, said)
        if added is None and is_last:
            raise _Unproven("the chat template drops its thinking")
        if added:
            start = self._size(prompt + said[:added], ids)
        if not _same(self.readable(ids[start : stop + 1]), said[added or 0 :] + end):
            raise _Unproven("its tokens do not decode to it")
        return (0, 0) if is_context or added is None else (start, stop + 1)

    def _size(self, beginning: str, ids: list[int]) -> int:
        """How many of the ids are those of the beginning of their text."""
        expected = self._encode(beginning)
        if ids[: len(expected)] != expected:
            raise _Unproven(f"a token straddles the border after {beginning[-20:]!r}; remove the space around what it says")
        return len(expected)

    def _write(self, messages: list[dict], tools: list | None, where: str, prompt: bool = False) -> str:
        """What the chat template writes; a key that is null counts as missing, as transformers has it."""
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        template = self._templates.get("tool_use" if tools and "tool_use" in self._templates else "default")
        if template is None:
            raise BadInput(f"{self.path}: has no chat template, so it cannot write conversations; add chat_template.jinja")
        given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        try:
            text = _compile(template).render(given | self._named | dict(self.arguments))
        except Exception as error:  # it is code that came with the model
            today = "; it wants today's date, and rows must not depend on it" if "strftime_now" in str(error) else ""
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadInput(f"{where}: the chat template of {self.path} refuses the conversation: {reason}{today}") from None
        for turn, message in enumerate(messages):
            if message["role"] in ("system", "user") and message["content"].strip() not in text:
                raise BadInput(f"{where}: turn {turn}: the chat template drops or alters what the {message['role']} says")
        return text

    def _refuse_control(self, messages: list[dict], tools: list | None, where: str) -> None:
        """Raises BadInput where a text of the conversation would be tokenized as a control token."""
        for place, part in [*((f"turn {turn}", message) for turn, message in enumerate(messages)), ("'tools'", tools)]:
            for encoding in self._marked.encode_batch_fast(list(_texts(part)), add_special_tokens=False):
                if found := self._control.keys() & encoding.ids:
                    names = " ".join(self._control[token] for token in sorted(found))
                    raise BadInput(f"{where}: {place}: {names} in a text would end or open turns; remove it from the text")

    def _check_bos(self, ids: list[int], where: str) -> None:
        """Raises BadInput unless BOS stands once and first where the tokenizer adds one to text, and never twice at the start."""
        count = ids.count(self._bos)
        if self._adds_bos and (count != 1 or ids[0] != self._bos):
            raise BadInput(
                f"{where}: the chat template of {self.path} writes {count} x {self._named['bos_token']}; "
                "it must stand once, at the start; correct the template"
            )
        if self._bos is not None and ids[:2] == [self._bos] * 2:
            raise BadInput(f"{where}: the chat template of {self.path} begins with two {self._named['bos_token']}; correct it")

    def _encode(self, text: str) -> list[int]:
        """Ids of what the template wrote: control tokens by their names."""
        return self._marked.encode_batch_fast([text], add_special_tokens=False)[0].ids

    @functools.cached_property
    def _plain(self):
        """The tokenizer that takes the names of control tokens for text."""
        return self._load(control_is_text=True)

    @functools.cached_property
    def _marked(self):
        """The tokenizer that takes the names of control tokens for those."""
        return self._load(control_is_text=False)

    def _load(self, control_is_text: bool):
        try:
            import tokenizers
        except ImportError:
            raise BadInput(f"{self.path}: its tokenizer needs the package tokenizers; pip install 'msmjax[huggingface]'") from None
        whole = self._json("tokenizer.json")
        for token in whole.get("added_tokens", []):
            token["special"] = token["id"] in self._control
        try:
            loaded = tokenizers.Tokenizer.from_str(json.dumps(whole))
        except Exception as error:  # the library raises nothing more special
            raise BadInput(f"{self.path / 'tokenizer.json'}: tokenizers {tokenizers.__version__} refuses it ({error})") from None
        loaded.no_truncation()
        loaded.no_padding()
        loaded.encode_special_tokens = control_is_text
        return loaded

    @functools.cached_property
    def _control(self) -> dict[int, str]:
        """The tokens that structure text, by id, for which no text may pass: those that are flagged, named or stopped at in the
        configuration, and those in brackets that the chat template writes around turns; but not the tags of thinking."""
        try:
            around = self._write([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], None, "", prompt=True)
        except BadInput:
            around = ""  # it has none, or one that refuses this too when it is used
        found = {token["content"] for token in self._added if re.fullmatch(r"[<\[].+[>\]]", token["content"])}
        control = {text for text in found - {"<think>", "</think>"} if text in around} | set(self._named.values())
        control |= {token["content"] for token in self._added if token.get("special") or token["id"] in self.stop_ids}
        return {token["id"]: token["content"] for token in self._added if token["content"] in control}

    @functools.cached_property
    def _added(self) -> list[dict]:
        """The tokens that are found in text before anything else is; as tokenizer.json and tokenizer_config.json agree."""
        added = {token["id"]: dict(token) for token in self._json("tokenizer.json").get("added_tokens", [])}
        for token, said in self._config.get("added_tokens_decoder", {}).items():
            if added.get(int(token), {}).get("content") != said["content"]:
                raise BadInput(
                    f"{self.path}: tokenizer_config.json adds {said['content']} as id {token}, tokenizer.json does not; "
                    "save the tokenizer again so that both agree"
                )
            added[int(token)]["special"] = bool(added[int(token)].get("special") or said.get("special"))
        return list(added.values())

    @functools.cached_property
    def _named(self) -> dict[str, str]:
        """The tokens that the configuration names, such as `bos_token`; the chat template sees them."""
        older = {} if "added_tokens_decoder" in self._config else self._json("special_tokens_map.json")
        tokens = {key: value.get("content") if isinstance(value, dict) else value for key, value in (self._config | older).items()}
        return {key: value for key, value in tokens.items() if key.endswith("_token") and value and isinstance(value, str)}

    @functools.cached_property
    def _eos(self) -> int:
        token = self._id("eos_token")
        if token is None:
            raise BadInput(f"{self.path}: names no eos_token that tokenizer.json has, so documents could not end; name one")
        return token

    @functools.cached_property
    def _bos(self) -> int | None:
        token = self._id("bos_token")
        if token is None and "bos_token" in self._named:
            raise BadInput(f"{self.path}: names the bos_token {self._named['bos_token']}, which tokenizer.json lacks; correct one")
        return token

    @functools.cached_property
    def _adds_bos(self) -> bool:
        """Whether a plain text begins with BOS."""
        if self._bos is None:
            return False
        said = self._config.get("add_bos_token")
        return said if isinstance(said, bool) else self._marked.encode("a", add_special_tokens=True).ids[0] == self._bos

    def _id(self, name: str) -> int | None:
        return next((token["id"] for token in self._added if token["content"] == self._named.get(name)), None)

    @functools.cached_property
    def _templates(self) -> dict[str, str]:
        """The chat templates by name; files go before the configuration, as in transformers."""
        files = {"default": self.path / "chat_template.jinja"}
        files |= {file.stem: file for file in sorted((self.path / "additional_chat_templates").glob("*.jinja"))}
        if found := {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.exists()}:
            return found
        said = self._config.get("chat_template")
        return {one["name"]: one["template"] for one in said} if isinstance(said, list) else {"default": said} if said else {}

    @functools.cached_property
    def _config(self) -> dict:
        return self._json("tokenizer_config.json")

    def _json(self, file: str) -> dict:
        """A JSON file of the directory, {} where there is none."""
        try:
            return json.loads((self.path / file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            if file == "tokenizer.json":
                raise BadInput(f"{self.path}: no {file}; name a directory with the tokenizer of a published model") from None
            return {}
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.path / file}: cannot read ({error}); get the file again") from None


def check_vocab(tokenizer: AnyTokenizer, vocab: int) -> None:
    """Raises BadInput where the tokenizer can produce an id that a model with so many embeddings has not."""
    if tokenizer.vocab_size > vocab:
        raise BadInput(
            f"{tokenizer.path}: the tokenizer has ids up to {tokenizer.vocab_size - 1:,}, the model {vocab:,} embeddings; "
            "the tokenizer is another model's, or vocab_size is wrong"
        )


class _Unproven(Exception):
    """Why the mask of a turn cannot be proven."""


def _compare(message: dict, prompt: str, said: str) -> int | None:
    """How many characters the template adds before what the message says: an empty thinking block, or none.

    None where the template leaves its thinking away. Raises _Unproven where it says anything else than the message.
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
        raise _Unproven("the chat template drops, repeats or alters what it says")
    if shown == meant:
        return 0
    if meant is None:  # and the block is empty
        block = re.match(rf"\s*{_EMPTY_BLOCK}", whole)
        return max(0, block.end() - (len(whole) - len(said)))
    return None


def _split(text: str, whose: str) -> tuple[str | None, str]:
    try:
        return chat.split_think(text, whose)
    except BadInput as error:
        raise _Unproven(str(error)) from None


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
        raise _Unproven(f"the arguments of its call of {name} are no JSON") from None


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


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _same(one: str, other: str) -> bool:
    """Whether texts are equal, written with combined characters or without: tokenizers may combine them."""
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


@functools.lru_cache(maxsize=8)
def _compile(source: str):
    """A chat template with what transformers offers templates, but the clock: rows are the same on every day."""
    import jinja2.ext
    from jinja2 import nodes, sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the assistant says, for masks other than ours; its content counts."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    extensions = [Generation, jinja2.ext.loopcontrols]
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = to_json  # jinja's own escapes HTML
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)
