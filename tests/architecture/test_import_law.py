"""The import law, read from the sources themselves: .py by their syntax tree, .pyx and .pxd by their import lines."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"

# Lower may not import higher; equal ranks that are different rooms meet only in session.py and main.py.
PGWIRE_RANKS = {
    "listener": 60,
    "session": 50,
    "cancel": 45,
    "deadlines": 45,
    "serving": 45,
    "greeting": 45,
    "names": 40,
    "patience": 20,
    "errand": 40,
    "warm": 46,
    "server_login": 44,
    "keeping": 40,
    "holding": 43,
    "legs": 42,
    "parameters": 40,
    "proxy_protocol": 40,
    "plans": 40,
    "client_startup": 40,
    "server_startup": 40,
    "diagnostics": 40,
    "errors": 22,
    "scram": 30,
    "messages": 25,
    "ports": 20,
    "hot": 10,
}
CONTROL_RANKS = {
    "main": 60,
    "rpc": 50,
    "identity": 40,
    "policy": 40,
    "grants": 40,
    "credentials": 40,
    "audit": 40,
    "store": 30,
    "config": 20,
    "starter": 20,
}
SANS_IO = (
    "messages",
    "errors",
    "scram",
    "client_startup",
    "server_startup",
    "parameters",
    "proxy_protocol",
    "plans",
    "diagnostics",
    "errand",
    "ports",
)
IO_MODULES = {"asyncio", "socket", "ssl", "time", "selectors", "threading", "uvloop"}
# One door per vendor: the rooms that may import it.
DOORS = {
    "pglast": ("control.policy",),
    "jwt": ("control.identity", "pgleash.demo"),
    "hvac": ("control.credentials",),
    "grpc": ("control.rpc", "pgleash"),
}
# The face talks to control over gRPC alone; these commands work offline and may reach the rooms named.
FACE_EXCEPTIONS = ("control.main", "control.starter", "control.audit.verify", "control.policy.offline", "pgwire.scram", "pgwire.ports")
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "manager", "util", "helper", "managers"}
CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+(.+)|c?import\s+(.+))$")


@dataclass(frozen=True)
class Import:
    """One import: who imports what, where, and whether inside a function."""

    source: str
    target: str
    where: str
    nested: bool


def _module(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _sources() -> list[Path]:
    return sorted(
        path for path in SRC.rglob("*") if path.suffix in {".py", ".pyx", ".pxd"} and "v1" not in path.parts and "egg-info" not in str(path)
    )


def _python_imports(path: Path) -> list[Import]:
    module, found = _module(path), []
    tree = ast.parse(path.read_text(), str(path))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    nested = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; absolute imports only"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        inside = id(node) in nested and id(node) not in typing_only
        found += [Import(module, target, f"{path.relative_to(SRC)}:{node.lineno}", inside) for target in targets]
    return found


def _cython_imports(path: Path) -> list[Import]:
    module, found = _module(path), []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = CIMPORT.match(line.split("#", 1)[0])
        if match is None:
            continue
        if match[1]:
            targets = [f"{match[1]}.{name.split(' as ')[0].strip(' ()')}" for name in match[2].split(",")]
        else:
            targets = [name.split(" as ")[0].strip() for name in match[3].split(",")]
        found += [Import(module, target, f"{path.relative_to(SRC)}:{number}", False) for target in targets]
    return found


def _imports() -> list[Import]:
    return [found for path in _sources() for found in (_python_imports(path) if path.suffix == ".py" else _cython_imports(path))]


IMPORTS = _imports()


def _within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def _broken(predicate: object) -> list[str]:
    assert callable(predicate)
    return [f"{found.where}: {found.source} imports {found.target}" for found in IMPORTS if predicate(found)]


def test_pgwire_never_imports_control_nor_the_face() -> None:
    assert not _broken(lambda i: _within(i.source, ("pgwire",)) and _within(i.target, ("control", "pgleash")))


def test_control_sees_of_pgwire_only_the_ports() -> None:
    assert not _broken(
        lambda i: (
            _within(i.source, ("control",))
            and not _within(i.source, ("control.main",))
            and _within(i.target, ("pgwire",))
            and not _within(i.target, ("pgwire.ports",))
        )
    )


def test_control_never_imports_the_face_except_its_generated_stubs_in_rpc() -> None:
    assert not _broken(
        lambda i: (
            _within(i.source, ("control",))
            and _within(i.target, ("pgleash",))
            and not (_within(i.source, ("control.rpc", "control.main")) and _within(i.target, ("pgleash.v1",)))
        )
    )


def test_the_face_reaches_control_over_grpc_alone() -> None:
    assert not _broken(
        lambda i: _within(i.source, ("pgleash",)) and _within(i.target, ("control", "pgwire")) and not _within(i.target, FACE_EXCEPTIONS)
    )


@pytest.mark.parametrize(("package", "ranks"), [("pgwire", PGWIRE_RANKS), ("control", CONTROL_RANKS)])
def test_imports_point_down(package: str, ranks: dict[str, int]) -> None:
    broken = []
    for found in IMPORTS:
        if not (found.source.startswith(package + ".") and found.target.startswith(package + ".")):
            continue
        here, there = found.source.split(".")[1], found.target.split(".")[1]
        if here == there:
            continue
        assert here in ranks, f"{found.where}: {package}.{here} has no place in the import order"
        if there in ranks and ranks[there] >= ranks[here]:
            broken.append(f"{found.where}: {found.source} imports {found.target}")
    assert not broken


@pytest.mark.parametrize("vendor", sorted(DOORS))
def test_one_door_per_vendor(vendor: str) -> None:
    assert not _broken(lambda i: i.target.split(".")[0] == vendor and not _within(i.source, DOORS[vendor]))


@pytest.mark.parametrize("room", SANS_IO)
def test_sans_io_rooms_do_no_io(room: str) -> None:
    assert not _broken(lambda i: _within(i.source, (f"pgwire.{room}",)) and i.target.split(".")[0] in IO_MODULES)


def test_hot_imports_no_io_library() -> None:
    assert not _broken(lambda i: _within(i.source, ("pgwire.hot",)) and i.target.split(".")[0] in IO_MODULES - {"time"})


def test_no_import_hides_in_a_function() -> None:
    ours = ("pgwire", "control")
    assert not _broken(lambda i: i.nested and _within(i.source, ours) and _within(i.target, (*ours, "pgleash")))


def test_the_map_imports_nothing() -> None:
    assert not _broken(lambda i: i.source == "pgwire" and i.target.split(".")[0] != "__future__")


def test_nothing_is_called_utils() -> None:
    assert not [str(path.relative_to(SRC)) for path in _sources() if path.stem in FORBIDDEN_NAMES or path.parent.name in FORBIDDEN_NAMES]
