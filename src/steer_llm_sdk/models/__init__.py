"""Words: events and usage."""
