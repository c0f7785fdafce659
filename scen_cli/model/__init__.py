"""The base model: load it, find its FFN, read keys, route prompts (`patch.py`, `routing.py`) and run experts."""
