"""A published model's own tokenizer and chat template, and a loss mask that is proven or refused.

In: a local model directory with `tokenizer.json`, and messages. Out: ids, and which of them the assistant has to say itself.

A conversation is rendered once, by the template of the model (data/template.py), and tokenized once; both go unchanged into
training. What is supervised is proven on these ids (data/proof.py). BOS stands once, at the start, if the model has one there. No
text can pass for a control token: in documents it is tokenized as text, in chats it is refused, or text there too.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.data import proof, template
from msmjax.data.chat import Unproven
from msmjax.data.tokenizer import AnyTokenizer, is_trained

CONTROL_IN_TEXT = ("refuse", "text")  # what becomes of a conversation in which a text spells a control token
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer:
    """The tokenizer in `path`, and the chat template there or in `template_path`, a file or another directory (`template.find`).

    `arguments` are what the template is given beside the messages, by name; `control_in_text` is one of CONTROL_IN_TEXT.
    """

    path: Path
    arguments: tuple[tuple[str, object], ...] = ()
    template_path: Path | None = None
    control_in_text: str = "refuse"
    roles = ("system", "user", "assistant", "tool")

    @functools.cached_property
    def name(self) -> str:
        """Names the content of all files that decide about ids, and the arguments."""
        files = [self.path / file for file in FILES]
        made_of = {file.name: artifact.content_hash(file.read_bytes()) for file in files if file.exists()}
        how = [self.control_in_text] if self.control_in_text != "refuse" else []
        parts = [made_of, self.templates, sorted(self.stop_ids), sorted(self.arguments), *how]
        return f"huggingface-{artifact.content_hash(parts)}"

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

    @property
    def prefix(self) -> int:
        """The id that a text without a context is predicted from: BOS, or EOS where there is none."""
        return self._eos if self._bos is None else self._bos

    def encode_marked(self, text: str) -> list[int]:
        """Ids of what a chat template wrote: control tokens by their names."""
        return self._encode_whole(text)

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
        messages, tools = self._without_control(messages, tools, where)
        ids = self._proven(self._write(messages, tools, where, prompt=True), where)
        self._check_bos(ids, where)
        return ids

    def render(self, messages: list[dict], where: str, tools: list | None = None) -> tuple[list[int], list[bool]]:
        """Ids of a conversation and its loss mask, as the module says; BadInput where it cannot be proven."""
        messages, tools = self._without_control(messages, tools, where)
        text = self._write(messages, tools, where)
        ids = self._proven(text, where)
        self._check_bos(ids, where)
        if not proof.same(self.readable(ids), proof.unmarked(text)):
            raise Unproven(where, "its tokens do not decode to the text they are made from", ", so its loss mask cannot be proven")
        rendering = proof.Rendering(text, ids, self._encode, self.readable, self._control, self.stop_ids)
        mask = [False] * len(ids)
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        for turn in filter(lambda turn: is_trained(messages[turn]), turns):
            prompt = self._write(messages[:turn], tools, where, prompt=True)
            start, end = proof.prove(rendering, prompt, messages[turn], turn == turns[-1], f"{where}: turn {turn}")
            mask[start:end] = [True] * (end - start)
        return ids, mask

    def _write(self, messages: list[dict], tools: list | None, where: str, prompt: bool = False) -> str:
        """What the chat template writes, with its generation prompt or without."""
        source = self.templates.get("tool_use" if tools and "tool_use" in self.templates else "default")
        if source is None:
            raise BadInput(
                f"{self.path}: has no chat template, so it cannot write conversations; set template to a file, or to one of "
                f"{', '.join(template.SHIPPED)}"
            )
        given = {"tools": tools, "add_generation_prompt": prompt, **self._named, **dict(self.arguments)}
        return template.write(source, messages, where, self._template_from, **given)

    def spelled(self, messages: list[dict]) -> int:
        """How many turns of a conversation that `render` accepts spell a control token, which is text there."""
        if self.control_in_text != "text":
            return 0
        return sum(any(map(self._spelling.search, _texts(message))) for message in messages)

    def _without_control(self, messages: list[dict], tools: list | None, where: str) -> tuple[list[dict], list | None]:
        """The conversation, in whose texts no control token will be found: with a MARK within what spells one, where such are text.
        Raises Unproven where they are not, and for what cannot be marked."""
        places = [*((f"turn {turn}", message) for turn, message in enumerate(messages)), ("'tools'", tools)]
        if self.control_in_text == "text":
            if wrong := next((place for place, part in places if any(proof.MARK in text for text in _texts(part))), None):
                raise Unproven(f"{where}: {wrong}", "U+FDD0 in a text, which is no character", "; remove it from the text")
            places = [(place, _mapped(part, self._mark)) for place, part in places]
        for place, part in places:
            for encoding in self._marked.encode_batch_fast(list(_texts(part)), add_special_tokens=False):
                if found := self._control.keys() & encoding.ids:
                    names = " ".join(self._control[token] for token in sorted(found))
                    advice = "; remove it from the text, or set control_in_text to text"
                    raise Unproven(f"{where}: {place}", f"{names} in a text would end or open turns", advice)
        return [part for _, part in places[:-1]], places[-1][1]

    def _mark(self, text: str) -> str:
        return self._spelling.sub(lambda found: found[0][0] + proof.MARK + found[0][1:], text)

    @functools.cached_property
    def _spelling(self) -> re.Pattern:
        """What spells a control token, the longest that does."""
        return re.compile("|".join(map(re.escape, sorted(self._control.values(), key=len, reverse=True))) or "(?!)")

    def _check_bos(self, ids: list[int], where: str) -> None:
        """Raises BadInput unless BOS stands once and first where the tokenizer adds one to text, and never twice at the start."""
        count = ids.count(self._bos)
        if self._adds_bos and (count != 1 or ids[0] != self._bos):
            raise BadInput(
                f"{where}: the chat template of {self._template_from} writes {count} x {self._named['bos_token']}; "
                "it must stand once, at the start; correct the template"
            )
        if self._bos is not None and ids[:2] == [self._bos] * 2:
            raise BadInput(
                f"{where}: the chat template of {self._template_from} begins with two {self._named['bos_token']}; correct it"
            )

    def _proven(self, text: str, where: str) -> list[int]:
        """`_encode`. Raises Unproven where text between control tokens, with its MARKs, is not tokenized as it is alone."""
        if proof.MARK in text and self._encode_parts(text, str) != self._encode_whole(text):
            raise Unproven(
                where, "the tokenizer reads text between control tokens otherwise than alone, so none can be spelled in it"
            )
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        """Ids of what the template wrote: control tokens by their names, and text where there is a MARK in one."""
        return self._encode_parts(text, proof.unmarked) if proof.MARK in text else self._encode_whole(text)

    def _encode_whole(self, text: str) -> list[int]:
        return self._marked.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _encode_parts(self, text: str, change: Callable[[str], str]) -> list[int]:
        """Ids of control tokens, and between them of each text alone, changed."""
        ids, at = [], 0
        by_name = {name: token for token, name in self._control.items()}
        for found in self._spelling.finditer(text):
            ids += [*self.encode(change(text[at : found.start()])), by_name[found[0]]]
            at = found.end()
        return ids + self.encode(change(text[at:]))

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
    def templates(self) -> dict[str, str]:
        """The chat templates by name."""
        return template.read(self._template_from)

    @property
    def _template_from(self) -> Path:
        return self.template_path or self.path

    def describe_template(self) -> str:
        """Where the chat template is from, and the first digits of its sha256."""
        hashes = [f"{name} {artifact.content_hash(source.encode())}" for name, source in self.templates.items()]
        return f"chat template of {self._template_from}: " + (f"sha256 {', '.join(hashes)}" if hashes else "none")

    @functools.cached_property
    def _config(self) -> dict:
        return self._json("tokenizer_config.json")

    def _json(self, file: str) -> dict:
        """A JSON file of the directory, {} where there is none."""
        if file == "tokenizer.json" and not (self.path / file).exists():
            raise BadInput(f"{self.path}: no {file}; name a directory with the tokenizer of a published model")
        return template.read_json(self.path / file)


def open_tokenizer(
    weights: str, adapter: str, chosen: str, arguments: tuple[tuple[str, object], ...], control_in_text: str
) -> HuggingFaceTokenizer:
    """The tokenizer of published weights, with the chat template that `template.find` finds."""
    found = template.find(Path(weights), Path(adapter) if adapter else None, chosen)
    return HuggingFaceTokenizer(Path(weights), arguments, found, control_in_text)


def check_vocab(tokenizer: AnyTokenizer, vocab: int) -> None:
    """Raises BadInput where the tokenizer can produce an id that a model with so many embeddings has not."""
    if tokenizer.vocab_size > vocab:
        raise BadInput(
            f"{tokenizer.path}: the tokenizer has ids up to {tokenizer.vocab_size - 1:,}, the model {vocab:,} embeddings; "
            "the tokenizer is another model's, or vocab_size is wrong"
        )


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _mapped(value: object, change: Callable[[str], str]) -> object:
    """A JSON value with every text in it changed, keys apart."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    return [_mapped(part, change) for part in value] if isinstance(value, list) else value
