"""Studies: the paper's tables and figures on any base, and the fine-tuning step of its ZsRE protocol."""

from collections.abc import Callable

ProgressCallback = Callable[[str, str], None]  # (line to print, pace), called after each item
