"""The command line, `steer-llm`. Answers go to stdout, everything else to stderr."""
