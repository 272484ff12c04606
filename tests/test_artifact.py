"""Artifacts: all or nothing, named by what they are made from; errors of the disk are one line."""

import errno
import json
import os
import socket
import subprocess

import pytest

from msmjax import artifact
from msmjax.artifact import BadInput


def test_hash_is_of_the_content_not_of_the_order():
    assert artifact.content_hash({"a": 1, "b": [2]}) == artifact.content_hash({"b": [2], "a": 1})
    assert artifact.content_hash({"a": 1}) != artifact.content_hash({"a": 2})


def test_made_once(tmp_path):
    built = []

    def build(directory):
        built.append(directory)
        (directory / "x").write_text("y")
        return {"said": 1}

    one, other = (artifact.make(tmp_path, "name", {"a": 1}, build) for _ in range(2))
    assert one == other
    assert len(built) == 1
    assert artifact.read_manifest(one) == {"inputs": {"a": 1}, "said": 1}
    assert artifact.make(tmp_path, "name", {"a": 2}, build) != one


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(directory):
        (directory / "half").write_text("")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        artifact.make(tmp_path, "name", {}, build)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    final = artifact.path(tmp_path, "name", {})
    of_the_dead, of_the_living = (
        tmp_path / f"incomplete.{final.name}.{socket.gethostname()}.{process}" for process in (dead.pid, os.getppid())
    )
    for directory in (of_the_dead, of_the_living):
        directory.mkdir()
    artifact.make(tmp_path, "name", {}, lambda _: {})
    assert sorted(tmp_path.iterdir()) == sorted([of_the_living, final])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_full_and_read_only_disks_are_bad_input(tmp_path, monkeypatch, number):
    def fsync(_):
        raise OSError(number, "x")

    monkeypatch.setattr(os, "fsync", fsync)
    for write in (
        lambda: artifact.write_text(tmp_path / "a.txt", "x"),
        lambda: artifact.make(tmp_path, "name", {}, lambda directory: artifact.write_jsonl(directory / "b.jsonl", [{}]) or {}),
    ):
        with pytest.raises(BadInput, match=r"cannot write \(.*\); free space or choose another --workdir"):
            write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"),  # orbax, tensorstore
        RuntimeError("Failed to write: No space left on device"),  # array_record
    ],
)
def test_full_disks_of_other_writers_are_bad_input(tmp_path, error):
    def build(directory):
        raise error

    with pytest.raises(BadInput, match="cannot write"):
        artifact.make(tmp_path, "name", {}, build)
    assert not list(tmp_path.iterdir())


def test_other_errors_keep_their_traceback(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.EIO, "x")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="x"):
        artifact.write_text(tmp_path / "a.txt", "x")


def test_manifests_that_are_none(tmp_path):
    with pytest.raises(BadInput, match="no finished artifact"):
        artifact.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
        artifact.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"inputs": {"a": 1}}))
    with pytest.raises(BadInput, match="a differs"):
        artifact.read_manifest(tmp_path, {"a": 2})


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    artifact.write_jsonl(path, [{"a": "é\u2028"}, {"b": 1}])
    assert artifact.read_jsonl(path) == [{"a": "é\u2028"}, {"b": 1}]
    path.write_bytes(b"\xff\n")
    with pytest.raises(BadInput, match=r"a\.jsonl: not UTF-8"):
        artifact.read_jsonl(path)
    with pytest.raises(BadInput, match="No such file"):
        artifact.read_jsonl(tmp_path / "none.jsonl")
