"""Masking reads and writes sixteen bytes at a time: never past what it was given, and never to another result.

The last test runs all masking tests once more in a build with the address and undefined-behaviour sanitizers, for the
vector instructions of this machine and for the portable C.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit import oracle
from pgwire.hot import masking as m
from pgwire.plans import compile_plan
from pgwire.ports import Column, MaskRule

SECRET = bytes(range(32))
HOT = Path(__file__).resolve().parents[2] / "src" / "pgwire" / "hot"
LETTERS = "0123456789 -./()+abcXYZ@ñ€😀\t\x7f*'`,:_"


def text_column(blanks: bool = False) -> Column:
    return Column("c", 0, 0, 1042 if blanks else 25, -1, 0)


RULES = [
    None,
    MaskRule("fixed", "l"),
    MaskRule("fixed", "l", "x" * 100),
    MaskRule("keep_first", "l", 3),
    MaskRule("keep_last", "l", 4),
    MaskRule("keep_last", "l", 0),
    MaskRule("keep_first", "l", 40),
    MaskRule("email", "l"),
    MaskRule("pseudonym", "l"),
    MaskRule("null", "l"),
]


def check(columns: list[Column], rules: list[MaskRule | None], rows: list[list[bytes | None]], behind: bytes = b"") -> None:
    plan = compile_plan(tuple(columns), tuple(rules), SECRET)
    assert plan is not None
    wire = b"".join(oracle.row(cells) for cells in rows)
    expected = b"".join(oracle.mask_row(cells, columns, rules, SECRET) for cells in rows)
    assert plan.run(wire + behind) == (m.OK, len(wire), expected, len(rows))


def shapes(n: int, dice: random.Random) -> list[str]:
    """Texts of about ``n`` characters of the kinds that take different ways."""
    digits = "".join(dice.choice("0123456789") for _ in range(n))
    spaced = "".join(c if i % 5 else dice.choice(" -./()+") for i, c in enumerate(digits))
    lone = " " * n if n < 2 else " " * (n - 1) + "7"
    plain = "".join(dice.choice("abcdef 0123-") for _ in range(n))
    return [digits, spaced, lone, "-" * n, plain, "ñ" * (n // 2), plain[:-1] + "é", f"a{plain[: n // 2]}@b{digits[: n // 2]}.com"]


@pytest.mark.parametrize("behind", [0, 1, 15, 63, 64, 200])
def test_every_length_at_every_distance_from_the_end(behind: int) -> None:
    dice = random.Random(behind)
    for n in (*range(0, 70), 127, 128, 129, 300):
        for text in shapes(n, dice):
            for rule in RULES[1:]:
                check([text_column()], [rule], [[text.encode()]], b"C" * behind)


def test_cells_that_are_not_there_or_empty() -> None:
    for cell in (None, b""):
        for rule in RULES[1:]:
            for blanks in (False, True):
                columns = [text_column(blanks)] * 3
                check(columns, [rule, rule, rule], [[cell, cell, cell]] * 3)
                check(columns, [None, rule, None], [[cell, b"4111 1111", cell]] * 3)
                check(columns, [rule, None, rule], [[b"4111 1111  ", cell, b"a@b.de"]] * 3)


texts = st.text(alphabet=LETTERS, max_size=12) | st.text(alphabet="0123456789 -", max_size=70) | st.text(alphabet=LETTERS, max_size=150)
addresses = st.builds("{}@{}.{}".format, *[st.text(alphabet="abcxyzñ.-", max_size=30)] * 3)
values = st.none() | (texts | addresses).map(str.encode) | st.binary(max_size=20)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_rows_of_long_and_short_texts(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    columns = [text_column(data.draw(st.booleans())) for _ in range(count)]
    rules = [data.draw(st.sampled_from(RULES)) for _ in range(count)]
    rules[data.draw(st.integers(0, count - 1))] = data.draw(st.sampled_from(RULES[1:]))
    rows = data.draw(st.lists(st.lists(values, min_size=count, max_size=count), max_size=5))
    check(columns, rules, rows, data.draw(st.binary(max_size=80)).replace(b"D", b"d"))


def test_pseudonyms_made_together_are_those_made_alone() -> None:
    dice = random.Random(4)
    columns = [text_column(), text_column(), Column("short", 0, 0, 1043, 14, 0), text_column()]
    rules: list[MaskRule | None] = [MaskRule("pseudonym", "a"), None, MaskRule("pseudonym", "b"), MaskRule("pseudonym", "b")]
    for longest in (3, 8, 24, 63, 64, 90):
        for count in range(1, 10):
            cells = [[dice.randbytes(dice.randint(0, longest)) for _ in columns] for _ in range(count)]
            check(columns, rules, [list(row) for row in cells], b"E" * 64)


def test_rows_cut_at_every_byte() -> None:
    columns = [text_column() for _ in RULES]
    rows: list[list[bytes | None]] = [[b"0123 456 %d" % i * 3] * len(RULES) for i in range(2)]
    messages = [oracle.row(cells) for cells in rows]
    expected = [oracle.mask_row(cells, columns, RULES, SECRET) for cells in rows]
    plan = compile_plan(tuple(columns), tuple(RULES), SECRET)
    assert plan is not None
    wire = b"".join(messages)
    for cut in range(len(wire) + 1):
        done = (cut >= len(messages[0])) + (cut == len(wire))
        status = m.OK if cut in (0, len(messages[0]), len(wire)) else m.NEED_MORE
        assert plan.run(wire[:cut]) == (status, sum(map(len, messages[:done])), b"".join(expected[:done]), done)


@given(st.data())
def test_lengths_that_lie_reach_nothing_outside(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    rules = [data.draw(st.sampled_from(RULES[1:])) for _ in range(count)]
    plan = compile_plan(tuple(text_column() for _ in range(count)), tuple(rules), SECRET)
    assert plan is not None
    good = oracle.row([b"x" * data.draw(st.integers(0, 40)) for _ in range(count)])
    at = data.draw(st.integers(5, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    behind = data.draw(st.sampled_from([b"", good, b"Z" * 200]))
    status, used, out, rows = plan.run(bytes(bad) + behind, data.draw(st.sampled_from([None, plan.bound(len(good))])))
    assert status in (m.OK, m.NEED_MORE, m.FULL, m.BAD) and (rows == 0) == (used == 0) == (out == b"")


def sanitizer() -> str | None:
    """Where gcc's address sanitizer lies, or None."""
    if shutil.which("gcc") is None or not (HOT / "masking.c").exists():
        return None
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    return found if os.path.isabs(found) else None


AGAIN = """
import importlib.util, sys, pytest
spec = importlib.util.spec_from_file_location("pgwire.hot.masking", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["pgwire.hot.masking"] = module
import pgwire.hot
pgwire.hot.masking = module
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", "not sanitizers", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("flags", [[], ["-DPGLEASH_PORTABLE"]], ids=["vectors", "portable"])
def test_all_of_it_under_the_sanitizers(flags: list[str], tmp_path: Path) -> None:
    library = sanitizer()
    if library is None:
        pytest.skip("needs gcc with its address sanitizer, and the generated C beside the sources")
    built = tmp_path / f"masking{sysconfig.get_config_var('EXT_SUFFIX')}"
    build = ["gcc", "-shared", "-fPIC", "-O0", "-g", "-fno-strict-aliasing", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = ["-I", str(HOT), "-I", sysconfig.get_paths()["include"]]
    subprocess.run([*build, *flags, *include, str(HOT / "masking.c"), "-o", str(built)], check=True, capture_output=True)
    here = Path(__file__)
    env = os.environ | {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    tests = [str(here)] if flags else [str(here), str(here.with_name("test_masking.py"))]
    done = subprocess.run([sys.executable, "-c", AGAIN, str(built), *tests], env=env, cwd=here.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
