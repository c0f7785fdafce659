"""Stage 2 of the paper (section 3.3): an indexing neuron recognises the prompts of one edit."""
