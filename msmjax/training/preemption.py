"""Preemption: SIGTERM means that the machine is about to be taken away, so save and stop; Ctrl-C, that somebody wants it so.

In: the signals. Out: `requested()`, which the loop asks, and otherwise Preempted or Interrupted, raised where the program is.
"""

import contextlib
import os
import signal
import threading

from msmjax.artifact import Interrupted, Preempted

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
_state = {"requested": 0, "saves": False}


def watch() -> None:
    """From now on SIGTERM and Ctrl-C are heeded. Where nothing has to be saved first (`saving`), they raise at once.

    A process that was started to ignore Ctrl-C, as those that a script starts behind it are, goes on to do so. The interpreter
    heeds a signal when the main thread comes back from what it computes or compiles; the second Ctrl-C is for a thread that need
    not wait.
    """
    seen, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(seen,), daemon=True).start()
    signal.signal(signal.SIGTERM, _heed)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _heed)


@contextlib.contextmanager
def saving():
    """Within, a signal waits for the loop to ask; what it did not ask for in time is raised at the end."""
    _state["saves"] = True
    try:
        yield
    finally:
        _state["saves"] = False
    if _state["requested"]:
        raise stopped(_state["requested"])


def requested() -> int:
    """The signal by which this process was asked to stop; 0 where it was not."""
    return _state["requested"]


def stopped(number: int, label: str = "", saved: str = "") -> Preempted:
    """What to raise once all is saved."""
    kind = Interrupted if number == signal.SIGINT else Preempted
    return kind(f"{label}stopped by {_NAMES[number]}{saved}; run the same command to continue")


def _heed(number, frame) -> None:
    _state["requested"] = number
    if not _state["saves"]:
        raise stopped(number)
    if number == signal.SIGINT:
        os.write(2, b"\nmsmjax: Ctrl-C: saves and stops as soon as it can; once more stops at once\n")


def _end_at_the_second(seen: int) -> None:
    """Reads the numbers of the signals that come, a byte each."""
    interrupts = 0
    while interrupts < 2:
        interrupts += os.read(seen, 64).count(signal.SIGINT)
    os._exit(128 + signal.SIGINT)
