from collections.abc import Iterable
from typing import Final

PASS: Final[int]
NULL: Final[int]
FIXED: Final[int]
KEEP_FIRST: Final[int]
KEEP_LAST: Final[int]
EMAIL: Final[int]
TOKEN: Final[int]
JSON_TOKEN: Final[int]
JSONB_TOKEN: Final[int]
INT_TEXT: Final[int]
INT_BINARY: Final[int]
FLOAT_TEXT: Final[int]
FLOAT_BINARY: Final[int]
NUMERIC_TEXT: Final[int]
NUMERIC_BINARY: Final[int]
UUID_TEXT: Final[int]
UUID_BINARY: Final[int]
YEAR_DATE_TEXT: Final[int]
YEAR_DATE_BINARY: Final[int]
YEAR_TIME_TEXT: Final[int]
YEAR_TIME_BINARY: Final[int]
YEAR_ZONED_TEXT: Final[int]

OK: Final[int]
NEED_MORE: Final[int]
FULL: Final[int]
BAD: Final[int]

class MaskPlan:
    def __init__(self, columns: Iterable[tuple[int, int, int, bool, bytes, bytes]]) -> None: ...
    @property
    def masked(self) -> tuple[int, ...]: ...
    def bound(self, message_bytes: int) -> int: ...
    def run(self, data: bytes, room: int | None = None) -> tuple[int, int, bytes, int]: ...

def siphash128(key: bytes, data: bytes) -> bytes: ...
def _bench(plan: MaskPlan, data: bytes, loops: int) -> float: ...
