"""What may be put in scen's way, by mistake or on purpose, and how it must take it."""
