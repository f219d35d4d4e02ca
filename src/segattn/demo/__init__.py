"""The demonstration: a task of its own, the experiment on it and its report."""
