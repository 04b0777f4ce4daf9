"""The page of options has every field of every configuration, with its default."""

from __future__ import annotations

import re
from enum import Enum
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from steer_llm_sdk import OrchestrationConfig, ReliabilityConfig
from steer_llm_sdk.reliability import CircuitBreakerConfig, RetryPolicy
from steer_llm_sdk.reliability.hedging import HedgingPolicy
from steer_llm_sdk.reliability.rate_limit import RateLimit
from steer_llm_sdk.reliability.retry_budget import RetryBudgetConfig

PAGE = (Path(__file__).parent.parent / "docs" / "options.md").read_text(encoding="utf-8")
MODELS = (
    OrchestrationConfig,
    ReliabilityConfig,
    RetryPolicy,
    CircuitBreakerConfig,
    RateLimit,
    HedgingPolicy,
    RetryBudgetConfig,
)


def section(model: type[BaseModel]) -> str:
    return PAGE.split(f"\n## {model.__name__}\n")[1].split("\n## ")[0]


def as_written(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return f"{type(default).__name__}()"
    if isinstance(default, Enum):
        default = default.value
    return f'"{default}"' if isinstance(default, str) else repr(default)


@pytest.mark.parametrize("model", MODELS)
def test_each_field_stands_there_with_its_default_and_a_sentence(model: type[BaseModel]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \| \S.*\. ?\S* \|$", section(model), re.MULTILINE))
    assert rows == {name: as_written(field) for name, field in model.model_fields.items()}


@pytest.mark.parametrize("model", MODELS)
def test_it_can_be_imported_from_where_the_page_says(model: type[BaseModel]) -> None:
    (module,) = re.findall(r"^From `([\w.]+)`\.", section(model), re.MULTILINE)
    assert getattr(import_module(module), model.__name__) is model


def test_the_page_has_no_other_configuration() -> None:
    assert re.findall(r"^## (\w+)$", PAGE, re.MULTILINE) == [model.__name__ for model in MODELS]
