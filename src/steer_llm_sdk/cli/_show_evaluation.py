"""What `steer-llm plan evaluate` prints."""

from __future__ import annotations

from rich.text import Text

from steer_llm_sdk.cli._show import console, printable, table_of
from steer_llm_sdk.orchestration.planning.evaluation import Evaluation, Value


def show_evaluation(found: Evaluation) -> None:
    out = console()
    style = "green" if found.promote else "red"
    out.print(Text(printable(found.verdict), style=f"bold {style}"), soft_wrap=True)
    replaced = f"; {found.replaced:,} earlier lines of the same decisions do not count" if found.replaced else ""
    out.print(f"{found.decisions:,} decisions{replaced}", soft_wrap=True)
    out.print()
    table = table_of("policy", "SNIPS", "direct", "DR", "bounds of DR", "cost", "worth")
    rows = {"learned": found.policy, "random": found.random, **found.singles}
    for name, value in rows.items():
        shown = f"{name} (reference)" if name == found.reference else name
        table.add_row(Text(printable(shown), style="bold" if name == "learned" else ""), *_numbers(value))
    if found.oracle is not None:
        table.add_row("oracle", "", "", f"{found.oracle:.4f}")
    out.print(table)
    fixed = found.at_fixed_quality
    if fixed is not None:
        out.print(
            f"cost at fixed quality: {fixed['quality']:.1%} of {printable(found.reference)}'s reward "
            f"at {fixed['cost']:.1%} of its cost, with cost_weight {fixed['cost_weight']:g}",
            soft_wrap=True,
        )
    if found.unseen_tasks:
        mean = sum(found.unseen_tasks.values()) / len(found.unseen_tasks)
        worst = min(found.unseen_tasks, key=lambda task: found.unseen_tasks[task])
        out.print(
            f"task types left out one by one: {100 * mean:+.2f} points in the mean, worst "
            f"{100 * found.unseen_tasks[worst]:+.2f} ({printable(worst or 'no type')})",
            soft_wrap=True,
        )


def _numbers(value: Value) -> list[str]:
    return [
        "?" if value.snips != value.snips else f"{value.snips:.4f}",
        f"{value.direct:.4f}",
        f"{value.dr:.4f}",
        f"{value.low:.4f} to {value.high:.4f}",
        "?" if value.cost_usd is None else f"${value.cost_usd:.6g}",
        f"{value.effective:.0f} decisions",
    ]
