"""Rules from a TOML or YAML file. Whatever is wrong in it is said with the number of its line.

    [[rule]]
    name = "contracts"
    priority = 10
    when = { type = "contract", "options.budget.tokens" = { gt = 1000 } }
    pin = "lawyer>=2"
    fallbacks = ["generalist"]
    options = { k = 5 }

TOML is read by the standard library, which tells no lines but of what is no TOML: the lines of rules and keys are found
in the text. YAML needs the extra `yaml`, and is read as YAML 1.2 has it, where `no` is a text and not false.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from steer_llm_sdk._install import install_line
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.planning._conditions import Unfit, checked
from steer_llm_sdk.orchestration.planning.planner import ExecutionStrategy
from steer_llm_sdk.orchestration.planning.rules import PlanningRule, RuleAction, RuleCondition

OPERATORS = ("equals", "contains", "regex", "keywords", "exists", "gt", "lt")
EFFECTS = ("pin", "restrict", "prefer", "forbid")
_KEYS = {"name", "priority", "description", "when", *EFFECTS, "fallbacks", "options", "strategy", "weight"}
_OF_A_PIN = ("fallbacks", "options", "strategy")


class Problem(NamedTuple):
    """Something about one place of a file. `rule` is the name of the rule, where it has one."""

    path: str
    line: int
    message: str
    rule: str | None = None

    def __str__(self) -> str:
        about = "" if self.rule is None else f"rule {self.rule}: "
        return f"{self.path}:{self.line}: {about}{self.message}"


class RuleFileError(InvalidRequest):
    """A rule file that cannot be used. `problems` has everything that is wrong in it, in the order of the lines."""

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        super().__init__("rules", path, "\n".join(map(str, problems)))
        self.problems = tuple(problems)
        self.args = ("\n".join(map(str, problems)),)


class Placed(NamedTuple):
    """A rule and where it is written."""

    rule: PlanningRule
    path: str
    line: int


def load_rules(path: str | Path) -> list[PlanningRule]:
    """The rules of a file, in its order. RuleFileError where anything in it cannot be used; OSError as for any file."""
    return [placed.rule for placed in read_rules(path)]


def read_rules(path: str | Path) -> list[Placed]:
    """The rules of a file with their lines."""
    text = Path(path).read_bytes()
    name = str(path)
    written = _from_yaml(text, name) if name.endswith((".yaml", ".yml")) else _from_toml(text, name)
    reader = _Reader(name, written)
    placed = reader.rules()
    if reader.problems:
        raise RuleFileError(name, sorted(reader.problems, key=lambda problem: problem.line))
    return placed


class _Written(NamedTuple):
    """What is in a file, and the lines of it: of the whole, of each rule, and of the keys of each."""

    content: Any
    lines: Sequence[int]
    keys: Sequence[Mapping[str, int]]


# ── TOML ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

_HEADER = re.compile(r"\s*\[\[\s*(?:rule|\"rule\"|'rule')\s*\]\]")
_SUBTABLE = re.compile(r"\s*\[\s*rule\s*\.\s*(\w+)")
_KEY = re.compile(r"\s*(?:([\w-]+)|\"([^\"]*)\"|'([^']*)')\s*[.=]")


def _from_toml(raw: bytes, path: str) -> _Written:
    try:
        text = raw.decode("utf-8-sig")
        content = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RuleFileError(path, [Problem(path, line, f"it is not UTF-8: byte {error.start}")]) from None
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        message = str(error) if found is None else found[1]
        line = text.count("\n") + 1 if found is None or found[2] is None else int(found[2])
        raise RuleFileError(path, [Problem(path, line, f"it is not TOML: {message}")]) from None
    lines, keys = _places(text.splitlines())
    return _Written(content, lines, keys)


def _places(lines: Sequence[str]) -> tuple[list[int], list[dict[str, int]]]:
    """The lines of the rules, and of the keys of each. A text over several lines is passed over."""
    rules: list[int] = []
    keys: list[dict[str, int]] = []
    closing: str | None = None
    for number, line in enumerate(lines, 1):
        if closing is not None:
            closing = None if line.count(closing) % 2 else closing
            continue
        if _HEADER.match(line):
            rules.append(number)
            keys.append({})
        elif keys and (found := _SUBTABLE.match(line) or _KEY.match(line)):
            keys[-1].setdefault(next(name for name in found.groups() if name is not None), number)
        closing = next((mark for mark in ('"""', "'''") if line.count(mark) % 2), None)
    return rules, keys


# ── YAML ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_yaml(raw: bytes, path: str) -> _Written:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise InvalidRequest("rules", path, f"YAML is not installed: {install_line('yaml')}, or write TOML") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """YAML 1.2: true, false, null and numbers; anything else that is not quoted is a text."""

        yaml_implicit_resolvers = _resolvers()

    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 010 is ten

    try:
        node = yaml.compose(raw, Loader)
        content = yaml.load(raw, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        message = getattr(error, "problem", None) or str(error)
        raise RuleFileError(
            path, [Problem(path, 1 if mark is None else mark.line + 1, f"it is not YAML: {message}")]
        ) from None
    twice = list(_twice(node))
    if twice:
        raise RuleFileError(path, [Problem(path, line, f"{key!r} is there twice") for line, key in twice])
    rules = next((value for key, value in _pairs(node) if key == "rule"), None)
    items: list[Any] = rules.value if rules is not None and type(rules).__name__ == "SequenceNode" else []
    return _Written(
        content,
        [item.start_mark.line + 1 for item in items],
        [{key: value.start_mark.line + 1 for key, value in _pairs(item)} for item in items],
    )


_YAML_1_2 = (
    ("bool", "tTfF", r"(?:true|True|TRUE|false|False|FALSE)$"),
    ("null", "nN~", r"(?:~|null|Null|NULL)$"),
    ("int", "-+0123456789", r"[-+]?[0-9]+$"),
    ("float", "-+.0123456789", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """By the first character of a plain scalar: what it may be beside a text."""
    found: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, firsts, pattern in _YAML_1_2:
        for first in firsts:
            found.setdefault(first, []).append((f"tag:yaml.org,2002:{tag}", re.compile(pattern)))
    return found


def _pairs(node: Any) -> Iterator[tuple[str, Any]]:
    if type(node).__name__ == "MappingNode":
        yield from ((str(key.value), value) for key, value in node.value)


def _twice(node: Any) -> Iterator[tuple[int, str]]:
    seen: set[str] = set()
    if type(node).__name__ == "MappingNode":
        for key, value in node.value:
            if str(key.value) in seen:
                yield key.start_mark.line + 1, str(key.value)
            seen.add(str(key.value))
            yield from _twice(value)
    elif type(node).__name__ == "SequenceNode":
        for item in node.value:
            yield from _twice(item)


# ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Wrong(NamedTuple):
    """Something that is wrong with a rule, at a key of it, where it has one."""

    key: str | None
    message: str


class _Reader:
    """Reads the rules of one file, and goes on after what is wrong."""

    def __init__(self, path: str, written: _Written) -> None:
        self._path = path
        self._written = written
        self.problems: list[Problem] = []

    def rules(self) -> list[Placed]:
        content = self._written.content
        if content is None:
            return []
        if not isinstance(content, Mapping):
            self._problem(None, None, None, "write rules under `rule`")
            return []
        for key in content:
            if key != "rule":
                self._problem(None, None, None, f"{key!r} is nothing that is read here; write rules under `rule`")
        rules = content.get("rule", [])
        if not isinstance(rules, list):
            self._problem(
                None, None, None, "`rule` must be a list: write [[rule]] before each, in YAML `- ` under `rule:`"
            )
            return []
        found = [self._rule(number, given) for number, given in enumerate(rules)]
        placed = [one for one in found if one is not None]
        seen: dict[str, int] = {}
        for one in placed:
            if one.rule.name in seen:
                message = f"its name is taken by the rule in line {seen[one.rule.name]}; names tell rules apart"
                self.problems.append(Problem(self._path, one.line, message, one.rule.name))
            seen.setdefault(one.rule.name, one.line)
        return placed

    def _rule(self, number: int, given: Any) -> Placed | None:
        name: str | None = None
        wrong: list[_Wrong] = []
        rule: PlanningRule | None = None
        if isinstance(given, Mapping):
            found = given.get("name")
            name = found if isinstance(found, str) and found else None
            rule = _rule_of(given, wrong)
        else:
            wrong.append(_Wrong(None, f"a rule has keys: {_known(_KEYS)}"))
        for key, message in wrong:
            self._problem(number, key, name, message)
        return None if rule is None else Placed(rule, self._path, self._line(number, None))

    def _problem(self, number: int | None, key: str | None, name: str | None, message: str) -> None:
        self.problems.append(Problem(self._path, self._line(number, key), message, name))

    def _line(self, number: int | None, key: str | None) -> int:
        lines, keys = self._written.lines, self._written.keys
        if number is None or number >= len(lines):
            return lines[-1] if number is not None and lines else 1
        return keys[number].get(key or "", lines[number])


def _rule_of(given: Mapping[str, Any], wrong: list[_Wrong]) -> PlanningRule | None:
    """The rule; or None, and all that is wrong with it."""
    for key in given:
        if key not in _KEYS:
            wrong.append(_Wrong(str(key), f"{key!r} is no key of a rule; there are {_known(_KEYS)}"))
    name, priority = given.get("name"), given.get("priority", 0)
    if not isinstance(name, str) or not name:
        wrong.append(_Wrong("name", "name: give it a name, which decisions and errors show"))
    if isinstance(priority, bool) or not isinstance(priority, int):
        wrong.append(_Wrong("priority", f"priority: {priority!r} cannot be used; give a whole number"))
    conditions = list(_conditions(given.get("when", {}), wrong))
    action = _action(given, wrong)
    if wrong or action is None:
        return None
    fields = {"name": name, "priority": priority, "conditions": conditions, "action": action}
    return _built(PlanningRule, {**fields, "description": given.get("description")}, wrong)


M = TypeVar("M", bound=BaseModel)
_WRITTEN_AS = {"fallback_tools": "fallbacks", "tool_options": "options", "execution_strategy": "strategy"}


def _built(kind: type[M], fields: Mapping[str, Any], wrong: list[_Wrong]) -> M | None:
    try:
        return kind(**fields)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            field = str(found["loc"][0]) if found["loc"] else None
            key = None if field is None else _WRITTEN_AS.get(field, field)
            message = found["msg"].removeprefix("Value error, ")
            wrong.append(_Wrong(key, f"{key}: {message}" if key else message))
        return None


def _action(given: Mapping[str, Any], wrong: list[_Wrong]) -> RuleAction | None:
    before = len(wrong)
    effects = [key for key in EFFECTS if key in given]
    if len(effects) != 1:
        at = effects[1] if effects else None
        wrong.append(_Wrong(at, f"give one of {_known(EFFECTS)}, and {len(effects)} are there"))
    for key in (*_OF_A_PIN, "weight"):
        effect = "prefer" if key == "weight" else "pin"
        if key in given and len(effects) == 1 and effects[0] != effect:
            said = f"only {effect} has one" if key == "weight" else "only a pin has it"
            wrong.append(_Wrong(key, f"{key}: {said}, and the rule is to {effects[0]}"))
    for effect in effects:
        tools = _names(given[effect])
        if not tools:
            wrong.append(_Wrong(effect, f"{effect}: give the name of a tool, or a list of names"))
        elif effect == "pin" and len(tools) > 1:
            wrong.append(_Wrong(effect, "pin: give one tool; the others are its fallbacks"))
    fallbacks = given.get("fallbacks", [])
    if not isinstance(fallbacks, list) or _names(fallbacks) is None:
        wrong.append(_Wrong("fallbacks", "fallbacks: give a list of names"))
    known = [strategy.value for strategy in ExecutionStrategy]
    if given.get("strategy", "single") not in known:
        wrong.append(_Wrong("strategy", f"strategy: {given['strategy']!r} is none of {_known(known)}"))
    if len(wrong) > before:
        return None
    tools = _names(given[effects[0]]) or []
    fields: dict[str, Any] = {"tool_name": tools[0], "effect": effects[0], "fallback_tools": fallbacks or tools[1:]}
    for key, field in (("options", "tool_options"), ("weight", "weight"), ("strategy", "execution_strategy")):
        if key in given:
            fields[field] = given[key]
    return _built(RuleAction, fields, wrong)


def _names(given: Any) -> list[str] | None:
    """The names of tools; None where it is no name and no list of names."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        return None
    return names


def _conditions(when: Any, wrong: list[_Wrong]) -> Iterator[RuleCondition]:
    def refuse(message: str) -> None:
        wrong.append(_Wrong("when", f"when: {message}"))

    if not isinstance(when, Mapping):
        refuse('give a table, as in { type = "essay", tokens = { gt = 100 } }')
        return
    for path, asked in when.items():
        if not isinstance(path, str) or not path:
            refuse(f"{path!r} is no path into a request")
            continue
        for operator, value in asked.items() if isinstance(asked, Mapping) else (("equals", asked),):
            if operator not in OPERATORS:
                hint = f'; for a key within {path} write "{path}.{operator}"'
                refuse(f"{path}: {operator!r} is no operator; there are {_known(OPERATORS)}{hint}")
                continue
            condition = RuleCondition(path, operator, value)
            try:
                checked(condition)
            except Unfit as error:
                refuse(f"{path}: {error}")
            yield condition


def _known(words: Any) -> str:
    return ", ".join(words if isinstance(words, (tuple, list)) else sorted(words))
