"""A sweep over models, data sets, arms and seeds: run cell by cell, compared, reported."""
