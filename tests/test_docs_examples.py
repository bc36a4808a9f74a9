"""What the documentation shows must work: its configurations load, its policies are read, its commands exist.

Never add here: prose checks.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from control.config import load, missing
from control.policy.document import read_policy
from control.starter import starter, starter_policy
from pgleash.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_smallest_configuration_loads(tmp_path: Path) -> None:
    found = blocks(ROOT / "docs" / "configure.md", "yaml")
    assert found
    for number, text in enumerate(found):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert load(path).databases["shop"].server.dbname == "shop"


def test_the_policies_are_read_and_their_cases_hold(tmp_path: Path) -> None:
    found = blocks(ROOT / "docs" / "policy.md", "yaml")
    assert found
    policies = [text for text in found if text.startswith("version:")]
    assert len(policies) >= 2
    for text in policies:
        assert read_policy(text).rules
    cases = next(text for text in found if "cases:" in text)
    (tmp_path / "cases.yaml").write_text(cases)
    (tmp_path / "policy.yaml").write_text(policies[1] + "masks: [{label: pii.email, action: email}]\n")
    (tmp_path / "schema.json").write_text(
        '{"public.orders": ["id", "status"], "public.refunds": ["id", "amount"], "public.customers": ["id", "email"]}'
    )
    words = ["policy", "test", "cases.yaml", "--policy", "policy.yaml", "--schema", "schema.json"]
    words = [str(tmp_path / word) if "." in word else word for word in words]
    done = subprocess.run([sys.executable, "-m", "pgleash.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_init_writes_is_right(tmp_path: Path) -> None:
    (tmp_path / "pgleash.yaml").write_text(starter())
    (tmp_path / "policy.yaml").write_text(starter_policy())
    settings = load(tmp_path / "pgleash.yaml")
    assert any("PGLEASH_SERVICE_PASSWORD" in problem for problem in missing(settings))
    assert read_policy(starter_policy()).rules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    root = typer.main.get_command(app)
    lines = [line for text in blocks(page, "sh") for line in text.splitlines()] + re.findall(r"`(pgleash [^`…]+)`", page.read_text())
    for line in lines:
        words = shlex.split(line.split("#")[0].replace("…", "x"))
        if words[:1] != ["pgleash"] or "ready" in words:
            continue
        command, rest = root, words[1:]
        while rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, f"{line}: no command {rest[0]}"
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in getattr(parameter, "opts", [])}
        for word in rest:
            if word.startswith("--") and word != "--help":
                assert word.split("=")[0] in known, f"{line}: no option {word}"


def test_the_python_in_the_documents_compiles() -> None:
    for page in PAGES:
        for number, text in enumerate(blocks(page, "python")):
            compile(text, f"{page.name}[{number}]", "exec")
