"""Every name that telemetry writes, in one place: the conventions they follow are still in flux.

`gen_ai.*` are those of OpenTelemetry's semantic conventions for generative AI as of November 2026, all of them at the
stage "Development". What they have no name for is under `steer.`.
"""

# Spans: names and attributes
INVOKE_WORKFLOW = "invoke_workflow"
PLAN = "plan"
EXECUTE_TOOL = "execute_tool"
ATTEMPT = "attempt"

OPERATION = "gen_ai.operation.name"
WORKFLOW = "gen_ai.workflow.name"
TOOL = "gen_ai.tool.name"
PROVIDER = "gen_ai.provider.name"
MODEL = "gen_ai.request.model"
USED = {"input": "gen_ai.usage.input_tokens", "output": "gen_ai.usage.output_tokens"}
"""Tokens, by the value of TOKEN_TYPE."""
ARGUMENTS = "gen_ai.tool.call.arguments"
RESULT = "gen_ai.tool.call.result"
ERROR_TYPE = "error.type"

REQUEST_ID = "steer.request_id"
TRACE_ID = "steer.trace_id"
TENANT = "steer.tenant"
STATUS = "steer.status"
REPLAYED = "steer.replayed"
COST = "steer.cost_usd"
TOOL_VERSION = "steer.tool.version"
PLAN_REASON = "steer.plan.reason"
REPLICATE = "steer.replicate_id"
OUTCOME = "steer.outcome"
RETRY_AFTER = "steer.retry_after"

# Metrics. Durations in seconds, cost in USD.
WORKFLOW_DURATION = "gen_ai.invoke_workflow.duration"
TOOL_DURATION = "gen_ai.execute_tool.duration"
TOKENS = "gen_ai.client.token.usage"
TOKEN_TYPE = "gen_ai.token.type"
ATTEMPTS = "steer.attempts"
SPENT = "steer.cost"
RETRIES = "steer.retries"
FALLBACKS = "steer.fallbacks"
HEDGES = "steer.hedges"
REPLAYS = "steer.idempotency.hits"
BREAKER_CHANGES = "steer.breaker.changes"
BREAKER_STATE = "steer.breaker.state"
BUDGET_SPENT = "steer.budget.spent"
BUDGET_LIMIT = "steer.budget.limit"
QUEUE_WAIT = "steer.queue.wait"
QUEUE_DEPTH = "steer.queue.depth"
STABILITY = "steer.evidence.stability"

STATE = "steer.breaker.state"
BUDGET = "steer.budget"
UNIT = "steer.unit"

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""The buckets that the conventions give for durations."""
