"""The processes of one run: what the first does for all, and what all must agree on. With one process, nothing.

Processes share the working directory. The first makes what is made once and writes what is written once; the others wait for it.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


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


def any_says(answer: bool) -> bool:
    """Whether any process says so, on every process."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.process_allgather(np.asarray(answer)).any())
