"""`steer-llm`, and `python -m steer_llm_sdk.cli`: the same."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        # It takes half a second to load, in which somebody may have thought better of it.
        from steer_llm_sdk.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("steer-llm: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
