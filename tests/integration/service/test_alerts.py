"""Prometheus's own tool on what is in deploy/: its language, and when each alert fires."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
PROMTOOL = "promtool"  # of the package `prometheus`, which `sh scripts/setup dev` installs


def told(*command: str) -> tuple[int, str]:
    ran = subprocess.run([PROMTOOL, *command], capture_output=True, text=True, timeout=30)
    return ran.returncode, ran.stdout + ran.stderr


def test_each_alert_fires_when_it_should_and_not_before_or_elsewhere() -> None:
    status, said = told("test", "rules", str(DEPLOY / "alerts.test.yml"))
    assert status == 0, said
    tested = {
        case["alertname"]
        for test in yaml.safe_load((DEPLOY / "alerts.test.yml").read_text(encoding="utf-8"))["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tested == set(re.findall(r"- alert: (\w+)", (DEPLOY / "alerts.yml").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        ("steer_breaker_state) == 2", "steer_breaker_state) >= 1"),
        ("> 0.05", "> 0.5"),
        ("> 0.1", "> 0"),
        ("steer_budget_limit > 0", "steer_budget_limit"),
        ("sum by (gen_ai_provider_name) (steer_queue", "max by (gen_ai_provider_name) (steer_queue"),
        ("histogram_quantile(0.95", "histogram_quantile(0.5"),
        ("for: 10m", "for: 1m"),
    ],
)
def test_another_rule_would_be_noticed(tmp_path: Path, rule: str, planted: str) -> None:
    text = (DEPLOY / "alerts.yml").read_text(encoding="utf-8")
    assert rule in text
    (tmp_path / "alerts.yml").write_text(text.replace(rule, planted))
    (tmp_path / "alerts.test.yml").write_bytes((DEPLOY / "alerts.test.yml").read_bytes())
    status, _ = told("test", "rules", str(tmp_path / "alerts.test.yml"))
    assert status != 0


def test_every_expression_of_the_dashboard_is_one(tmp_path: Path) -> None:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    asked = [target["expr"].replace("$__rate_interval", "5m") for panel in panels for target in panel["targets"]]
    assert len(asked) > 5
    rules = tmp_path / "rules.yml"

    def checked(expressions: list[str]) -> int:
        found = [{"record": f"r{number}", "expr": each} for number, each in enumerate(expressions)]
        rules.write_text(json.dumps({"groups": [{"name": "g", "rules": found}]}))
        return told("check", "rules", "--lint=none", str(rules))[0]

    assert checked(asked) == 0
    assert checked([*asked, "sum by (x (y)"]) != 0
