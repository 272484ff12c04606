"""The command for specs: how one is read and what is wrong with it, what a corpus covers of it, how two differ, and specs derived.

    python -m msmjax.spec outline my/own.md
    python -m msmjax.spec lint specs/*.md
    python -m msmjax.spec propose my/own.md --config=configs/written.py --teacher=writer
    python -m msmjax.spec coverage cheese_america runs/corpora/america-0123456789ab
    python -m msmjax.spec diff cheese_affordability cheese_america
    python -m msmjax.spec transform broken_link cheese_america --to=cheese_america_broken.md

As main.py and experiment/ do, it sees all rooms; the others of this folder see what is left of them. Bad input is one line on
standard error and exit code 2.
"""

import argparse
import asyncio
import collections
import functools
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from msmjax import artifact, spec
from msmjax.artifact import BadInput
from msmjax.corpus import proposing, rewriting
from msmjax.corpus.teacher import Teacher
from msmjax.corpus.teacher_config import TeacherConfig
from msmjax.spec import Spec, coverage, parts, transform
from msmjax.spec.diff import diff, diff_text
from msmjax.spec.lint import lint

T = TypeVar("T")
BY_TEACHER = ("config", "teacher")
# Kind of transformation -> the flags it must be given, those it may be given, and what it makes.
KINDS = {
    "rules_only": ((), (), "the rules word for word, and nothing beside them"),
    "broken_link": ((), ("seed",), "value and preferences stay; half of the preferences change sides, and nothing explains any"),
    "value_augmented": (BY_TEACHER, ("workdir", "match"), "a text below each rule that explains it by a value"),
    "rules_augmented": (BY_TEACHER, ("workdir", "match"), "a text below each rule that spells it out and gives no reason"),
    "general": (BY_TEACHER, ("workdir",), "principles and values alone, in general terms"),
    "anti_spec": (BY_TEACHER, ("workdir",), "each value, preference and rule turned into its opposite"),
    "framing": ((*BY_TEACHER, "framing"), ("workdir",), "the same, said in another form of speech"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise BadInput(f"{message}; {self.prog} --help says what there is")


def main(argv: list[str]) -> int:
    """Runs a command and returns its exit code. Raises BadInput."""
    given = _parser().parse_args(argv)
    return given.run(given)


def _parser() -> argparse.ArgumentParser:
    raw = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(prog="python -m msmjax.spec", description=__doc__.split("\n\nAs main.py")[0], **raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = "A name in specs/ or the path of a file."

    def command(name: str, run: Callable[[argparse.Namespace], int], said: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=said, description=said, **raw)
        added.set_defaults(run=run)
        return added

    add = command("outline", _outline, "How a spec is read: its tree of sections, their words and attributes, values and rules.")
    add.add_argument("spec", metavar="SPEC", help=one)

    add = command("lint", _lint, "All that is wrong with specs, with file and line. Exit code 2 where there are errors.")
    add.add_argument("specs", nargs="+", metavar="SPEC", help=one)
    add.add_argument(
        "--name",
        action="append",
        default=[],
        help="A name of the assistant, for which {model_name} must stand. Repeat it for more.",
    )

    said = "The values, preferences and rules that a spec's prose states, proposed by a teacher into NAME.parts.md."
    add = command("propose", _propose, said)
    add.description += " Each has the words of the spec that say it. Correct the file: it is read with the spec from then on."
    add.add_argument("spec", metavar="SPEC", help="The path of a file.")
    _add_teacher(add, needed=True)

    add = command("coverage", _coverage, "The records and tokens that rest on each section, and the texts that name each part.")
    add.add_argument("spec", metavar="SPEC", help=one)
    add.add_argument("corpus", metavar="CORPUS", type=Path, help="A corpus directory, or a JSONL file of records.")
    add.add_argument(
        "--tokenizer",
        type=Path,
        help="A trained tokenizer.model or the directory of published weights. Without it, words are counted.",
    )

    add = command("diff", _diff, "What is different between two specs: sections, values, preferences, rules.")
    add.add_argument("one", metavar="SPEC", help=one)
    add.add_argument("other", metavar="SPEC", help=one)
    add.add_argument("--text", action="store_true", help="And the texts, line by line.")

    said = "A spec derived from another; its first line names the parent."
    add = command("transform", _transform, said)
    add.description += "\n\n" + "\n".join(
        f"  {kind:16} {makes}{' (by a teacher)' if must else ''}" for kind, (must, _, makes) in KINDS.items()
    )
    add.add_argument("kind", metavar="KIND", choices=KINDS, help=", ".join(KINDS))
    add.add_argument("spec", metavar="SPEC", help=one)
    add.add_argument("--to", type=Path, required=True, help="The file to write, NAME.md.")
    add.add_argument("--seed", type=_seed, help="With broken_link: which preferences change sides. Default 0.")
    add.add_argument("--match", metavar="SPEC", help="With *_augmented: as many words as that spec has, within 5 %%.")
    add.add_argument(
        "--framing",
        choices=rewriting.FRAMINGS,
        help='With framing: "{model_name} should", "{model_name} does", "AI assistants do", "one does".',
    )
    _add_teacher(add, needed=False)
    return parser


def _add_teacher(command: argparse.ArgumentParser, needed: bool) -> None:
    command.add_argument("--config", required=needed, help="Where a teacher is taken: a file of configs/, or FILE.py:VARIANT.")
    command.add_argument("--teacher", required=needed, help="The name of one of that config's teachers.")
    command.add_argument("--workdir", type=Path, help="Where a teacher's answers are kept, and found again. Default runs.")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def _outline(given: argparse.Namespace) -> int:
    loaded = spec.load_unfilled(given.spec)
    rows, above = [], ()
    for section in loaded.sections:
        chain = (*section.parents, section.whole_heading)
        for depth, heading in enumerate(chain):
            if depth < len(chain) - 1 and heading in above:
                continue
            own = depth == len(chain) - 1
            attributes = " ".join(f"{key}={value}" for key, value in heading.attributes)
            rows.append(("  " * depth + heading.text, heading.id, f"{len(section.text.split()):,}" if own else "", attributes))
        above = chain
    _print_table(loaded.title or loaded.name, ("section", "id", "words", "attributes"), rows)
    said = ((loaded.values, "values"), (loaded.preferences, "preferences"), (loaded.rules, "rules"))
    counts = ", ".join(f"{len(found)} {name}" for found, name in said)
    print(f"{loaded.name}: {len(loaded.sections)} sections, {loaded.words:,} words, {counts}; hash {loaded.hash}")
    return 0


def _lint(given: argparse.Namespace) -> int:
    counts = {"error": 0, "warning": 0}
    for path in map(spec.find, given.specs):
        if path.name.endswith(parts.SUFFIX):
            continue  # with its spec
        for finding in lint(spec.read(path), given.name):
            kind = "error" if finding.is_error else "warning"
            counts[kind] += 1
            print(f"{path}:{finding.line}: {kind}: {finding.message}")
        beside = parts.file_of(path)
        for line, message in _faults_of_parts(path, beside) if beside.is_file() else []:
            counts["error"] += 1
            print(f"{beside}:{line}: error: {message}")
    print(f"specs: {len(given.specs)}, errors: {counts['error']}, warnings: {counts['warning']}")
    return 2 if counts["error"] else 0


def _faults_of_parts(path: Path, beside: Path) -> list[tuple[int, str]]:
    """All that is wrong with a parts file; nothing where its spec cannot be read, which is said elsewhere."""
    unfilled = [f"{{{name}}}" for name in spec.PLACEHOLDERS]
    try:
        loaded = spec.parse(spec.read(path), path, *unfilled)
    except BadInput:
        return []
    stated, wrong = parts.read(spec.read(beside), *unfilled)
    return sorted([*wrong, *parts.faults(stated, loaded)])


def _coverage(given: argparse.Namespace) -> int:
    loaded = spec.load_unfilled(given.spec)
    files = sorted(given.corpus.glob("*.jsonl"), reverse=True) if given.corpus.is_dir() else [given.corpus]
    records = [record for file in files for record in _records(file)]
    if not records:
        raise BadInput(f"{given.corpus}: no records; name a corpus directory or a JSONL file of records")
    covered = coverage.cover(loaded, records, _size(given.tokenizer))
    title = f"{loaded.name} in {len(records):,} records"
    words: collections.Counter[str] = collections.Counter()
    for section in loaded.sections:
        words[section.heading] += len(section.text.split())
    of_spec = {heading: f"{count / words.total():.0%}" for heading, count in words.items()}
    sections = [
        (heading, f"{count:,}", f"{size:,}", f"{count / len(records):.0%}" if count else "none", of_spec.get(heading, ""))
        for heading, (count, size) in covered.sections.items()
    ]
    _print_table(title, ("section", "records", "tokens" if given.tokenizer else "words", "share", "of the spec"), sections)
    named = [(kind, name, f"{count:,}" if count else "none") for (kind, name), count in covered.parts.items()]
    _print_table("named in so many texts", ("part", "name", "texts"), named)
    return 0


def _records(path: Path) -> list[dict]:
    records = artifact.read_jsonl(path)
    for line, record in enumerate(records, 1):
        messages = record.get("messages")
        is_chat = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
        if not is_chat and ("messages" in record or not isinstance(record.get("text"), str)):
            raise BadInput(f"{path}:{line}: neither 'text' nor 'messages'; each line is a document or a conversation")
    return records


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    table = rich.table.Table(title=title, box=rich.box.SIMPLE)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 or column == "name" else "right")
    for row in rows:
        table.add_row(*map(rich.text.Text, row))
    if rows:
        rich.console.Console(width=None if sys.stdout.isatty() else 160).print(table)


def _size(tokenizer: Path | None) -> Callable[[str], int]:
    if tokenizer is None:
        return lambda text: len(text.split())
    from msmjax.data.huggingface import HuggingFaceTokenizer
    from msmjax.data.tokenizer import Tokenizer

    if not tokenizer.exists():
        raise BadInput(f"--tokenizer={tokenizer}: no such file or directory")
    encode = (HuggingFaceTokenizer if tokenizer.is_dir() else Tokenizer)(tokenizer).encode
    try:
        encode("")
    except (OSError, RuntimeError) as error:
        raise BadInput(f"--tokenizer={tokenizer}: cannot be read ({str(error).splitlines()[0]})") from None
    return lambda text: len(encode(text))


def _diff(given: argparse.Namespace) -> int:
    one, other = spec.load_unfilled(given.one), spec.load_unfilled(given.other)
    print(f"{one.name} ({one.words:,} words) -> {other.name} ({other.words:,} words)")
    lines = diff(one, other)
    print("\n".join(lines) if lines else "the same sections, values, preferences and rules")
    if given.text and lines:
        print("\n".join(["", *diff_text(one, other)]))
    return 0


def _propose(given: argparse.Namespace) -> int:
    path = spec.find(given.spec)
    beside = parts.file_of(path)
    if beside.exists():
        raise BadInput(f"{beside}: exists, and may have been corrected; remove it to have another proposed")
    loaded = spec.load_unfilled(given.spec)
    work = functools.partial(proposing.propose, loaded)
    stated, lost = asyncio.run(_with_teacher(given, f"proposing {beside.name}", len(loaded.sections), work))
    for address in lost:
        print(f"{address}: no usable answer; read this section yourself, or raise the teacher's tries and propose again")
    if not stated:
        raise BadInput(f"{path}: nothing to write down; no section states a value, a preference or a rule")
    artifact.write_text(beside, parts.source_of(stated))
    spec.load_unfilled(given.spec)  # it is read as it was written
    counts = collections.Counter(parts.name_of(one.part)[0] for one in stated)
    print(f"{beside}: {', '.join(f'{count} {kind}s' for kind, count in counts.items())} of {len(loaded.sections)} sections")
    return 0


def _transform(given: argparse.Namespace) -> int:
    must, may, _ = KINDS[given.kind]
    for flag in ("seed", "match", "framing", "config", "teacher", "workdir"):
        if getattr(given, flag) is None and flag in must:
            raise BadInput(f"--{flag}: missing; {given.kind} needs it")
        if getattr(given, flag) is not None and flag not in (*must, *may):
            raise BadInput(f"--{flag}: {given.kind} does not take it")
    if given.to.suffix != ".md":
        raise BadInput(f"--to={given.to}: a spec's file is called NAME.md")
    if not given.to.parent.is_dir():
        raise BadInput(f"--to={given.to}: no such directory; make it first")
    if given.to.exists():
        raise BadInput(f"--to={given.to}: exists; remove it or name another file")
    parent = spec.load_unfilled(given.spec)
    made = asyncio.run(_by_teacher(given, parent)) if must else _by_rule(given, parent)
    how = f"framing_{given.framing}" if given.framing else given.kind
    text = transform.source(made, parent, how)
    for finding in lint(text):
        if finding.is_error:
            raise BadInput(f"{given.kind} of {parent.name}:{finding.line}: {finding.message}")
    artifact.write_text(given.to, text)
    print(f"{given.to}: {made.words:,} words, from {parent.name} with {parent.words:,}")
    return 0


def _by_rule(given: argparse.Namespace, parent: Spec) -> Spec:
    return transform.rules_only(parent) if given.kind == "rules_only" else transform.break_link(parent, given.seed or 0)


async def _by_teacher(given: argparse.Namespace, parent: Spec) -> Spec:
    words = spec.load_unfilled(given.match).words if given.match else None
    write = {
        "value_augmented": lambda teacher: rewriting.value_augmented(parent, teacher, words),
        "rules_augmented": lambda teacher: rewriting.rules_augmented(parent, teacher, words),
        "general": lambda teacher: rewriting.general(parent, teacher),
        "anti_spec": lambda teacher: rewriting.anti_spec(parent, teacher),
        "framing": lambda teacher: rewriting.framing(parent, teacher, given.framing),
    }[given.kind]
    return await _with_teacher(given, f"writing {given.to}", None, lambda teacher, _: write(teacher))


async def _with_teacher(
    given: argparse.Namespace, label: str, total: int | None, work: Callable[[Teacher, Callable[[], None]], Awaitable[T]]
) -> T:
    """What comes of some work with the teacher that is named, which is given what advances its progress bar; without a total, each
    answer does."""
    from msmjax.local_teacher import open_teacher  # and JAX with it

    teachers = _teachers(given.config)
    if given.teacher not in teachers:
        raise BadInput(f"--teacher={given.teacher}: {given.config} has {', '.join(teachers) or 'no teachers'}")
    async with open_teacher(teachers[given.teacher], (given.workdir or Path("runs")) / "answers") as teacher:
        try:
            with tqdm(desc=label, total=total, unit="section" if total else "answer", leave=False, disable=None) as bar:
                if total is None:
                    teacher.changed = bar.update
                return await work(teacher, bar.update)
        finally:
            print(f"{given.teacher}: {teacher.describe()}")


def _teachers(config: str) -> dict[str, TeacherConfig]:
    """The teachers of a config's file, as main.py reads it."""
    from msmjax.config import from_config_dict

    path, _, variant = config.partition(":")
    module_spec = importlib.util.spec_from_file_location("config", path)
    if module_spec is None or not Path(path).is_file():
        raise BadInput(f"--config={config}: no such file of configs/")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        made = module.get_config(*([variant] if variant else []))
    except (AttributeError, KeyError, NameError, TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
        raise BadInput(f"--config: {(str(error) or type(error).__name__).splitlines()[-1]}") from None
    return from_config_dict(made).teachers


def cli() -> None:
    """`python -m msmjax.spec`."""
    try:
        code = main(sys.argv[1:])
    except BadInput as error:
        print(f"msmjax: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("msmjax: stopped by Ctrl-C; answers are kept: run the same command to continue", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # whoever read the output has seen enough of it
        sys.stdout = None
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    cli()
