"""Events on their way to subscribers."""

from steer_llm_sdk.streaming.manager import EventManager

__all__ = ["EventManager"]
