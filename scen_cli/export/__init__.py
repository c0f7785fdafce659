"""Exports a project: a transformers folder, PEFT adapters, or a plain checkpoint."""
