"""Generation that shares finished segments between requests."""

from segattn.generation.errors import PrefixCacheError
from segattn.generation.prefix_cache import PrefixCache
from segattn.generation.requests import PrefixRequest
from segattn.generation.statistics import CacheStatistics

__all__ = ["CacheStatistics", "PrefixCache", "PrefixCacheError", "PrefixRequest"]
