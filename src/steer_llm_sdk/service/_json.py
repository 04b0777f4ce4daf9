"""The JSON of the service: values that are plain already, on their way into the table or out of the door."""

from __future__ import annotations

import json
from typing import Any

import orjson


def written(value: Any) -> str:
    """Where the fast encoder knows no way, as for an integer of more than 64 bits, the other one has it."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value)
