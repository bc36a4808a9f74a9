"""CPU and memory of a process with its children, from the kernel's own books.

Never add here: how a load is made.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

_CPUCLOCK_SCHED = 2  # include/linux/posix-timers.h: the scheduler's run time, in nanoseconds


def tree(pid: int) -> list[int]:
    """The process and every descendant."""
    found, at = [pid], 0
    while at < len(found):
        for task in Path(f"/proc/{found[at]}/task").glob("*/children"):
            try:
                found += [int(word) for word in task.read_text().split()]
            except OSError:
                continue
        at += 1
    return found


def cpu(pid: int) -> float:
    """Seconds of scheduler run time of the process tree: all threads, also those that have ended (as schedstat, summed)."""
    return sum(time.clock_gettime((~one << 3) | _CPUCLOCK_SCHED) for one in tree(pid))


def anonymous(pid: int) -> int:
    """Anonymous resident bytes of the process tree."""
    total = 0
    for one in tree(pid):
        match = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{one}/status").read_text())
        total += int(match[1]) * 1024 if match else 0
    return total


def wakeups(pid: int) -> int:
    """How often the process's main thread has gone to sleep of itself: in the gateway that is the thread of Python's event loop."""
    match = re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/task/{pid}/status").read_text())
    return int(match[1]) if match else 0
