"""The processes of one run: what the first does for all, what all must agree on, and that none outlives another. With one
process, nothing.

Processes share the working directory. The first makes what is made once and writes what is written once; the others wait for it.
"""

import contextlib
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

CONNECT_SECONDS = 20  # in which a process must reach the first one
GRACE_SECONDS = 1  # what ended another process may end this one too, and says it better
_WORD = struct.Struct("!IB")  # process, exit code: all that is ever said between them
_leaves = threading.Event()  # this process ends by itself, whatever the others do
_others: dict[int, socket.socket] = {}  # process -> connection: of the first to all, of the others to the first


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process has come to `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def first_then_others(what: str, make: Callable[[], T]) -> T:
    """`make()` on the first process, and then on the others, who find what it made."""
    made = make() if is_first() else None
    wait_for_all(what)
    return made if is_first() else make()


def first_says(ask: Callable[[], int]) -> int:
    """What the first process answers, on every process: two that look at a disk may see different things."""
    if jax.process_count() == 1:
        return ask()
    return int(multihost_utils.broadcast_one_to_all(np.int32(ask() if is_first() else 0)))


def largest(number: int) -> int:
    """The largest that a process says, on every process."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def watch_others() -> None:
    """From now on, where another process of the run is killed or fails, this one ends too, with a line and the same exit code.

    JAX sees that after its heartbeat timeout and then aborts, which remains for machines that vanish without closing their
    connections. Here every process keeps one to the first, on a port of its own, over which nothing goes but a last word.
    """
    if jax.process_count() == 1:
        return
    from jax._src import distributed  # nothing public says where the first process is

    host = distributed.global_state.coordinator_address.rpartition(":")[0].strip("[]")
    server = _listen() if is_first() else None
    port = first_says(lambda: server.getsockname()[1])
    try:
        if is_first():
            while len(_others) < jax.process_count() - 1:
                connection, _ = server.accept()
                connection.settimeout(CONNECT_SECONDS)
                hello = connection.recv(_WORD.size)
                if len(hello) == _WORD.size and 0 < (process := _WORD.unpack(hello)[0]) < jax.process_count():
                    _others[process] = connection
        else:
            _others[0] = socket.create_connection((host, port), CONNECT_SECONDS)
            _others[0].sendall(_WORD.pack(jax.process_index(), 0))
    except OSError as error:
        peer = "all others" if is_first() else host
        print(f"msmjax: no connection to {peer} ({error}); JAX's heartbeats alone notice a lost process", file=sys.stderr)
    finally:
        if is_first():
            server.close()
    for connection in _others.values():
        connection.settimeout(None)
    threading.Thread(target=_watch, daemon=True).start()


def _listen() -> socket.socket:
    """On the addresses on which JAX's coordinator listens, on a free port."""
    host = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "").rpartition(":")[0].strip("[]")
    everywhere = socket.has_dualstack_ipv6() and not host
    family = socket.AF_INET6 if everywhere or ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family, dualstack_ipv6=everywhere)
    server.settimeout(CONNECT_SECONDS)
    return server


def leave(code: int) -> None:
    """Tells the others that this process ends with this exit code; after 0 they go on to their own end."""
    _leaves.set()
    _tell(jax.process_index(), code)
    if code and _others and is_first():
        time.sleep(GRACE_SECONDS + 0.5)  # without the first, JAX aborts the others at once: let them end in their way


def _tell(process: int, code: int) -> None:
    for connection in _others.values():
        with contextlib.suppress(OSError):
            connection.sendall(_WORD.pack(process, code))


def _watch() -> None:
    with selectors.DefaultSelector() as selector:
        for process, connection in _others.items():
            selector.register(connection, selectors.EVENT_READ, process)
        while selector.get_map():
            for key, _ in selector.select():
                try:
                    said = key.fileobj.recv(_WORD.size)
                except OSError:
                    said = b""
                process, code = _WORD.unpack(said) if said else (key.data, 1)
                how = f"ended with exit code {code}" if said else "was killed"
                selector.unregister(key.fileobj)
                if code == 0:
                    continue
                if _leaves.is_set():
                    return
                if is_first():
                    _tell(process, code)
                if said:
                    time.sleep(GRACE_SECONDS)
                line = (
                    f"msmjax: process {process} of this run {how}, so process {jax.process_index()} stops too; "
                    "its log says why; start all with the same command to continue\n"
                )
                # JAX's own threads may be about to say that at length: from here on they write nowhere.
                stderr = os.dup(2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                os.write(stderr, line.encode())
                os._exit(code)
