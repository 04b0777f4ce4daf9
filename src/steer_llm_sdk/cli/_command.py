"""From the command line of `run` to the model or tool that is asked, and its options."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from steer_llm_sdk.cli import _inputs as inputs
from steer_llm_sdk.cli._clients import load_clients
from steer_llm_sdk.cli._show import console
from steer_llm_sdk.cli._who import which_tool, who_answers
from steer_llm_sdk.cli.exits import complain, refuse
from steer_llm_sdk.errors import InvalidRequest, ToolNotFound, a_kind
from steer_llm_sdk.evidence import Calibrator
from steer_llm_sdk.orchestration.options import OrchestrationConfig, invalid_option
from steer_llm_sdk.orchestration.planning import RuleBasedPlanner
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.orchestration.tools.base import MAX_K
from steer_llm_sdk.orchestration.tools.llm import LLMBundleTool, LLMTool
from steer_llm_sdk.orchestration.tools.text_analyzer import TextAnalyzer
from steer_llm_sdk.providers.models import MODEL_VARIABLE, configured_model

_log = logging.getLogger(__name__)

ASK = "ask"
"""The name of the tool that is made for --model."""
_OPTION = "--option model"
_OF_A_MODEL = frozenset({"temperature", "seed", "max_tokens", "first_byte_timeout", "chunk_timeout"})
"""Options that set something of a request to a model."""


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a model's answer, the fields by which several answers are compared, and what makes trust of it."""

    schema: dict[str, Any] | None = None
    fields: Sequence[str] = ()
    calibrator: Calibrator | None = None
    calibrator_file: str | None = None

    @classmethod
    def of(cls, schema: str | None, fields: Sequence[str], calibrator: str | None = None) -> Form:
        """`schema` is that of --schema. Without one, an answer must have the fields: no text has any.

        `calibrator` is the file of --calibrator.
        """
        paths, given = inputs.read_fields(fields), inputs.read_schema(schema)
        schema_of_answer = given if given is not None else inputs.schema_with(paths) or None
        return cls(schema_of_answer, fields, inputs.read_calibrator(calibrator), calibrator)

    @property
    def made_of(self) -> tuple[Any, ...]:
        """What tells two forms apart, as JSON."""
        return (self.schema, self.fields, *([self.calibrator.to_json()] if self.calibrator is not None else []))

    def refuse(self) -> None:
        """Refuse the form where no model is named whose answer could have it."""
        for option, given in (("--fields", self.fields), ("--schema", self.schema)):
            if given:
                refuse(option, given, "it forms the answer of a model: name one with --model, and no --tool")
        if self.calibrator is not None:
            refuse(
                "--calibrator", self.calibrator_file, "it is of the answers of a model: name one with --model and -k"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """`tool` is made here for a model, of what `made_of` says, or imported. `tool_name` None leaves the choice to the
    planner.

    `who` is None until the planner has chosen. `named` are the models that were named, and `source` says by what.
    """

    tool: Tool | None
    tool_name: str | None
    tool_options: Mapping[str, Any]
    options: Mapping[str, Any]
    who: str | None
    named: Sequence[str] = ()
    source: str = MODEL_VARIABLE
    made_of: Sequence[Any] = ()

    def registry(self) -> ToolRegistry:
        registry = ToolRegistry()
        if self.tool is not None:
            registry.register_tool(self.tool)
        return registry

    def pinned(self) -> Command:
        """With a version of the tool that says what it was made of: a run goes on with the same only."""
        if self.tool is None or self.tool_name != ASK:
            return self
        made_of = hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()[:12]
        self.tool.version = f"1.0.0+{made_of}"
        return self

    @property
    def asked_for(self) -> str | None:
        """The tool, where it is pinned in its version: then the same key with another model or schema is a conflict."""
        if self.tool is None or self.tool_name != ASK or "+" not in self.tool.version:
            return self.tool_name
        return f"{ASK}=={self.tool.version}"

    def announce(self) -> None:
        """Say which models answer, where any are named, and load what talks to them."""
        if self.who is not None:
            complain(self.who)
        configured = configured_model()
        for model in self.named or ([] if configured is None else [configured]):
            with contextlib.suppress(InvalidRequest):  # Whoever asks it says so, if anybody does.
                load_clients([model], console(stderr=True))


def command_of(
    named: list[str],
    tool_name: str | None,
    k: int | None,
    tool_options: Mapping[str, Any],
    form: Form,
    options: Mapping[str, Any],
) -> Command:
    """`named` are the models of --model, `options` those of the run."""
    if k is not None and k < 1:
        refuse("-k", k, f"ask once, or at most {MAX_K} times")
    models, source = _models(named)
    in_options = _names(tool_options.get("model"))
    if tool_name is None and models:
        asked, by = (in_options, _OPTION) if in_options else (models, source)
        return Command(
            tool=_model_tool(models, k, form),
            tool_name=ASK,
            tool_options=tool_options,
            options=options,
            who=who_answers(asked, by),
            named=asked,
            source=by,
            made_of=(models, k, *form.made_of),
        )
    form.refuse()
    own = None if tool_name is None or ":" not in tool_name else _imported(tool_name)
    tool_name = tool_name if own is None else own.name
    tool = own if own is not None or tool_name is None else ToolRegistry().get_tool(tool_name)
    named, source = (in_options, _OPTION) if in_options else (named, "--model")
    _refuse_unheeded(tool_name, tool, k, tool_options, has_model=bool(named or models))
    return Command(
        tool=own,
        tool_name=tool_name,
        tool_options={**_given(k=k, model=_one_or_all(named)), **tool_options},
        options=options,
        who=None if tool is None else which_tool(tool, configured_model(), named, source),
        named=named,
        source=source,
        made_of=(models,),
    )


def _imported(path: str) -> Tool:
    """A tool of one's own that is installed nowhere."""
    found = inputs.imported(path, "--tool", "my_app:weather")
    if not isinstance(found, Tool):
        refuse("--tool", path, f"it is {a_kind(found)}; name a function with @tool, or an instance of a Tool")
    return found


def _refuse_unheeded(
    tool_name: str | None, tool: Tool | None, k: int | None, tool_options: Mapping[str, Any], *, has_model: bool
) -> None:
    """Refuse what would change nothing. A tool of somebody else's knows its own options."""
    if tool_name is None and k is not None:
        refuse("-k", k, "-k needs --model: without it nothing is asked more than once")
    if isinstance(tool, TextAnalyzer) and k not in (None, 1):
        refuse("-k", k, f"{tool.name} answers once; name a model with --model and leave --tool out")
    if has_model or not (tool_name is None or isinstance(tool, TextAnalyzer)):
        return
    for name in _OF_A_MODEL & tool_options.keys():
        refuse(f"--option {name}", tool_options[name], f"{name} needs --model: it sets something of a model")


def config_of(options: Mapping[str, Any]) -> OrchestrationConfig:
    """InvalidRequest names the option, what was given and what would do."""
    try:
        return OrchestrationConfig.model_validate(dict(options))
    except ValidationError as error:
        raise invalid_option(error, OrchestrationConfig.model_fields, "options") from error


def check(request: Any, tool_name: str | None, tool_options: Mapping[str, Any], registry: ToolRegistry) -> None:
    """ValueError, before anything is spent, where the tool that would be asked refuses the request or the options."""
    if tool_name is None:
        tool_name = RuleBasedPlanner().decide(request, registry.planning_view()).selected_tool
    tool = registry.get_tool(tool_name)
    if tool is None:
        raise ToolNotFound(tool_name, registry.names())
    try:
        tool.validate_request({"query": request} if isinstance(request, str) else request)
        tool.validate_options(tool_options)
    except ValueError:
        raise
    except Exception:
        # A check that breaks says nothing about the request; what comes of it is told when the tool is asked.
        _log.debug("%r could not check a request", tool, exc_info=True)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _one_or_all(named: list[str]) -> str | list[str] | None:
    return named if len(named) > 1 else next(iter(named), None)


def _names(model: Any) -> list[str]:
    """The models that the option `model` of a tool names."""
    given = model if isinstance(model, list) else [model]
    return [name for name in given if isinstance(name, str)]


def _models(named: list[str]) -> tuple[list[str], str]:
    """The models to try, in order, and who named them."""
    if named:
        return named, "--model"
    configured = configured_model()
    return ([] if configured is None else [configured]), MODEL_VARIABLE


def _model_tool(models: list[str], k: int | None, form: Form) -> Tool:
    if k is None or k == 1:
        if form.fields:
            refuse(
                "--fields", form.fields[0], "--fields needs -k: it says by which fields several answers are compared"
            )
        if form.calibrator is not None:
            refuse("--calibrator", form.calibrator_file, "--calibrator needs -k: one answer has no agreement to go by")
        return LLMTool(ASK, models, output_type=form.schema)
    if k > MAX_K:
        refuse("-k", k, f"ask once, or at most {MAX_K} times")
    return LLMBundleTool(
        ASK, models, output_type=form.schema, k=k, fields=form.fields or None, calibrator=form.calibrator
    )
