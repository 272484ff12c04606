"""Preemption: SIGTERM means that the machine is about to be taken away, so save and stop.

In: the signal. Out: `requested()`, which the loop asks, and otherwise Preempted, raised where the program is.
"""

import contextlib
import signal

from msmjax.artifact import Preempted

_state = {"requested": False, "saves": False}


def watch() -> None:
    """From now on SIGTERM is heeded. Where nothing has to be saved first (`saving`), it raises Preempted at once."""
    signal.signal(signal.SIGTERM, _heed)


@contextlib.contextmanager
def saving():
    """Within, SIGTERM waits for the loop to ask; what it did not ask for in time is raised at the end."""
    _state["saves"] = True
    try:
        yield
    finally:
        _state["saves"] = False
    if _state["requested"]:
        raise Preempted("stopped by SIGTERM; run the same command to continue")


def requested() -> bool:
    """Whether this process was asked to stop."""
    return _state["requested"]


def _heed(number, frame) -> None:
    _state["requested"] = True
    if not _state["saves"]:
        raise Preempted("stopped by SIGTERM; run the same command to continue")
