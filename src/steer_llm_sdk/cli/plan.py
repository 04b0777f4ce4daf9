"""`steer-llm plan explain`: which tool a request would go to, and why. `plan check`: what is wrong with rules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, TextIO

import typer
from rich.table import Table
from rich.text import Text

from steer_llm_sdk.cli import _inputs as inputs
from steer_llm_sdk.cli._show import console, dollars, printable, table_of
from steer_llm_sdk.cli._show_evaluation import show_evaluation
from steer_llm_sdk.cli._stdout import stdout_of
from steer_llm_sdk.cli.exits import Exit, Group, OneCommand, complain, errors_as_exits, flowing, refuse
from steer_llm_sdk.errors import NoEligibleTool, a_kind
from steer_llm_sdk.orchestration._result import describe_error
from steer_llm_sdk.orchestration.planning import (
    ConditionAccount,
    Explanation,
    Finding,
    PlanRequest,
    RuleAccount,
    RuleBasedPlanner,
    RuleFileError,
    ToolAccount,
    check_rules,
    explain,
)
from steer_llm_sdk.orchestration.planning.evaluation import evaluate, read_log
from steer_llm_sdk.orchestration.planning.rule_files import Placed, Problem, read_rules
from steer_llm_sdk.orchestration.tool_registry import get_global_registry

plan = typer.Typer(cls=Group, help="See what a planner decides, and why.", no_args_is_help=True)


@plan.callback()
def common() -> None:
    """See what a planner decides, and why."""


_RULES = typer.Option("--rules", metavar="FILE", help="A file of rules, TOML or YAML; again for more.")
_TOOLS = typer.Option(
    "--tools",
    metavar="MODULE[:NAME]",
    help="A module that is imported from here and registers the tools, or a ToolRegistry in it.",
)


def explain_request(
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST",
            help="A text, or a JSON object; - reads standard input, @FILE a file.",
            show_default=False,
        ),
    ],
    planner: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="A RuleBasedPlanner of yours. The module is imported from here; the tools that it registers are the "
            "candidates. Without it: what `steer-llm run` goes by.",
        ),
    ] = None,
    rules: Annotated[list[str] | None, _RULES] = None,
    tools: Annotated[str | None, _TOOLS] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=NUMBER", help="tokens=1000, cost_usd=0.05 or ms=5000; again for more."),
    ] = None,
    failed: Annotated[
        list[str] | None, typer.Option(metavar="TOOL", help="As if this tool had just failed; again for more.")
    ] = None,
    open_: Annotated[
        list[str] | None,
        typer.Option("--open", metavar="TOOL", help="As if the circuit of this tool were open; again for more."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show each rule that was looked at with the condition that failed, and each tool with its cost and duration.

    Nothing is run and nothing is spent. The exit code is 0, or 2 where no tool can serve.
    """
    with stdout_of(as_json=as_json) as stdout, errors_as_exits(as_json=as_json, out=stdout):
        context = PlanRequest(
            budget=inputs.read_budget(budget or []),
            previous_failures=failed or [],
            circuit_breaker_states=dict.fromkeys(open_ or [], "open"),
        )
        if planner is not None and rules:
            refuse("--rules", rules[0], "give rules by files or by a planner, not both")
        chosen = RuleBasedPlanner() if planner is None else _planner(planner)
        registry = get_global_registry() if tools is None else inputs.registry_of(tools, "--tools")
        for placed in _read(rules or [], "--rules"):
            chosen.add_rule(placed.rule)
        view = registry.planning_view()
        for option, names in (("--failed", failed), ("--open", open_)):
            for name in names or ():
                if name not in view:
                    refuse(option, name, f"the tools are {', '.join(view)}")
        account = explain(chosen, inputs.read_request(request, "REQUEST"), view, context)
        if account.decision is None:
            complain(account.refusal)
        if as_json:
            print(json.dumps(_as_json(account, context), indent=2, ensure_ascii=False, default=str), file=stdout)
        else:
            _show(account, context)
        raise typer.Exit(Exit.BAD_INPUT if account.decision is None else Exit.OK)


def evaluate_log(
    log: Annotated[
        str,
        typer.Argument(
            metavar="LOG",
            help="Lines that LearnedPlanner(log=...) wrote, or of {type, query, scores, costs}; - reads standard "
            "input.",
            show_default=False,
        ),
    ],
    default: Annotated[
        str | None, typer.Option(metavar="TOOL", help="What to compare with; else the log's default tool.")
    ] = None,
    cost_weight: Annotated[float, typer.Option(metavar="NUMBER", help="That of the planner to be judged.")] = 0.0,
    margin: Annotated[
        float, typer.Option(metavar="NUMBER", help="How much reward (of 0 to 1) may be lost at worst.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say from a log whether the planner that learned from it should be trusted, and how sure that is.

    Nothing is run and nothing is spent. The exit code is 0 where it may be promoted, 1 where the lower bound forbids
    it, and 2 where the log cannot say.
    """
    with errors_as_exits(as_json=as_json):
        lines = read_log(inputs.bytes_or_standard_input(log, "LOG").splitlines())
        found = evaluate(lines, default=default, cost_weight=cost_weight, margin=margin)
        if as_json:
            print(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        else:
            show_evaluation(found)
        raise typer.Exit(Exit.OK if found.promote else Exit.FAILED)


plan.command("evaluate", cls=OneCommand, help=flowing(evaluate_log.__doc__))(evaluate_log)


def check_files(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE…", help="Files of rules, TOML or YAML, as one planner would be given them."),
    ] = None,
    planner: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="A RuleBasedPlanner of yours, whose rules are checked."),
    ] = None,
    tools: Annotated[str | None, _TOOLS] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say of rules what is wrong with them before a request meets it, each with its file and line.

    Rules that cannot match, that another one always keeps from deciding, that contradict each other, that cannot be
    asked; and with --tools or --planner, tools that are not there. The exit code is 0, or 2 where something is wrong.
    """
    with stdout_of(as_json=as_json) as stdout, errors_as_exits(as_json=as_json, out=stdout):
        if bool(files) == (planner is not None):
            refuse("FILE", files, "give files of rules, or --planner")
        known = _planner(planner).rules if planner is not None else []
        registry = get_global_registry() if tools is None else inputs.registry_of(tools, "--tools")
        try:
            placed = [*(Placed(rule, planner or "", 0) for rule in known), *_read(files or [], "FILE")]
        except RuleFileError as error:
            _report([{**problem._asdict(), "kind": "unreadable"} for problem in error.problems], 0, stdout, as_json)
            raise typer.Exit(Exit.BAD_INPUT) from None
        view = registry.planning_view() if tools is not None or planner is not None else None
        findings = check_rules([one.rule for one in placed], view)
        _report([_as_problem(finding, placed) for finding in findings], len(placed), stdout, as_json)
        if not as_json and view is None:
            complain("whether the tools are there was not looked at; --tools MODULE names what registers them")
        raise typer.Exit(Exit.BAD_INPUT if findings else Exit.OK)


def _as_problem(finding: Finding, placed: Sequence[Placed]) -> dict[str, Any]:
    rule, path, line = placed[finding.rule]
    other = "" if finding.other is None or not placed[finding.other].line else f" (line {placed[finding.other].line})"
    message = f"{finding.kind.replace('_', ' ')}: {finding.message}{other}"
    return {**Problem(path, line, message, rule.name)._asdict(), "kind": finding.kind}


def _report(problems: Sequence[Mapping[str, Any]], rules: int, stdout: TextIO, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"rules": rules, "problems": problems}, indent=2, ensure_ascii=False), file=stdout)
        return
    for problem in problems:
        print(printable(str(Problem(problem["path"], problem["line"], problem["message"], problem["rule"]))))
    if not problems:
        print("1 rule, nothing wrong with it" if rules == 1 else f"{rules} rules, nothing wrong with them")


def _read(files: Sequence[str], field: str) -> list[Placed]:
    placed: list[Placed] = []
    for file in files:
        try:
            placed += read_rules(file)
        except OSError as error:
            refuse(field, file, f"name a file that can be read ({error.strerror or error})")
    return placed


plan.command("check", cls=OneCommand, help=flowing(check_files.__doc__))(check_files)
plan.command("explain", cls=OneCommand, help=flowing(explain_request.__doc__))(explain_request)


def _planner(path: str) -> RuleBasedPlanner:
    found = inputs.imported(path, "--planner", "my_app:planner")
    if not isinstance(found, RuleBasedPlanner):
        refuse("--planner", path, f"it is {a_kind(found)}; only a RuleBasedPlanner can say why")
    return found


def _as_json(account: Explanation, context: PlanRequest) -> Mapping[str, Any]:
    decision = account.decision
    refused = {tool.name: tool.reason for tool in account.tools if tool.reason is not None}
    return {
        **({"error": describe_error(NoEligibleTool(refused))} if decision is None else {}),
        "decision": None if decision is None else decision.model_dump(mode="json"),
        "refusal": account.refusal,
        "rules": [asdict(rule) for rule in account.rules],
        "tools": [{**asdict(tool), "over_budget": _excess(tool, context)} for tool in account.tools],
    }


def _excess(tool: ToolAccount, context: PlanRequest) -> str | None:
    """What of the budget the tool exceeds, by the estimates that are shown; None where it fits, or declares nothing."""
    budget = context.budget or {}
    cost, time = budget.get("cost_usd"), budget.get("ms")
    if cost is not None and tool.estimated_cost is not None and tool.estimated_cost > cost:
        return f"exceeds the budget of {dollars(cost)}"
    if time is not None and tool.estimated_duration_ms is not None and tool.estimated_duration_ms > time:
        return f"exceeds the budget of {time / 1000:g} s"
    return None


def _show(account: Explanation, context: PlanRequest) -> None:
    out = console()
    decision = account.decision
    if decision is not None:
        out.print(Text(f"{decision.selected_tool}: {printable(decision.reasoning)}", style="bold"), soft_wrap=True)
        if decision.tool_options:
            out.print(Text(f"with {printable(json.dumps(decision.tool_options, ensure_ascii=False, default=str))}"))
    if account.rules:
        shown = [rule for rule in account.rules if len(account.rules) <= MOST_SHOWN or rule.looked_at]
        out.print()
        out.print(_rules_table(shown, refused=decision is None))
        if len(shown) < len(account.rules):
            left = len(account.rules) - len(shown)
            out.print(Text(f"{left:,} more rules were not looked at: they ask for what the request does not have"))
    out.print()
    out.print(_tools_table(account, context))


MOST_SHOWN = 50
"""Of more rules than this only those are shown that were looked at."""


def _rules_table(rules: Sequence[RuleAccount], *, refused: bool) -> Table:
    table = table_of("rule", "priority", "what came of it")
    for rule in rules:
        style = "green" if rule.decides else "" if rule.matches else "dim"
        table.add_row(
            Text(printable(rule.name), style=style), str(rule.priority), Text("\n".join(_verdict(rule, refused)))
        )
    return table


def _verdict(rule: RuleAccount, refused: bool) -> Iterator[str]:
    serves = f" for {', '.join(rule.tools)}" if rule.tools else ""
    if rule.decides:
        yield f"decides{serves}" if rule.effect == "pin" else f"{_EFFECTS[rule.effect or '']} {', '.join(rule.tools)}"
    elif rule.problem is not None:
        yield f"skipped: {printable(rule.problem)}"
    elif rule.matches:
        yield f"matches{serves}; {'none of its tools can serve' if refused else 'another one decides'}"
    else:
        yield f"does not match{serves}"
    yield from map(_condition, rule.conditions)


_EFFECTS = {"restrict": "leaves only", "forbid": "forbids", "prefer": "prefers"}


def _condition(condition: ConditionAccount) -> str:
    mark = "✓" if condition.holds else "?" if condition.holds is None else "✗"
    asked = f"{condition.path} {condition.operator} {json.dumps(condition.expected, ensure_ascii=False)}"
    why = condition.problem or f"it is {json.dumps(condition.value, ensure_ascii=False)}"
    return printable(f"{mark} {asked}" + ("" if condition.holds else f": {why}"))


def _tools_table(account: Explanation, context: PlanRequest) -> Table:
    ran = any(tool.runs for tool in account.tools)
    table = table_of("tool", "cost", "takes", *(["succeeds"] if ran else []), "role")
    for tool in account.tools:
        style = "green" if tool.selected else "" if tool.eligible else "dim"
        table.add_row(
            Text(printable(f"{tool.name} {tool.version}"), style=style),
            "?" if tool.estimated_cost is None else dollars(tool.estimated_cost),
            "?" if tool.estimated_duration_ms is None else f"{tool.estimated_duration_ms / 1000:g} s",
            *([_success(tool)] if ran else []),
            Text(printable("; ".join(said for said in (_role(tool), _excess(tool, context)) if said))),
        )
    return table


def _success(tool: ToolAccount) -> str:
    return "?" if tool.estimated_success is None else f"{tool.estimated_success:.0%}, {tool.runs} runs seen"


def _role(tool: ToolAccount) -> str:
    if tool.reason is not None:
        return tool.reason
    role = "selected" if tool.selected else "fallback" if tool.fallback else "can serve"
    return f"{role}; it failed before" if tool.failed_before else role
