"""The base model: loading it, finding its FFN, keys, and the patch that routes experts into it."""
