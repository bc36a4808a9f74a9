"""Rules of the house that a reader would otherwise have to remember: stubs, file lengths, docstrings, docs that follow the settings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
HOT = SRC / "pgwire" / "hot"
EXTENSIONS = sorted(path.stem for path in HOT.glob("*.pyx"))
GENERATED = "v1"
LONGEST = 600


def _files(*suffixes: str) -> list[Path]:
    return sorted(
        path
        for folder in ("src", "tests", "loadtests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and GENERATED not in path.parts
    )


@pytest.mark.parametrize("name", EXTENSIONS)
def test_every_extension_has_its_pxd_and_stub(name: str) -> None:
    assert (HOT / f"{name}.pxd").is_file()
    assert (HOT / f"{name}.pyi").is_file()


@pytest.mark.parametrize("name", EXTENSIONS)
def test_the_stub_says_what_the_module_has(name: str) -> None:
    module = importlib.import_module(f"pgwire.hot.{name}")
    declared = {
        node.name
        for node in ast.parse((HOT / f"{name}.pyi").read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    present = {
        public
        for public, value in vars(module).items()
        if not public.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", module.__name__) == module.__name__
        and (inspect.isclass(value) or callable(value))
    }
    assert declared - set(vars(module)) == set(), "declared in the stub, absent from the module"
    assert present - declared == set(), "in the module, absent from the stub"


@pytest.mark.parametrize("path", _files(".pyx"), ids=lambda path: path.name)
def test_no_coroutine_in_cython(path: Path) -> None:
    assert not re.search(r"^\s*async\s+def|\bawait\b", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", _files(".py", ".pyx", ".pxd"), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT)) for path in _files(".py") if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def _keys(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        yield field.alias or name
        for inner in _models(field.annotation):
            yield from _keys(inner, seen)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def test_the_operations_guide_names_every_setting() -> None:
    config = importlib.import_module("control.config")
    text = (ROOT / "docs" / "operations.md").read_text()
    missing = sorted({key for key in _keys(config.Settings, set()) if f"`{key}`" not in text})
    assert not missing, f"docs/operations.md does not mention {missing}"


def test_the_documents_link_only_to_files_that_exist() -> None:
    broken = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken
