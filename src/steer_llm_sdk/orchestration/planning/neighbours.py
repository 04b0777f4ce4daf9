"""What is known from prompts that read alike: the extra `numpy`, for requests without a task type, or of a coarse one.

A prompt is its words and pairs of words, hashed, weighted by how rare they are (tf-idf, cosine). Of the K nearest known
prompts, w = exp(beta (cos - 0.55)), and with r the reward less what was expected of it without neighbours:

    p_m(x) = theta_gm + slope_m z(x) + sum w r / (n1 + sum w)

A prompt of another task type counts w^2 / 4: only where it reads nearly the same.

z is the standardised logarithm of the prompt's length; its slope is fitted per tool by ridge regression on r. Words are
hashed by CRC-32, the same in every process.
"""

from __future__ import annotations

import math
import re
import zlib
from array import array
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from steer_llm_sdk._install import install_line

_WORDS = re.compile(r"\w+")
_BUCKETS = 1 << 18
_COMMON = 0.3
"""Words in more than this share of many prompts tell nothing and cost most: they are passed over."""
_MANY = 2000
_RIDGE = 10.0


class Prompt(NamedTuple):
    """The hashes of a prompt's words and pairs of words, and the logarithm of its length in characters."""

    grams: frozenset[int]
    length: float

    @classmethod
    def of(cls, text: str) -> Prompt:
        words = [word.encode() for word in _WORDS.findall(text.lower())]
        pairs = (a + b" " + b for a, b in pairwise(words))
        grams = {zlib.crc32(gram) % _BUCKETS for gram in (*words, *pairs)}
        return cls(frozenset(grams), math.log1p(len(text)))


class Known(NamedTuple):
    """The reward of one tool for a known prompt of a task type."""

    task: str
    arm: str
    reward: float


class Nearby(NamedTuple):
    """What neighbours add to the expected reward of an arm, and how many runs they are worth."""

    shift: float = 0.0
    weight: float = 0.0
    support: float = 0.0


class Neighbours:
    """`k` nearest prompts count, with `beta` and `prior` as in the formula above. Of more than `capacity` known prompts
    the older half is forgotten."""

    def __init__(self, k: int = 50, beta: float = 5.0, prior: float = 5.0, capacity: int = 20_000) -> None:
        if k < 1 or capacity < 2 * k or beta < 0 or prior <= 0:
            raise ValueError(
                f"Neighbours(k={k}, beta={beta}, prior={prior}, capacity={capacity}): "
                "give k from 1, capacity of at least 2 k, beta from 0 and a positive prior"
            )
        self.k, self.beta, self.prior, self.capacity = k, beta, prior, capacity
        self._np = _numpy()
        self._slopes: dict[str, tuple[float, float]] = {}
        self._lengths = (0, 0.0, 0.0)
        self._clear()

    def _clear(self) -> None:
        self._prompts: list[Prompt] = []
        self._outcomes: list[dict[str, Known]] = []
        self._norms = array("f")
        self._rows: dict[int, array[int]] = {}
        self._aged = 0

    def add(self, prompt: Prompt, outcome: Known, expected: float, row: int | None = None) -> int:
        """An outcome of a prompt, known as `row` if it has others. `expected` is what was believed without it."""
        if row is None or row >= len(self._prompts) or self._prompts[row] is not prompt:
            row = self._append(prompt)
        self._outcomes[row][outcome.arm] = outcome
        z = self._standard(prompt.length)
        xr, xx = self._slopes.get(outcome.arm, (0.0, 0.0))
        self._slopes[outcome.arm] = (xr + z * (outcome.reward - expected), xx + z * z)
        return row

    def _append(self, prompt: Prompt) -> int:
        if len(self._prompts) >= self.capacity:
            self._forget_half()
        n, total, squares = self._lengths
        self._lengths = (n + 1, total + prompt.length, squares + prompt.length**2)
        row = len(self._prompts)
        self._index(prompt, {})
        # Words get commoner, so lengths grow old: with each new prompt those of two others are taken anew.
        for _ in range(min(2, row)):
            self._aged = (self._aged + 1) % row
            self._norms[self._aged] = self._norm(self._prompts[self._aged])
        return row

    def _index(self, prompt: Prompt, outcomes: dict[str, Known]) -> None:
        row = len(self._prompts)
        self._prompts.append(prompt)
        self._outcomes.append(outcomes)
        for gram in prompt.grams:
            rows = self._rows.get(gram)
            if rows is None:
                rows = self._rows[gram] = array("i")
            rows.append(row)
        self._norms.append(self._norm(prompt))

    def _forget_half(self) -> None:
        kept = list(zip(self._prompts, self._outcomes, strict=True))[len(self._prompts) // 2 :]
        self._clear()
        for prompt, outcomes in kept:
            self._index(prompt, outcomes)

    def _rarity(self, known: int) -> float:
        return math.log(len(self._prompts) / (1 + known)) + 1

    def _norm(self, prompt: Prompt) -> float:
        rows, log, total = self._rows, math.log, 1 + math.log(len(self._prompts))
        squares = 0.0
        for gram in prompt.grams:
            known = rows.get(gram)
            rarity = total - log(1 + (0 if known is None else len(known)))
            squares += rarity * rarity
        return math.sqrt(squares) or 1.0

    def _standard(self, length: float) -> float:
        n, total, squares = self._lengths
        if n < 2:
            return 0.0
        mean = total / n
        spread = math.sqrt(max(squares / n - mean * mean, 0.0))
        return max(-3.0, min(3.0, (length - mean) / spread)) if spread > 1e-9 else 0.0

    def near(self, prompt: Prompt, task: str, expected: Callable[[str, str], float]) -> Mapping[str, Nearby]:
        """By arm. `expected(task, arm)` is what is believed without neighbours."""
        z = self._standard(prompt.length)
        slopes = {arm: z * xr / (xx + _RIDGE) for arm, (xr, xx) in self._slopes.items()}
        sums: dict[str, list[float]] = {}
        known: dict[tuple[str, str], float] = {}
        for row, weight_of_alike in self._nearest(prompt):
            for of, arm, reward in self._outcomes[row].values():
                weight = weight_of_alike if of == task else weight_of_alike**2 / 4
                base = known.get((of, arm))
                if base is None:
                    base = known[of, arm] = expected(of, arm)
                z_of = self._standard(self._prompts[row].length)
                xr, xx = self._slopes[arm]
                residual = reward - base - z_of * xr / (xx + _RIDGE)
                found = sums.setdefault(arm, [0.0, 0.0, 0.0])
                found[0] += weight * residual
                found[1] += weight
                found[2] += weight * weight
        nearby = {arm: Nearby(shift) for arm, shift in slopes.items()}
        for arm, (total, weight, squares) in sums.items():
            shift = slopes.get(arm, 0.0) + total / (self.prior + weight)
            nearby[arm] = Nearby(shift, weight, weight * weight / squares if squares else 0.0)
        return nearby

    def _nearest(self, prompt: Prompt) -> list[tuple[int, float]]:
        np, count = self._np, len(self._prompts)
        if not count:
            return []
        scores = np.zeros(count, np.float32)
        most = max(_MANY, int(_COMMON * count))
        for gram in prompt.grams:
            rows = self._rows.get(gram)
            if rows is not None and len(rows) <= most:
                scores[np.frombuffer(rows, np.int32)] += self._rarity(len(rows)) ** 2
        scores /= np.frombuffer(self._norms, np.float32) * self._norm(prompt)
        k = min(self.k, count)
        rows_ = np.argpartition(scores, count - k)[count - k :]
        weights = np.exp(self.beta * (np.minimum(scores[rows_], 1.0) - 0.55))
        return list(zip(rows_.tolist(), weights.tolist(), strict=True))


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise ImportError(f"neighbours need numpy: {install_line('numpy')}") from error
    return numpy
