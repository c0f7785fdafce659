"""The embedded default: a small fact world, the Llama trained on it, and the script that trained it."""
