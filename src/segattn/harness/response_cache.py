"""The harness's cache of responses (--use_cache). Its keys name neither model nor mask, so it is marked with them."""

from typing import Any

from segattn.errors import SegmentError

__all__ = ["check_response_cache"]

_KEY = "segattn"


def check_response_cache(responses: Any, run: dict[str, Any]) -> None:
    """Refuse a cache with responses of another model or mask; an empty one is marked as this run's.

    Args:
        responses: a mapping that persists (`SqliteDict`), or None for no cache.
        run: what the responses depend on, with "attention".

    Raises:
        SegmentError: it holds responses of another run, or, under segments, of one that is not known.
    """
    if responses is None:
        return
    if _KEY not in responses:
        if len(responses) == 0:
            responses[_KEY] = run
        elif run["attention"] == "segments":
            raise SegmentError(
                "the cache of --use_cache holds responses of a run that did not say how it attended; give another path"
            )
        return
    known = responses[_KEY]
    different = [f"{name} {known.get(name)!r}" for name in run if known.get(name) != run[name]]
    if different:
        raise SegmentError(
            f"the cache of --use_cache holds responses of another run ({', '.join(different)[:300]}); give another "
            "path, one for each model and mask"
        )
