"""scen: correct what a large language model gets wrong, one fact at a time, without retraining it."""

__version__ = "0.1.0"
