"""The embedded demo base: a small world of invented facts, and the Llama trained on it."""
