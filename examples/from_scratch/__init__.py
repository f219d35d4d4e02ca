"""Small decoders trained from zero, causally and under segments, on a task where looking ahead matters."""
