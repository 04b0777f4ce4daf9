"""`python -m steer_llm_sdk.cli`: the same as `steer-llm`."""

from steer_llm_sdk.cli.main import main

main()
