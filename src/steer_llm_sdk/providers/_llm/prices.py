"""List prices, from the table that comes with genai-prices; nothing is fetched. Unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Any

from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, PriceCalculation, StartDateConstraint

from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers._worst_case import input_tokens, max_tokens_of
from steer_llm_sdk.providers.base import ModelRequest
from steer_llm_sdk.providers.simulated.recording import POOL, shipped_recording

Pricing = Callable[[int, int], float]
"""USD for so many input and output tokens."""

_PRICED = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


def worst_case(request: ModelRequest, endpoint: Endpoint, pricing: Pricing | None) -> Amount:
    """The most a request can take. `cost_usd` None: the price is unknown."""
    usage = {"input_tokens": input_tokens(request), "output_tokens": max_tokens_of(request, endpoint.model)}
    costs = [cost_of(usage, model, endpoint, pricing, recorded=endpoint.recorded) for model in _answering(endpoint)]
    known = [cost for cost in costs if cost is not None]
    return Amount(sum(usage.values()), max(known, default=None))


def _answering(endpoint: Endpoint) -> Iterable[str]:
    """The models of which one will answer."""
    if endpoint.recorded and endpoint.model == POOL:
        return shipped_recording().models
    return (endpoint.model,)


def cost_of(
    usage: Mapping[str, Any], model: str, endpoint: Endpoint, pricing: Pricing | None, *, recorded: bool
) -> float | None:
    """USD for a normalised usage; the declared price before the list's. None where usage or price is unknown."""
    if "input_tokens" not in usage or "output_tokens" not in usage:
        return None
    if pricing is not None:
        return pricing(usage["input_tokens"], usage["output_tokens"])
    if endpoint.local and not recorded:
        return None
    counts = Usage(**{name: usage[name] for name in _PRICED if name in usage})
    try:
        return float(_listed(counts, model, endpoint, recorded).total_price)
    except (LookupError, ValueError):
        return None


def _listed(counts: Usage, model: str, endpoint: Endpoint, recorded: bool) -> PriceCalculation:
    """Priced by the API that answers; a recorded answer as the model's maker prices it. LookupError where unknown."""
    if recorded:
        return calc_price(counts, model)
    if endpoint.official:
        return calc_price(counts, model, provider_id=endpoint.wire)
    return calc_price(counts, model, provider_api_url=endpoint.base_url)


def newest_price() -> date | None:
    """The day of the newest price change in the table, not counting those still to come."""
    days = [
        condition.constraint.start_date
        for provider in get_snapshot().providers
        for model in provider.models
        if not isinstance(model.prices, ModelPrice)
        for condition in model.prices
        if isinstance(condition.constraint, StartDateConstraint)
    ]
    return max((day for day in days if day <= date.today()), default=None)
