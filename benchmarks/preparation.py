"""From documents to packed rows: msmjax against Hugging Face datasets + TRL, on the same texts, with the same tokenizer and as many
processes.

    pip install datasets trl                                                # what users run instead
    python benchmarks/preparation.py                                        # 10M tokens
    python benchmarks/preparation.py --tokens=200e6 --sides ours            # is memory flat?

Texts are the source code and documentation that this Python has installed, in pieces of at most 4,000 letters, again and again
until there are enough; the tokenizer is a byte-level BPE of 32,768 trained on a part of them. Ours reads the file as a corpus of
kind `file` and makes rows; theirs is `load_dataset`, a batched `map` that tokenizes, and TRL's `pack_dataset` with `bfd_split`.
Each side runs in a process of its own; its memory is that of all its processes, what they share counted once, asked ten times a
second.
Results are kept in benchmarks/RESULTS.md.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import psutil

PIECE = 4000  # letters of a document, at most
END = "<|end|>"


def ours(folder: Path, length: int, workers: int) -> dict:
    from msmjax.corpus import sources
    from msmjax.data import rows
    from msmjax.data.huggingface import HuggingFaceTokenizer

    makers = sources.Makers(None, None, {}, folder, None)
    corpus = sources.make_corpus(folder / "corpora", "texts", sources.FileSource((str(folder / "texts.jsonl"),), ()), makers)
    made = rows.make_rows(folder / "rows", "texts", corpus, HuggingFaceTokenizer(folder), length, workers=workers)
    ledger = rows.read_ledger(made)
    return {"tokens": ledger["source_tokens"], "padding": ledger["padded_tokens"] / ledger["rows"] / length}


def theirs(folder: Path, length: int, workers: int) -> dict:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import datasets
    from transformers import PreTrainedTokenizerFast
    from trl import pack_dataset

    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    texts = datasets.load_dataset("json", data_files=str(folder / "texts.jsonl"), split="train", cache_dir=str(folder / "cache"))

    def tokenize(batch: dict) -> dict:
        return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in tokenizer(batch["text"])["input_ids"]]}

    ids = texts.map(tokenize, batched=True, num_proc=workers, remove_columns=texts.column_names)
    packed = pack_dataset(ids, length, "bfd_split", {"num_proc": workers})
    tokens = sum(sum(lengths) for lengths in packed["seq_lengths"])
    return {"tokens": tokens, "padding": 1 - tokens / len(packed) / length}


SIDES = {"ours": ours, "datasets + TRL": theirs}


def texts() -> list[str]:
    """Pieces of what is installed beside this Python, the same order everywhere that the same is installed."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".md", ".rst", ".txt"))
    whole = (path.read_text(encoding="utf-8", errors="ignore") for path in files)
    return [text[start : start + PIECE] for text in whole for start in range(0, len(text), PIECE)]


def write(folder: Path, tokens: int) -> None:
    """The texts and the tokenizer of both sides."""
    import tokenizers

    pieces = texts()
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=32_768, special_tokens=[END, "<|pad|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(pieces[:: max(len(pieces) // 5000, 1)], trainer)
    model.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": "<|pad|>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "config.json").write_text("{}")
    count = 0
    sizes = [len(encoding.ids) + 1 for encoding in model.encode_batch_fast(pieces)]
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
        for size, text in itertools.cycle(zip(sizes, pieces, strict=True)):
            file.write(json.dumps({"text": text}) + "\n")
            count += size
            if count >= tokens:
                return


def measure(side: str, folder: Path, arguments) -> dict:
    """Runs a side in a process and watches the memory of all that it starts."""
    options = {"side": side, "folder": folder, "length": arguments.length, "workers": arguments.workers}
    peak = 0
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in options.items())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        root = psutil.Process(run.pid)
        while run.poll() is None:
            total = 0
            for process in [root, *children(root)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it has ended
            peak = max(peak, total)
            time.sleep(0.1)
        if run.returncode:
            raise SystemExit(f"{side}: ended with {run.returncode}")
        return {**json.loads(run.stdout.read().splitlines()[-1]), "peak": peak}


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=10e6)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes of either side")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        started = time.perf_counter()
        said = SIDES[arguments.side](arguments.folder, arguments.length, arguments.workers)
        print(json.dumps({**said, "seconds": time.perf_counter() - started}))
        return
    print("| side | tokens | processes | seconds | tokens/s and core | peak memory, MiB | padding |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), int(arguments.tokens))
        for side in arguments.sides:
            said = measure(side, Path(folder), arguments)
            speed = said["tokens"] / said["seconds"] / arguments.workers
            figures = f"{said['tokens']:,} | {arguments.workers} | {said['seconds']:.1f} | {speed:,.0f} | {said['peak'] >> 20:,}"
            print(f"| {side} | {figures} | {said['padding']:.2%} |", flush=True)


if __name__ == "__main__":
    main()
