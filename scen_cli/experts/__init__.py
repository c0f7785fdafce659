"""Stage 1 of the paper (section 3.2): an expert is a `down_proj` trained for one edit."""
