"""What needs the extra `llm`. Importing any module in here costs seconds: only adapters do, when first asked."""
