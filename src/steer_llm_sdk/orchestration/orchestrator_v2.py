"""The name that `reliable_orchestrator` had; importing it says so."""

from steer_llm_sdk._names import renamed

raise renamed("orchestrator_v2")
