"""Figures: Reliability, Generality and Locality, by generation, after the last edit."""
