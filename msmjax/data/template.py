"""Chat templates: where a model's is found, and what it writes.

In: directories of published models. Out: the text of a conversation, as transformers would have it of the same template.

`templates/` ships three of our own writing, which do what those do that the paper's released adapters come with: llama31 (sha256
f2b12526…), qwen25 (79320228…), qwen3 (1b6037c4…). Tools they do not write: a conversation with some is refused.
"""

import functools
import json
from pathlib import Path

from msmjax.artifact import BadInput
from msmjax.data.chat import Unproven

SHIPPED = {path.stem: path for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}


def find(weights: Path, adapter: Path | None, chosen: str) -> Path:
    """Where the chat template is read: `chosen`, the name of a shipped one or a file. Where that is "", the adapter's directory if
    it has one, since the adapter was trained with it; else the directory of the weights.

    Raises BadInput for a name that is neither.
    """
    if not chosen:
        return adapter if adapter is not None and read(adapter) else weights
    path = SHIPPED.get(chosen, Path(chosen))
    if not path.is_file():
        raise BadInput(f"template={chosen!r}: no such file, and no shipped template; those are {', '.join(SHIPPED)}")
    return path


def read(path: Path) -> dict[str, str]:
    """The chat template in a file, or those of a directory by name; {} where it has none.

    Files go before the configuration, as in transformers.
    """
    files = {"default": path if path.is_file() else path / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    if found := {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.exists()}:
        return found
    said = read_json(path / "tokenizer_config.json").get("chat_template")
    return {one["name"]: one["template"] for one in said} if isinstance(said, list) else {"default": said} if said else {}


def save(directory: Path, templates: dict[str, str]) -> None:
    """Writes chat templates into a directory as transformers does, where `read` finds them."""
    for name, source in templates.items():
        path = directory / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")


def write(source: str, messages: list[dict], where: str, whose: Path, **given) -> str:
    """What a template writes for a conversation; a key that is null counts as missing, as transformers has it.

    `given` is what it gets beside the messages; `whose` is where it is from. Raises Unproven for a conversation that it refuses, or
    of which it does not write what the system and the user say.
    """
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        text = _compile(source).render(messages=messages, documents=None, **given)
    except Exception as error:  # it is code that came with the model
        today = "; it wants today's date, and rows must not depend on it" if "strftime_now" in str(error) else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unproven(where, f"the chat template of {whose} refuses the conversation: {reason}", today) from None
    for turn, message in enumerate(messages):
        if message["role"] in ("system", "user") and message["content"].strip() not in text:
            raise Unproven(f"{where}: turn {turn}", f"the chat template drops or alters what the {message['role']} says")
    return text


def read_json(path: Path) -> dict:
    """What a JSON file says, {} where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot read ({error}); get the file again") from None


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
