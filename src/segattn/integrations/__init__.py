"""Segments in trainers of other projects. Import the module of the trainer that you use."""
