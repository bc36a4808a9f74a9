"""The published JSON Schema and the reader agree: on every example, and on every example with one thing changed."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from control.policy.document import read_policy
from control.policy.rules import ACTIONS, DAYS, EFFECTS, OPERATORS, VERBS, PolicyError
from control.starter import starter_policy
from pgleash.demo.stage import POLICY

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "docs" / "policy.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
EVERYTHING = """
version: 1
labels: {pii.email: ["public.*.email"], hr.pay: "*.*.pay"}
rules:
  - name: a
    who: {subjects: [x, "y*"], groups: g, acts_for: [h], claims: {team: data, realm.roles: [a, b]}}
    database: [shop]
    server: ["10.*:5432"]
    tables: ["public.*", "*"]
    verbs: [select, insert]
    when:
      kinds: [select]
      without_where: false
      functions: ["f*"]
      effects: [reads, unknown]
      labels: ["pii.*"]
      times: [{days: [mon-fri, sun], hours: "08:00-18:00", zone: Europe/Berlin}, {days: sat}]
      parameters: [{position: 1, eq: 1, ne: x, lt: 2.5, lte: 3, gt: 0, gte: 0, in: [1, a], not_in: [b], matches: "a*", "null": true}]
    effect: allow
    mode: observe
    obligations: {max_rows: 0, max_affected: 5, read_only: true, statement_timeout: 1.5, lock_timeout: 1, record: none}
    message: m
    hint: h
    instead: the view v
  - name: b
    effect: hold
    approvers: [dba]
    needed: 2
    timeout: 60
    transaction_timeout: 5
    dry_run: true
    mode: defer
    obligations: {record: 9}
  - {name: c, effect: deny, mode: enforce, message: no}
masks:
  - {label: pii.email, action: email, who: {groups: [g]}, database: shop, predicates: allow}
  - {label: hr.pay, action: keep_last, argument: 2}
  - {label: hr.pay, action: fixed, argument: x}
  - {label: hr.pay, action: null}
grants:
  - {who: {groups: [g]}, database: shop, tables: ["public.*"], verbs: [select], duration: 60}
limits:
  - {who: {groups: [g]}, database: [shop], sessions: 3, statements_per_minute: 60}
"""
# What a schema can't say: names that occur twice or nowhere, names of time zones, a window of no length.
BEYOND = re.compile(r"there is no label|there is no kind|is used more than once|zone must be|zone must be a name|hours must be two times")
WRONG: list[Any] = [None, True, 0, -1, 1.5, "", "x", "a.b", [], [""], [1], {}, {"x": 1}, 10**20]


def documents() -> Iterator[tuple[str, str]]:
    yield "everything", EVERYTHING
    yield "starter", starter_policy()
    yield "demo", POLICY
    for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "policy.md").read_text(), re.DOTALL)):
        if text.lstrip().startswith("version:"):
            yield f"docs {number}", text


def plain(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def read(document: Any) -> str:
    try:
        read_policy(json.dumps(document))  # JSON is YAML too
    except PolicyError as error:
        return str(error)
    return ""


def paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from paths(value, (*path, key))


def changed(document: Any) -> Iterator[tuple[str, Any]]:
    for path in paths(document):
        if not path:
            continue
        made = copy.deepcopy(document)
        place = made
        for key in path[:-1]:
            place = place[key]
        if isinstance(place, dict):
            without = copy.deepcopy(made)
            inner = without
            for key in path[:-1]:
                inner = inner[key]
            del inner[path[-1]]
            yield f"without {path}", without
            if path[-1] == next(iter(place)):
                place["surplus"] = 1
                yield f"surplus beside {path}", copy.deepcopy(made)
                del place["surplus"]
        for wrong in WRONG:
            place[path[-1]] = wrong
            yield f"{path} = {wrong!r}", copy.deepcopy(made)


@pytest.mark.parametrize(("name", "text"), list(documents()), ids=[name for name, _ in documents()])
def test_the_examples_are_right_for_both(name: str, text: str) -> None:
    assert read_policy(text)
    VALIDATOR.validate(plain(text))


def test_what_is_changed_is_right_or_wrong_for_both() -> None:
    apart = []
    for what, document in changed(plain(EVERYTHING)):
        problems = read(document)
        valid = VALIDATOR.is_valid(document)
        if valid == bool(problems) and not (valid and all(BEYOND.search(line) for line in problems.splitlines())):
            apart.append(f"{what}: the schema {'takes' if valid else 'refuses'} it, the reader says {problems or 'nothing'}")
    assert not apart, "\n".join(apart[:20])


def test_the_words_are_the_same() -> None:
    definitions = SCHEMA["$defs"]
    assert set(definitions["verb"]["enum"]) == VERBS
    assert set(definitions["effect"]["enum"]) == EFFECTS
    assert set(definitions["parameter"]["properties"]) - {"position"} == OPERATORS
    assert set(definitions["mask"]["properties"]["action"]["enum"]) - {None} == ACTIONS
    assert all(day in definitions["day"]["pattern"] for day in DAYS)
