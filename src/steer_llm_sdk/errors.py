"""Every exception of the package.

Exception
├── OrchestratorError
│   ├── ToolExecutionError     a tool failed; .original_error says why
│   ├── BudgetExceeded         time, tokens or cost; .output holds what was finished, or was tried
│   ├── ConflictError          an idempotency key came back with another request
│   ├── StoreUnavailable       a keyed run could not reach its store
│   ├── StoreTooNew            a newer version of this library wrote into the store
│   ├── AllToolsFailed         .failures holds every cause, in order
│   ├── InvalidRequest         (also ValueError) .field, .given and what would do
│   ├── ToolNotFound           (also ValueError) .available
│   │   └── VersionUnavailable  the version is withdrawn, or not for this caller; .successor
│   ├── NoEligibleTool         (also ValueError) .reasons, one per tool
│   └── Rejected               a policy said no: the tool did not run
│       ├── CircuitOpen        (also ProviderError)
│       ├── InFlight           the same keyed request is under way, and this one was not to wait
│       ├── QueueFull          (also RateLimited) too many calls wait for this provider already
│       ├── WaitTooLong        (also RateLimited) its turn would come after the deadline or `max_wait`
│       └── AttemptsUsedUp     max_total_attempts is reached
└── ProviderError              .category, .status_code, .retry_after, .request_id
    ├── AuthenticationFailed   ├── RateLimited         ├── ConnectionFailed
    ├── PermissionDenied       ├── QuotaExhausted      ├── ProviderTimeout
    ├── ModelNotFound          ├── ContentFiltered     └── BadResponse
    ├── RequestRejected        ├── ProviderConflict        ├── TruncatedStream
    │   └── ContextWindowExceeded                          └── InvalidOutput
    └── ProviderUnavailable
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from steer_llm_sdk.models.quota import RateLimitStatus


class ErrorCategory(str, Enum):
    """What an error says about the call. The retry policy and the breaker decide by it."""

    AUTHENTICATION = "authentication"
    RATE_LIMIT = "rate_limit"
    QUOTA = "quota_exhausted"
    VALIDATION = "validation"
    SERVER_ERROR = "server_error"
    NETWORK = "network"
    TIMEOUT = "timeout"
    BAD_RESPONSE = "bad_response"
    CONTENT_FILTER = "content_filter"
    NOT_FOUND = "not_found"
    PERMISSION_DENIED = "permission_denied"
    CONFLICT = "conflict"
    UNKNOWN = "unknown"


RETRYABLE = frozenset(
    {
        ErrorCategory.RATE_LIMIT,
        ErrorCategory.SERVER_ERROR,
        ErrorCategory.NETWORK,
        ErrorCategory.TIMEOUT,
        ErrorCategory.BAD_RESPONSE,
    }
)

_OF_STATUS = {
    401: ErrorCategory.AUTHENTICATION,
    402: ErrorCategory.QUOTA,
    403: ErrorCategory.PERMISSION_DENIED,
    404: ErrorCategory.NOT_FOUND,
    408: ErrorCategory.TIMEOUT,
    409: ErrorCategory.CONFLICT,
    425: ErrorCategory.SERVER_ERROR,
    429: ErrorCategory.RATE_LIMIT,
}


def status_of(given: object) -> int | None:
    """An HTTP status, also as a text or a float; None for what is none."""
    if isinstance(given, (str, float)):
        try:
            given = int(given)
        except (ValueError, OverflowError):
            return None
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def category_of_status(status: int | None) -> ErrorCategory:
    """The category of an HTTP status; `unknown` for none, and for what is no error."""
    status = status_of(status)
    if status is None or status < 400:
        return ErrorCategory.UNKNOWN
    if status in _OF_STATUS:
        return _OF_STATUS[status]
    return ErrorCategory.VALIDATION if status < 500 else ErrorCategory.SERVER_ERROR


def message_of(error: BaseException) -> str:
    """What an error says, or its type where it says nothing, or raises when it is asked."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__


class _Portable(Exception):
    """An exception that can be copied and pickled with all that it has, whatever its __init__ asks for. In a pickle,
    what cannot be pickled is left out: an exception has another with its text in its place, anything else None."""

    def __copy__(self) -> BaseException:
        return _rebuilt(type(self), self.args, vars(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), tuple(map(_portable, self.args)), _portable(vars(self)))


def _rebuilt(kind: type[BaseException], args: tuple[Any, ...], own: Mapping[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    vars(error).update(own)
    return error


def _portable(value: Any) -> Any:
    import pickle  # Only those who send an error elsewhere pay for it.

    try:
        pickle.loads(pickle.dumps(value))  # There are exceptions that can be written and not be read again.
        return value
    except Exception:
        if isinstance(value, dict):
            return {key: _portable(item) for key, item in value.items()}
        if isinstance(value, BaseException):
            return OrchestratorError(f"{type(value).__name__}: {message_of(value)}")
        return None


class OrchestratorError(_Portable):
    """The root of what orchestration raises."""


class ToolExecutionError(OrchestratorError):
    """A tool failed. `is_retryable`, where it is not given, is that of `original_error`."""

    def __init__(
        self,
        tool_name: str,
        original_error: BaseException,
        is_retryable: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"Tool '{tool_name}' failed: {message_of(original_error)}")
        self.tool_name = tool_name
        self.original_error = original_error
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.declared_retryable = is_retryable

    @property
    def is_retryable(self) -> bool:
        if self.declared_retryable is not None:
            return self.declared_retryable
        cause = self.original_error
        return cause.is_retryable if isinstance(cause, (ProviderError, ToolExecutionError)) else False


def _duration(seconds: float) -> str:
    """For people: "59 s", "30 min", "20 h 47 min", "12 days"."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 2880 else f"{minutes // 1440} days"


class BudgetExceeded(OrchestratorError):
    """A limit was met. `limit` and `actual` are ms, tokens or USD by `budget_type`.

    `output` is the finished OrchestrationOutput where the work was done before the excess was known. Where the time was
    up after something had been sent, it is a failed one, with every attempt and what is known of its cost. `budget` is
    the name of a shared budget, None for the run's own; `resets_in` the seconds until its next window, None where it
    has none. `overrun`: the budget is closed because a call took more than was reserved for it.
    """

    def __init__(
        self,
        budget_type: str,
        limit: float,
        actual: float,
        affected_agents: Sequence[str] | None = None,
        *,
        output: Any = None,
        budget: str | None = None,
        resets_in: float | None = None,
        overrun: bool = False,
    ) -> None:
        unit, digits = (" ms", _ms) if budget_type == "time" else ("", _digits)
        which = f"{budget_type} budget" if budget is None else f"{budget_type} budget '{budget}'"
        says = f"exceeded: {digits(actual)}{unit} > {digits(limit)}{unit}"
        if overrun and actual <= limit:
            says = f"closed: a call took more than was reserved for it; the limit is {digits(limit)}{unit}"
        anew = "" if resets_in is None else f"; it starts anew in {_duration(resets_in)}"
        super().__init__(f"{which} {says}{anew}")
        self.budget_type = budget_type
        self.limit = limit
        self.actual = actual
        self.affected_agents = list(affected_agents or [])
        self.output = output
        self.budget = budget
        self.resets_in = resets_in
        self.overrun = overrun

    @property
    def retry_after(self) -> float | None:
        """`resets_in`, under the name that refusals have for it."""
        return self.resets_in


class ConflictError(OrchestratorError):
    """One idempotency key, two different requests. Use a new key, or send the first request again."""

    def __init__(self, idempotency_key: str, message: str | None = None) -> None:
        says = (
            f"Idempotency key '{idempotency_key}' was used with different request parameters; give this one a new key"
        )
        super().__init__(message or says)
        self.idempotency_key = idempotency_key
        self.key = idempotency_key


class StoreUnavailable(OrchestratorError):
    """The store of a keyed run did not answer, so the run could have been bought twice. It was not started."""


class StoreTooNew(OrchestratorError):
    """The store was written to by a newer version of this library, and what it says could be misread."""

    def __init__(self, where: str, what: str, version: int, known: int) -> None:
        super().__init__(
            f"{where}: {what} has version {version}, and this library reads up to version {known}; "
            "upgrade it, or use another store"
        )
        self.version = version
        self.known = known


class AllToolsFailed(OrchestratorError):
    """Every tool of the plan failed or refused. `failures` maps each to its error, in the order they were tried."""

    def __init__(self, failures: Mapping[str, BaseException]) -> None:
        self.failures = dict(failures)
        super().__init__(said_once({name: message_of(error) for name, error in self.failures.items()}))


def said_once(messages: Mapping[str, str]) -> str:
    """What each has to say, in one line: "all 5: down", or "r1, r3: down; r2: late"."""
    names: dict[str, list[str]] = {}
    for name, message in messages.items():
        names.setdefault(message, []).append(name)
    if len(names) == 1 and len(messages) > 1:
        return f"all {len(messages)}: {next(iter(names))}"
    return "; ".join(f"{', '.join(those)}: {message}" for message, those in names.items())


class _Missing:
    def __reduce__(self) -> str:
        return "MISSING"  # There is one of it.

    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()
"""As `given` of an InvalidRequest: nothing was, which is not None."""


class InvalidRequest(OrchestratorError, ValueError):
    """What was asked cannot be served: `field`, what was `given`, and as `remedy` what would do."""

    def __init__(self, field: str, given: object, remedy: str) -> None:
        said = f"{field} is missing" if given is MISSING else f"{field}: {shown(given)} cannot be used"
        super().__init__(f"{said}; {remedy}")
        self.field = field
        self.given = given
        self.remedy = remedy


def _digits(number: float) -> str:
    try:
        return f"{number:.9g}"
    except OverflowError:  # an integer beyond every float
        return f"about 10**{int(number).bit_length() * 3 // 10}"


def _ms(number: float) -> str:
    return f"{number:.4g}" if number < 1000 else f"{number:.0f}"


def a_kind(value: object) -> str:
    """Of what type it is, with its article."""
    name = type(value).__name__
    if name == "bytes":
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def shown(value: object) -> str:
    """A value in a message."""
    try:
        text = repr(value)
    except Exception:  # nested too deep, too many digits, or a __repr__ that fails
        return a_kind(value)
    return text if len(text) <= 80 else text[:77] + "..."


class ToolNotFound(OrchestratorError, ValueError):
    """No tool of that name. `available` lists the names there are."""

    def __init__(self, tool_name: str, available: Iterable[str] = ()) -> None:
        self.tool_name = tool_name
        self.available = sorted(available)
        super().__init__(f"Tool '{tool_name}' not found. Available tools: {', '.join(self.available) or 'none'}")


class VersionUnavailable(ToolNotFound):
    """The versions that would do are there, and the caller cannot have them. `successor` is what to ask for instead."""

    def __init__(self, tool_name: str, reason: str, successor: str | None = None) -> None:
        super().__init__(tool_name)
        self.reason = reason
        self.successor = successor
        self.args = (reason,)


class NoEligibleTool(OrchestratorError, ValueError):
    """No tool can serve the request. `reasons` has one sentence per tool."""

    def __init__(self, reasons: Mapping[str, str] | None = None) -> None:
        self.reasons = dict(reasons or {})
        detail = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
        super().__init__(f"No tools available for planning{': ' + detail if detail else '; register one first'}")


class ProviderError(_Portable):
    """A model provider, or the way to it, failed.

    `retry_after` is what the server asked for, in seconds. `usage` is what a failed call is known to have spent,
    `rate_limit` what the answer said of the provider's limits.
    `is_retryable` follows from the category unless somebody sets it on the instance; then that is believed.
    """

    CATEGORY: ClassVar[ErrorCategory | None] = None

    # What one says of itself that was derived, and never came to the __init__ below.
    message: str = ""
    provider: str = "unknown"
    status_code: int | None = None
    retry_after: float | None = None
    request_id: str | None = None
    code: str | None = None
    original_error: BaseException | None = None
    usage: Mapping[str, Any] = MappingProxyType({})
    rate_limit: RateLimitStatus | None = None
    declared_retryable: bool | None = None

    def __init__(
        self,
        message: str,
        provider: str,
        status_code: int | None = None,
        retry_after: float | None = None,
        *,
        request_id: str | None = None,
        code: str | None = None,
        original_error: BaseException | None = None,
        usage: Mapping[str, Any] | None = None,
        rate_limit: RateLimitStatus | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.provider = provider
        self.status_code = status_of(status_code)
        self.retry_after = retry_after
        self.request_id = request_id
        self.code = code
        self.original_error = original_error
        self.usage = dict(usage or {})
        self.rate_limit = rate_limit
        self.declared_retryable = None

    @property
    def category(self) -> ErrorCategory:
        return self.CATEGORY or category_of_status(self.status_code)

    @property
    def is_retryable(self) -> bool:
        if self.declared_retryable is not None:
            return self.declared_retryable
        # A 409 is worth another try only where the server said when.
        return self.category in RETRYABLE or (self.category is ErrorCategory.CONFLICT and self.retry_after is not None)

    @is_retryable.setter
    def is_retryable(self, value: bool | None) -> None:
        self.declared_retryable = value


class AuthenticationFailed(ProviderError):
    CATEGORY = ErrorCategory.AUTHENTICATION


class PermissionDenied(ProviderError):
    CATEGORY = ErrorCategory.PERMISSION_DENIED


class ModelNotFound(ProviderError):
    CATEGORY = ErrorCategory.NOT_FOUND


class RequestRejected(ProviderError):
    """The provider looked at the request and will not serve it: sending it again changes nothing."""

    CATEGORY = ErrorCategory.VALIDATION


class ContextWindowExceeded(RequestRejected):
    """The request is longer than the model can read."""


class RateLimited(ProviderError):
    CATEGORY = ErrorCategory.RATE_LIMIT


class QuotaExhausted(ProviderError):
    """Credit or plan used up: unlike a rate limit, waiting does not help."""

    CATEGORY = ErrorCategory.QUOTA


class ContentFiltered(ProviderError):
    CATEGORY = ErrorCategory.CONTENT_FILTER


class ProviderConflict(ProviderError):
    CATEGORY = ErrorCategory.CONFLICT


class ProviderUnavailable(ProviderError):
    """5xx and 529."""

    CATEGORY = ErrorCategory.SERVER_ERROR


class ConnectionFailed(ProviderError):
    """The request was not sent, or the connection broke. `sent` False means it cannot have been billed."""

    CATEGORY = ErrorCategory.NETWORK

    def __init__(self, message: str, provider: str, *, sent: bool = True, **details: Any) -> None:
        super().__init__(message, provider, **details)
        self.sent = sent


class ProviderTimeout(ProviderError):
    """Silence for longer than was allowed. The call may have been billed."""

    CATEGORY = ErrorCategory.TIMEOUT


class BadResponse(ProviderError):
    """An answer that is none: malformed JSON, HTML, no choices."""

    CATEGORY = ErrorCategory.BAD_RESPONSE


class TruncatedStream(BadResponse):
    """A stream that stopped without its end marker."""


class InvalidOutput(BadResponse):
    """A model answered, and has not the form that was asked for after it was told what is wrong, or was cut off.

    `answer` is its text. Not retryable: what it said was paid for, and asked once more it would say no better.
    """

    def __init__(self, message: str, provider: str, *, answer: str, **details: Any) -> None:
        super().__init__(message, provider, **details)
        self.answer = answer
        self.declared_retryable = False


class Rejected(OrchestratorError):
    """A policy said no, and the tool did not run. `retry_after` is in seconds, None where nobody knows."""

    retry_after: float | None = None


class CircuitOpen(Rejected, ProviderError):
    """The provider's circuit breaker is open. A refusal, not a failure: it counts against nobody."""

    CATEGORY = ErrorCategory.SERVER_ERROR

    def __init__(self, target: str, retry_after: float | None = None) -> None:
        when = "" if retry_after is None else f"; a probe is due in {retry_after:.3g} s"
        ProviderError.__init__(
            self, f"Circuit breaker {target} is OPEN{when}", target, status_code=503, retry_after=retry_after
        )
        self.target = target


class InFlight(Rejected):
    """The same keyed request is under way elsewhere, and `on_duplicate="raise"` says not to wait for it."""

    def __init__(self, idempotency_key: str, retry_after: float) -> None:
        super().__init__(
            f"The request of idempotency key '{idempotency_key}' is under way; ask again in {retry_after:.3g} s"
        )
        self.idempotency_key = idempotency_key
        self.key = idempotency_key
        self.retry_after = retry_after


class QueueFull(Rejected, RateLimited):
    """So many calls wait for the provider that no more are let in: nothing was sent, and a fallback is tried."""

    def __init__(self, target: str, max_queue: int, retry_after: float | None = None) -> None:
        RateLimited.__init__(
            self,
            f"{target}: its limit is reached and {max_queue} calls wait already (max_queue); "
            "raise the limit, or send less at once",
            target,
            retry_after=retry_after,
        )
        self.target = target


class WaitTooLong(Rejected, RateLimited):
    """The rate limit would let the call go only after its run's deadline or `max_wait`: nothing was sent."""

    def __init__(self, target: str, retry_after: float | None = None) -> None:
        when = "no place came free in time" if retry_after is None else f"the next call may go in {retry_after:.3g} s"
        RateLimited.__init__(
            self,
            f"{target}: {when}, and neither the run's deadline nor max_wait allows for more",
            target,
            retry_after=retry_after,
        )
        self.target = target


class AttemptsUsedUp(Rejected):
    """The run has made all the upstream calls it may make, across retries, fallbacks and hedges."""

    def __init__(self, attempts: int) -> None:
        super().__init__(f"The run has made all {attempts} upstream calls that max_total_attempts allows")
        self.attempts = attempts


_OF_CATEGORY: Mapping[ErrorCategory, type[ProviderError]] = {
    ErrorCategory.AUTHENTICATION: AuthenticationFailed,
    ErrorCategory.PERMISSION_DENIED: PermissionDenied,
    ErrorCategory.QUOTA: QuotaExhausted,
    ErrorCategory.NOT_FOUND: ModelNotFound,
    ErrorCategory.CONFLICT: ProviderConflict,
    ErrorCategory.TIMEOUT: ProviderTimeout,
    ErrorCategory.RATE_LIMIT: RateLimited,
    ErrorCategory.SERVER_ERROR: ProviderUnavailable,
    ErrorCategory.VALIDATION: RequestRejected,
}
_OF_CODE: Mapping[str, type[ProviderError]] = {
    "insufficient_quota": QuotaExhausted,
    "context_length_exceeded": ContextWindowExceeded,
    "content_filter": ContentFiltered,
    "content_policy_violation": ContentFiltered,
    "question_not_recorded": RequestRejected,
}


def error_of_status(status: int | None) -> type[ProviderError] | None:
    """What a provider's answer of this status is raised as; None for none, and for what is no error."""
    return _OF_CATEGORY.get(category_of_status(status))


def error_of_code(code: str | None) -> type[ProviderError] | None:
    """What a provider's own code is raised as, where it says more than the status beside it."""
    return None if code is None else _OF_CODE.get(code)
