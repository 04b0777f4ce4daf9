"""The HTTP service: `steer-llm serve`, or `create_app` for any ASGI server."""

from __future__ import annotations

from importlib.util import find_spec

from steer_llm_sdk._install import install_line

if find_spec("fastapi") is None:
    raise ImportError(f"the service needs the extra `service`: {install_line('service')}")

from steer_llm_sdk.service._server import PatientProtocol
from steer_llm_sdk.service.app import create_app
from steer_llm_sdk.service.guard import Limits
from steer_llm_sdk.service.keys import Key, KeyRing, new_key

__all__ = ["Key", "KeyRing", "Limits", "PatientProtocol", "create_app", "new_key"]
