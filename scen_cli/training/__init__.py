"""Stage 1 for records, here or in other processes: experts come out, nothing is written."""
