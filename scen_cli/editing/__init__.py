"""The method: experts (stage 1), indexing neurons (stage 2). Knows tensors, not files."""
