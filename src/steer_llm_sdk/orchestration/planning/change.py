"""Has a tool changed? Two windows of its rewards in one cell are compared: the last ones, and all before.

A tool that gets silently worse would be believed for as long as its past is long; forgetting everything a little, all
the time, costs more than it gains (measured: 4 points). So each cell is watched, and only the one that changed forgets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

BLOCK = 10
RECENT = 5
"""The last window is so many blocks."""
ALARM = 4.0
"""Standard errors between the windows. By chance it is met about once in 16,000 comparisons, one per block."""


class Watch(NamedTuple):
    """What was seen before the blocks, the last blocks (sums of BLOCK rewards, oldest first), and the one begun."""

    old_runs: int = 0
    old_sum: float = 0.0
    blocks: tuple[float, ...] = ()
    begun_runs: int = 0
    begun_sum: float = 0.0


def watched(watch: Watch, reward: float) -> tuple[Watch, bool]:
    """The watch after one more reward, and whether the last window differs from all before. Then only it is kept."""
    runs, total = watch.begun_runs + 1, watch.begun_sum + reward
    if runs < BLOCK:
        return watch._replace(begun_runs=runs, begun_sum=total), False
    old_runs, old_sum, blocks = watch.old_runs, watch.old_sum, (*watch.blocks, total)
    if len(blocks) > RECENT:
        old_runs, old_sum, blocks = old_runs + BLOCK, old_sum + blocks[0], blocks[1:]
    if _differs(old_runs, old_sum, len(blocks) * BLOCK, sum(blocks)):
        return Watch(0, 0.0, blocks), True
    return Watch(old_runs, old_sum, blocks), False


def kept(watch: Watch) -> tuple[int, float]:
    """Runs and rewards of the last window."""
    return len(watch.blocks) * BLOCK + watch.begun_runs, sum(watch.blocks) + watch.begun_sum


def _differs(old_runs: int, old_sum: float, new_runs: int, new_sum: float) -> bool:
    if old_runs < RECENT * BLOCK:
        return False
    pooled = (old_sum + new_sum + 1) / (old_runs + new_runs + 2)
    error = math.sqrt(pooled * (1 - pooled) * (1 / old_runs + 1 / new_runs))
    return abs(old_sum / old_runs - new_sum / new_runs) > ALARM * error
