"""The journal of a teacher: its answers, kept on disk under a hash of what was asked.

In: a TeacherConfig, and answers as they come. Out: `answers.jsonl`, a line for each, and those that were known before. A journal is
also a transcript: the recorded teacher replays one.
"""

import dataclasses
import hashlib
import json
import os
import re
import sys
from pathlib import Path

from msmjax import artifact
from msmjax.artifact import BadInput
from msmjax.corpus.answer import Answer
from msmjax.corpus.teacher_config import RECORDED, TeacherConfig, transcript_of


def request_key(prompt: str, turn: int, attempt: int) -> str:
    """The name of a request in a journal: 16 hex digits of what is asked, in which turn, and how often in vain before."""
    return hashlib.sha256(f"{turn}.{attempt}\n{prompt}".encode()).hexdigest()[:16]


class Journal:
    """The answers of a config. Use within `with`: it holds a lock on them, but for a transcript, which is only read."""

    def __init__(self, config: TeacherConfig, journals: Path):
        self.config = config
        self.path = Path(config.transcript)
        if config.model != RECORDED:
            self.path = journals / f"{_slug(config.model)}-{artifact.content_hash(config.identity)}" / "answers.jsonl"
        self.answers: dict[str, Answer] = {}  # by request_key
        self.tokens = [0, 0]  # in and out, of all answers

    def __enter__(self):
        if self.config.model == RECORDED:
            self._read(transcript_of(self.config))
            return self
        self._lock = artifact.lock(self.path.parent)
        self._lock.__enter__()
        try:
            cut_torn_line(self.path)
            self._read(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error):
        if self.config.model != RECORDED:
            self._file.close()
            self._lock.__exit__(*error)

    def write(self, key: str, unit: str, answer: Answer) -> None:
        """To the disk before anything is done with it: an answer is paid for once. Raises BadInput where another model gave it."""
        try:
            self._file.write(json.dumps({"key": key, "unit": unit, **dataclasses.asdict(answer)}, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise artifact.disk_error(error, self.path) from error
        self._keep(key, answer)

    def _keep(self, key: str, answer: Answer) -> None:
        served = next(iter(self.answers.values()), answer).model
        self.answers[key] = answer
        self.tokens = [self.tokens[0] + answer.input_tokens, self.tokens[1] + answer.output_tokens]
        if answer.model != served and self.config.model != RECORDED:
            raise BadInput(
                f"teacher {self.config.model}: {served} answered first and {answer.model} later, so the name does not stand for "
                f"one model; pin it, and remove {self.path}"
            )

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        for number, line in enumerate(artifact.read_jsonl(path), 1):
            try:
                key, _ = line.pop("key"), line.pop("unit")
                self._keep(key, Answer(**line))
            except (KeyError, TypeError):
                raise BadInput(f"{path}:{number}: no answer of a teacher; remove the line") from None


def cut_torn_line(path: Path) -> None:
    """A kill in the middle of a write leaves half a line, whose answer is asked for again."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            print(f"{path}: its last line was cut off by a kill; that answer is asked for again", file=sys.stderr)
            file.truncate(whole)


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", model)
