"""Stage 1 of the paper (section 3.2): train an expert, a replacement of `down_proj`, for each edit."""
