"""The simplest bundle: k answers of a plain function, no model needed."""

from __future__ import annotations

import asyncio
import inspect
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.evidence import Calibrator
from steer_llm_sdk.evidence.policy import Fields
from steer_llm_sdk.orchestration._declared import names_of
from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle, json_value
from steer_llm_sdk.orchestration.tools._bundle import Job, ReplicateOutcome, Slot, make_bundle
from steer_llm_sdk.orchestration.tools.base import BundleOptions, BundleTool, checked_fields
from steer_llm_sdk.streaming.manager import EventManager

Function = Callable[[Any, int], Any | Awaitable[Any]]


def resampled_words(request: Any, seed: int) -> dict[str, Any]:
    """What a random half of a text's words says of the whole: its most frequent word, and how long its words are."""
    words = re.findall(r"\w+", _text_of(request).casefold())
    if not words:
        raise InvalidRequest("query", request, "there are no words in it; give some text")
    half = random.Random(seed).sample(words, (len(words) + 1) // 2)
    most = max(Counter(half).items(), key=lambda item: (item[1], item[0]))[0]
    return {"most_frequent_word": most, "mean_word_length": round(sum(map(len, half)) / len(half))}


class SimpleBundleTool(BundleTool):
    """Calls `function(request, seed)` k times with k seeds and compares what comes back.

        async def grade(request, seed):
            return {"grade": await my_model(request["query"], seed)}

        SimpleBundleTool(grade, name="grader")

    A function that is not async runs in a thread. One that raises makes its replicate invalid. Without a function,
    `resampled_words` reads the text k times, each time another half of it.

    `fields` are the dotted paths by which answers are compared, or policies by path; None compares everything.
    `price_usd` is what a call costs: another is made only if the run's budget has it. A `calibrator` made with `model=`
    the name of the tool turns agreement into trust. `options` are defaults for those of a run, such as `k`, `stop` or
    `latency`.
    """

    supports_early_stop = True
    supports_streaming = True

    def __init__(
        self,
        function: Function = resampled_words,
        *,
        name: str = "simple_bundle",
        version: str = "1.0.0",
        description: str = "Answers k times and reports where the answers agree",
        capabilities: Sequence[str] = (),
        provider: str | None = None,
        fields: Fields | None = None,
        price_usd: float | None = None,
        calibrator: Calibrator | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._function = function
        self._name = name
        self._fields = checked_fields(fields)
        self._price = price_usd
        self._calibrator = calibrator
        self.default_options = dict(options or {})
        self._read_options({})
        if price_usd is not None:
            self.resource_requirements = {"estimated_cost_per_run": price_usd}
        self.version = version
        self.description = description
        self.capabilities = names_of(name, "capabilities", capabilities)
        self.provider = provider

    @property
    def name(self) -> str:
        return self._name

    async def _execute_bundle(
        self, request: Any, options: BundleOptions, event_manager: EventManager | None
    ) -> EvidenceBundle:
        seed = options.extra.get("seed")
        return await make_bundle(
            Job(
                task=self._name,
                model=None,
                seeds=options.seeds or self._generate_seeds(options.k, seed if isinstance(seed, int) else 0),
                options=options,
                produce=partial(self._replicate, request),
                tell=partial(self.emit_event, event_manager),
                listened=event_manager is not None,
                fields=self._fields,
                price=self._price,
                calibrator=self._calibrator,
            )
        )

    async def _replicate(self, request: Any, slot: Slot) -> ReplicateOutcome:
        costs = {} if self._price is None else {self._name: self._price}
        try:
            return ReplicateOutcome(data=json_value(await self._call(request, slot.seed)), costs=costs)
        except BudgetExceeded as error:
            return ReplicateOutcome(over_budget=error)
        except Exception as error:
            return ReplicateOutcome(error=error, costs=costs)

    async def _call(self, request: Any, seed: int) -> Any:
        if inspect.iscoroutinefunction(self._function):
            return await self._function(request, seed)
        result = await asyncio.to_thread(self._function, request, seed)
        return await result if inspect.isawaitable(result) else result


def _text_of(request: Any) -> str:
    text = request.get("query", request.get("text", "")) if isinstance(request, dict) else request
    return text if isinstance(text, str) else ""
