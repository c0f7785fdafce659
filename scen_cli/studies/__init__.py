"""Studies: the paper's tables and figures on any base, and the fine-tuning its ZsRE protocol begins with."""
