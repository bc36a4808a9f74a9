"""The kernels of the data path on one core: masking and framing of hot rows, in GB of input per second of CPU.

Prints a table: the median of fifteen runs over 64 KiB of rows of seven text columns with random values, and the range.
They are the very functions that a session's rows go through. Never add here: values made to suit a kernel.
"""

from __future__ import annotations

import random
import statistics
import string
import struct
from collections.abc import Callable

from pgwire.hot import framing, masking
from pgwire.plans import compile_plan
from pgwire.ports import Column, MaskRule

WORKING_SET = 65536
RUNS = 15
LOOPS = 500
KEY = bytes(range(32))
COLUMNS = tuple(Column(name, 0, 0, 25, -1, 0) for name in ("id", "name", "email", "ssn", "card", "address", "note"))
FIXED, LAST4 = MaskRule("fixed", "l", "***"), MaskRule("keep_last", "l", 4)
PSEUDONYM, EMAIL = MaskRule("pseudonym", "l"), MaskRule("email", "l")
PLANS: dict[str, tuple[MaskRule | None, ...]] = {
    "mask 1 of 7: keep last 4": (None, None, None, None, LAST4, None, None),
    "mask 3 of 7: fixed, fixed, keep last 4": (None, None, FIXED, FIXED, LAST4, None, None),
    "mask 3 of 7: pseudonym, fixed, keep last 4": (None, None, PSEUDONYM, FIXED, LAST4, None, None),
    "mask 3 of 7: email, fixed, keep last 4": (None, None, EMAIL, FIXED, LAST4, None, None),
    "mask 3 of 7: three pseudonyms": (None, PSEUDONYM, PSEUDONYM, None, PSEUDONYM, None, None),
}


def rows(seed: int = 1) -> bytes:
    """DataRow messages of about 190 bytes, in all at most the working set."""
    dice = random.Random(seed)

    def word(least: int, most: int) -> str:
        return "".join(dice.choices(string.ascii_lowercase, k=dice.randint(least, most)))

    made = bytearray()
    while True:
        cells = [
            str(dice.randint(1, 10**7)),
            f"{word(4, 9)} {word(5, 12)}",
            f"{word(5, 10)}@{word(5, 9)}.com",
            f"{dice.randint(100, 999)}-{dice.randint(10, 99)}-{dice.randint(1000, 9999)}",
            "".join(dice.choices(string.digits, k=16)),
            f"{word(5, 9)} {word(4, 10)} street {dice.randint(1, 200)}",
            " ".join(word(3, 9) for _ in range(dice.randint(6, 11))),
        ]
        body = struct.pack(">H", len(cells)) + b"".join(struct.pack(">i", len(c)) + c.encode() for c in cells)
        if len(made) + len(body) + 5 > WORKING_SET:
            return bytes(made)
        made += b"D" + struct.pack(">I", len(body) + 4) + body


def measure(name: str, size: int, seconds: Callable[[], float]) -> None:
    """One line of the table."""
    speeds = sorted(size * LOOPS / seconds() / 1e9 for _ in range(RUNS))
    print(f"{name:45} {statistics.median(speeds):6.2f} [{speeds[0]:.2f}..{speeds[-1]:.2f}] GB/s", flush=True)


def main() -> None:
    """The table."""
    data = rows()
    for name, rules in PLANS.items():
        plan = compile_plan(COLUMNS, rules, KEY)
        assert plan is not None
        measure(name, len(data), lambda plan=plan: masking._bench(plan, data, LOOPS))  # type: ignore[misc]
    measure("framing", len(data), lambda: framing._bench(data, LOOPS))


if __name__ == "__main__":
    main()
