"""Measuring: contestants that take turns, what they are given, and result files that say where they come from."""
