"""The embedded demo base: a small world of invented facts, the Llama trained on it, and its training script."""
