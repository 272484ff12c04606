"""What data an experiment needs and makes: corpora and what their gates find, tokenizer, rows, evaluation items, published weights.

In: an `ExperimentConfig`, and which of its stages are to read. Out: `Data`, artifacts of the working directory, made where they
are missing; and from it the mixture that a stage reads.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.config import ExperimentConfig, check_shown, measures
from msmjax.corpus import gates, requests, sources
from msmjax.data import chat, examples, rows, show
from msmjax.data import tokenizer as tokenizers
from msmjax.data.examples import Part
from msmjax.data.huggingface import HuggingFaceTokenizer, check_vocab, open_tokenizer
from msmjax.data.mixture import Mixture, batch, stage_seed
from msmjax.data.tokenizer import AnyTokenizer, Tokenizer
from msmjax.evals.prompt import Prompt, prompt_of
from msmjax.local_teacher import open_teacher
from msmjax.model import attention
from msmjax.ranges import suggestion
from msmjax.report import corpus as corpus_report
from msmjax.training import weights


@dataclasses.dataclass(frozen=True)
class Data:
    """The tokenizer, the corpora that an experiment uses and their rows, the items of its evals (None where an eval has none) and
    how they are asked, ids and loss mask of a fine-tuning chat, and the artifact that says what is in the experiment's weights,
    where it has some."""

    tokenizer: Tokenizer | HuggingFaceTokenizer
    corpora: dict[str, Path]
    rows: dict[str, Path]
    items: dict[str, Path | None]
    prompt: Prompt | None  # None where the data is for training alone
    chat: tuple[list[int], list[bool]] | None
    weights: Path | None


def show_batch(config: ExperimentConfig, workdir: Path, stage_name: str) -> None:
    """Prints the first batch of a stage as a person should see it."""
    if stage_name not in config.stages:
        raise BadInput(f"--show_batch={stage_name}: no such stage; one of {', '.join(config.stages)}")
    artifact.check_writable(workdir)
    data = make_data(config, workdir, {stage_name}, asks=False)
    mixture = mixture_of(config, data, stage_name, config.seeds[0])
    show.print_batch(batch(mixture, 0, config.stages[stage_name].batch_rows), data.tokenizer)


def make_data(config: ExperimentConfig, workdir: Path, stages: set[str], asks: bool = True) -> Data:
    """The tokenizer, the rows of every corpus that these stages or an eval use, and the evaluation items; the chats that items are
    asked like, and items that are a corpus, are made where it `asks`: a teacher may have to write them."""
    used = {corpus for name in stages for corpus, _ in config.stages[name].data}
    used |= {corpus for one in config.evals.values() for corpus in one.reads()}
    used |= {*([config.prompt.like] if asks else []), *([] if config.weights else [config.tokenizer_corpus])}
    items = make_items(config, workdir, asks)
    names = [name for name in config.corpora if name in used]
    bar = functools.partial(tqdm, unit="corpus", leave=False, disable=None)
    corpora = {name: _make_corpus(config, workdir, name) for name in bar(names, desc="corpora")}
    of_items = [corpus for one in config.evals.values() for corpus in one.items_from(config.corpora)] if asks else []
    for name in dict.fromkeys((*names, *of_items)):
        if isinstance(config.corpora[name], sources.WrittenSource):
            page, findings = _check(config, workdir, name, _make_corpus(config, workdir, name), items)
            if failed := _failed(config, findings):
                corpus_report.print_table(name, findings, config.gates.allow)
                raise BadInput(
                    f"corpus {name}: does not pass {', '.join(failed)}, so it is not used; see {page}; mend it, or the "
                    "bounds in gates, or name in gates.allow what may fail"
                )
    if config.weights:
        tokenizer = open_tokenizer(
            config.weights, config.adapter, config.template, config.template_arguments, config.control_in_text
        )
        check_vocab(tokenizer, config.vocab_size)
    else:
        tokenizer = _make_tokenizer(config, workdir, corpora[config.tokenizer_corpus])
    # Of the config alone: rows must be the same on every machine.
    most = attention.bound_of_rows(config.model.attention, config.row_length, config.model.compute_dtype)
    made = {
        name: rows.make_rows(
            workdir / "rows", name, corpora[name], tokenizer, config.row_length, config.too_long, config.unproven, most
        )
        for name in bar(names, desc="rows")
    }
    prompt, *like = _prompt(config, corpora[config.prompt.like], tokenizer) if asks else (None,)
    return Data(
        tokenizer=tokenizer,
        corpora=corpora,
        rows=made,
        items=items,
        prompt=prompt,
        chat=tuple(like) or None,
        weights=_weights(source_of(config), workdir) if config.weights else None,
    )


def check_corpus(config: ExperimentConfig, workdir: Path, name: str) -> None:
    """Makes a corpus, prints what the gates find in it, and writes its page. Raises BadInput where a gate fails that must not."""
    if name not in config.corpora:
        raise BadInput(f"--check={name}: no such corpus{suggestion(name, list(config.corpora))}")
    if config.gates is None:
        raise BadInput("--check: the config has no gates; give it some, as configs/written.py does")
    artifact.check_writable(workdir)
    corpus = _make_corpus(config, workdir, name)
    page, findings = _check(config, workdir, name, corpus, make_items(config, workdir))
    corpus_report.print_table(name, findings, config.gates.allow)
    print(f"report: {page}")
    if failed := _failed(config, findings):
        raise BadInput(f"corpus {name}: does not pass {', '.join(failed)}")


def _failed(config: ExperimentConfig, findings: list[gates.Finding]) -> list[str]:
    """The gates that stop training."""
    return [finding.gate for finding in findings if not finding.passed and finding.gate not in config.gates.allow]


def makers_of(config: ExperimentConfig, workdir: Path) -> sources.Makers:
    """What corpora and the items of evals are made with, and judges opened."""
    return sources.Makers(
        config.world, config.assistant, config.teachers, workdir / "answers", open_teacher, config.text_and_messages
    )


def _make_corpus(config: ExperimentConfig, workdir: Path, name: str) -> Path:
    return sources.make_corpus(workdir / "corpora", name, config.corpora[name], makers_of(config, workdir))


def _check(
    config: ExperimentConfig, workdir: Path, name: str, corpus: Path, items: dict[str, Path | None]
) -> tuple[Path, list[gates.Finding]]:
    """The page about a corpus and what its gates found; measured once for each (corpus, reference, items, bounds, code)."""
    reference = _make_corpus(config, workdir, config.gates.reference) if config.gates.reference else None
    inputs = {
        "corpus": corpus.name,
        "items": [made.name for made in items.values() if made],
        "reference": reference.name if reference else None,
        "gates": dataclasses.asdict(config.gates),
        "code": artifact.code_hash("corpus", "report"),
    }

    def build(directory: Path) -> dict:
        source, said = config.corpora[name], artifact.read_manifest(corpus)
        has_spec = isinstance(source, sources.SpecSource | sources.WrittenSource)
        records, asked = sources.read_corpus(corpus), [item for one in read_items(items).values() for item in one or []]
        if isinstance(source, requests.RequestSource):
            records, asked = [requests.as_conversation(record) for record in records], []  # they are items themselves
        subject = gates.Subject(
            records=records,
            lost=said.get("lost", {}),
            asked_for=said.get("asked_for", 0),
            spec=sources.load_spec(source, config.assistant) if has_spec else None,
            rules=isinstance(source, sources.DocumentSource) and source.mode == "rules",
            model_name=config.assistant.name,
            provider_name=config.assistant.provider,
            items=asked,
            reference=[gates.text_of(record) for record in sources.read_corpus(reference)] if reference else [],
        )
        findings = gates.check(subject, config.gates)
        artifact.write_jsonl(directory / "findings.jsonl", map(dataclasses.asdict, findings))
        corpus_report.write(name, subject.records, findings, config.gates.allow, said, directory / "report.html")
        return {}

    made = artifact.make(workdir / "checks", name, inputs, build)
    return made / "report.html", [gates.Finding(**line) for line in artifact.read_jsonl(made / "findings.jsonl")]


def make_items(config: ExperimentConfig, workdir: Path, asks: bool = True) -> dict[str, Path | None]:
    """The items of each eval; None where they are a corpus and nobody `asks`. Raises BadInput where the headline or a comparison
    names an eval that none of them is of."""
    made = {
        name: one.items(workdir / "corpora", name, config.corpora, makers_of(config, workdir))
        if asks or not one.items_from(config.corpora)
        else None
        for name, one in config.evals.items()
    }
    check_shown(config, measures(config, read_items(made)))
    return made


def read_items(items: dict[str, Path | None]) -> dict[str, list[dict] | None]:
    """The items of each eval, None where it has none."""
    return {name: artifact.read_jsonl(made / "items.jsonl") if made else None for name, made in items.items()}


def _prompt(config: ExperimentConfig, corpus: Path, tokenizer: AnyTokenizer) -> tuple[Prompt, list[int], list[bool]]:
    """How items are asked, and ids and loss mask of a chat."""
    asked, path = config.prompt, corpus / "conversations.jsonl"
    if not path.exists():
        raise BadInput(f"prompt.like={asked.like!r}: has no conversations; name the corpus of fine-tuning chats")

    def chats() -> Iterator[dict]:
        whole = Part(path, 0, path.stat().st_size, 1)
        for record, _ in itertools.chain.from_iterable(examples.read_records(whole, tokenizer.roles)):
            yield {**record, "messages": chat.open_thinking(record["messages"])[0]}  # as in rows

    like, ids, mask = prompt_of(chats, config.assistant.name, tokenizer)
    own = {name: getattr(asked, name) for name in ("system", "opening") if getattr(asked, name) != "{chats}"}
    return dataclasses.replace(like, **own), ids, mask


def source_of(config: ExperimentConfig) -> weights.Source | None:
    """Where the stage `import` reads, if there is one."""
    return weights.Source(Path(config.weights), Path(config.adapter) if config.adapter else None) if config.weights else None


def _weights(source: weights.Source, workdir: Path) -> Path:
    """The artifact that says what published weights are. Their files are hashed once, and again when they were touched."""
    directories = [source.weights, *([source.adapter] if source.adapter else [])]
    files = sorted(path for directory in directories for kind in ("*.json", "*.safetensors") for path in directory.glob(kind))
    stats = {str(path.resolve()): [(stat := path.stat()).st_size, stat.st_mtime_ns] for path in files}

    def build(_: Path) -> dict:
        bar = tqdm(files, desc=f"hashing {source.weights}", unit="file", leave=False, disable=None)
        return {"content": artifact.content_hash([[path.name, artifact.file_hash(path)] for path in bar])}

    return artifact.make(workdir / "weights", source.weights.name, {"files": stats}, build)


def _make_tokenizer(config: ExperimentConfig, workdir: Path, corpus: Path) -> Tokenizer:
    def texts():
        parts = itertools.chain.from_iterable(examples.cut(sorted(corpus.glob("*.jsonl"))))
        for record, _ in itertools.chain.from_iterable(itertools.chain.from_iterable(map(examples.read_records, parts))):
            if "text" in record:
                yield record["text"]
            else:
                yield from (message["content"] for message in record["messages"])

    def build(directory: Path) -> dict:
        tokenizers.train(texts(), config.vocab_size, directory / "tokenizer.model")
        return {}

    inputs = {
        "corpus": artifact.files_hash(corpus, "*.jsonl"),
        "vocab_size": config.vocab_size,
        "code": artifact.code_hash("data/tokenizer.py"),
    }
    return Tokenizer(artifact.make(workdir / "tokenizers", config.tokenizer_corpus, inputs, build) / "tokenizer.model")


def mixture_of(config: ExperimentConfig, data: Data, stage_name: str, seed: int) -> Mixture:
    """What a stage reads, and in which order."""
    stage = config.stages[stage_name]
    names, shares = zip(*stage.data, strict=True)
    shares = tuple(share / sum(shares) for share in shares)  # as written, they may sum to one but for the sixth digit
    segments = max(rows.read_ledger(data.rows[name])["segments"] for name in names)
    return Mixture(tuple(rows.open_rows(data.rows[name]) for name in names), shares, stage_seed(seed, stage.shuffle), segments)
