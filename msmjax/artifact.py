"""An artifact: a directory on disk with a manifest that names what it was made from.

Owns content hashes, the one way an artifact directory comes into being (built aside, renamed into place, so that a killed
run never leaves a half-written one), JSON lines, and `BadInput`, the error that becomes one line and exit code 2.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

MANIFEST = "manifest.json"


class BadInput(Exception):
    """The user's input is wrong: one line that names the culprit and says what to do. `main` exits with code 2."""


class Diverged(Exception):
    """The loss of a step is not finite; the message names the step and its rows. `main` exits with a code of its own."""


class Preempted(KeyboardInterrupt):
    """The run was asked to stop (SIGTERM), and what it had is saved. `main` exits with a code of its own.

    It may be raised anywhere, and no library's `except Exception` should take it for an error. asyncio lets KeyboardInterrupt and
    what is one end its loop at once; any other it would keep as a task's result, or pass over, and go on paying.
    """


class Interrupted(Preempted):
    """The same, by Ctrl-C: whoever asked is there, and nobody should start the run again."""


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: object) -> str:
    """First 12 hex digits of the sha256 of `value` as canonical JSON (bytes are hashed as they are)."""
    data = value if isinstance(value, bytes) else canonical_json(value).encode()
    return hashlib.sha256(data).hexdigest()[:12]


def file_hash(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(directory: Path, pattern: str) -> str:
    """Hash of the files of a directory that match: what is made from an artifact is named by this and not by what that was made
    from, so that new code that makes the same files has nothing else made anew."""
    return content_hash([[path.name, file_hash(path)] for path in sorted(directory.glob(pattern))])


@functools.cache  # the code this process runs is the code it was started with
def code_hash(*rooms: str) -> str:
    """Hash of the source of the named modules or packages of msmjax: other code makes other artifacts."""
    here = Path(__file__).parent
    files = sorted(
        path
        for room in rooms
        for path in ([here / room] if room.endswith(".py") else (here / room).rglob("*"))
        if path.suffix in (".py", ".j2")
    )
    return content_hash([[path.relative_to(here).as_posix(), content_hash(path.read_bytes())] for path in files])


def check_writable(workdir: Path) -> None:
    """Makes the working directory where it is missing. Raises BadInput where nothing can be written there."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe.{os.getpid()}"
        probe.write_bytes(bytes(4096))  # an empty file fits on a full disk
        probe.unlink()
    except OSError as error:
        raise BadInput(f"{workdir}: cannot write ({error.strerror}); choose another --workdir") from error


def path(parent: Path, name: str, inputs: dict) -> Path:
    """Where the artifact of `inputs` is, or will be."""
    return parent / f"{name}-{content_hash(inputs)}"


def make(parent: Path, name: str, inputs: dict, build: Callable[[Path], dict]) -> Path:
    """The artifact `parent/name-<hash of inputs>`, built now unless it is there.

    `build(directory)` fills an empty directory and returns what the manifest says beside the inputs. Raises BadInput where
    the directory exists but its manifest names other inputs (edited, or copied there from another run).
    """
    final = path(parent, name, inputs)
    if final.exists():
        read_manifest(final, inputs)
        return final
    prefix = f"incomplete.{final.name}.{socket.gethostname()}."
    for left in parent.glob(f"{prefix}*"):
        if not _is_alive(int(left.suffix[1:])):  # it was killed
            shutil.rmtree(left, ignore_errors=True)
    aside = parent / f"{prefix}{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        said = build(aside)
        write_manifest(aside, inputs, said)
        try:
            aside.rename(final)
        except OSError:
            if not final.exists():
                raise
            read_manifest(final, inputs)  # another run made it in the meantime
    except (OSError, RuntimeError, ValueError) as error:
        raise disk_error(error, final) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


@contextlib.contextmanager
def lock(directory: Path, waits: bool = False):
    """Within, no other process may write to `directory`: a second one gets BadInput, or says so and `waits`. The kernel frees the
    lock of a killed one."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise disk_error(error, directory) from error
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waits:
                    raise
                file.seek(0)
                print(f"{directory}: waits for another run ({file.read().strip()}), which writes there", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        except BlockingIOError:
            file.seek(0)
            raise BadInput(
                f"{directory}: another run ({file.read().strip()}) writes there; wait for it, stop it, or choose another --workdir"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                raise BadInput(f"{directory}: its file system has no locks ({error.strerror}); choose another --workdir") from None
            raise disk_error(error, directory) from error
        yield


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EFBIG)


def disk_error(error: Exception, path: Path) -> Exception:
    """BadInput where the disk is the culprit (full, read-only, no permission); else the error itself.

    Orbax (tensorstore) raises ValueError and array_record RuntimeError, both with the system's words for the error.
    """
    number = error.errno if isinstance(error, OSError) else next((n for n in _DISK if os.strerror(n) in str(error)), None)
    if number in _DISK:
        return BadInput(f"{path}: cannot write ({os.strerror(number)}); free space or choose another --workdir")
    return error


def write_manifest(directory: Path, inputs: dict, said: dict) -> None:
    """Writes `manifest.json`: the inputs the directory is named by, and what its maker says of it."""
    write_json(directory / MANIFEST, {"inputs": inputs, **said})


def read_manifest(directory: Path, inputs: dict | None = None) -> dict:
    """The manifest of an artifact; BadInput where it is missing, unreadable, or made from other `inputs` than given."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{directory}: no {MANIFEST}, so it is no finished artifact; remove the directory and run again") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{directory / MANIFEST}: not JSON ({error}); remove the directory and run again") from None
    if inputs is not None and manifest.get("inputs") != json.loads(canonical_json(inputs)):
        theirs = manifest.get("inputs") or {}
        other = next((key for key, value in inputs.items() if theirs.get(key) != json.loads(canonical_json(value))), "inputs")
        raise BadInput(
            f"{directory}: made from other code or data ({other} differs from what this run would use); "
            "remove the directory or choose another --workdir"
        )
    return manifest


def write_json(path: Path, value: object) -> None:
    """Writes readable JSON through a temporary file, so that a reader never sees half of it."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text through a temporary file and a rename; it is on the disk when it has its name."""
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def write_jsonl(path: Path, records: Iterable[dict]) -> None:
    """Writes one JSON object a line."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_jsonl(path: Path) -> list[dict]:
    """Reads one JSON object a line; BadInput names the file and the line that is not one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot read ({error.strerror}); check the path in the config") from None
    return parse_jsonl(decode(data, path), path)


def decode(data: bytes, path: Path, at: int = 0) -> str:
    """The text of a file, or of what stands `at` a byte of it, without a byte order mark. Raises BadInput where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 ({error.reason} at byte {at + error.start}); save it as UTF-8") from None


def parse_jsonl(text: str, path: Path, first: int = 1) -> list[dict]:
    """The objects of a text, one a line; BadInput names the file that it is of, and the line that is none, counted from `first`."""
    lines = text.split("\n")  # splitlines() would also split at U+2028, inside a string
    records = []
    for number, line in enumerate(lines[:-1] if not lines[-1].strip() else lines, first):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}:{number}: not JSON ({error.msg} at column {error.colno}); fix or remove the line") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
            raise BadInput(f"{path}:{number}: not JSON that can be read ({error}); fix or remove the line") from None
        if not isinstance(record, dict):
            raise BadInput(f"{path}:{number}: a {type(record).__name__}, not an object; each line is one record")
        if "\\ud" in line.lower():
            check_text(record, f"{path}:{number}")
        records.append(record)
    return records


def check_text(record: object, where: str) -> None:
    """Raises BadInput where a value of JSON has half a surrogate pair, which JSON can say and no file can hold."""
    try:
        canonical_json(record).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{where}: half a surrogate pair is no text; fix or remove it") from None
