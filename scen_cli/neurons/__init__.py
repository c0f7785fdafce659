"""Stage 2 of the paper (section 3.3): indexing neurons, the guard prompts behind them, and the activation threshold."""
