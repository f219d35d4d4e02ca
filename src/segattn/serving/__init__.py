"""Segment attention served by vLLM: a plugin that subclasses its platform, scheduler, worker and model runner.

Importing this room needs neither vLLM nor transformers: vLLM loads it in every process of every server on a machine
where segattn is installed, also for ordinary models.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segattn.serving.offline import llm as llm

__all__ = ["llm"]


def __getattr__(name: str) -> Any:
    """Import `llm`, and vLLM with it, when it is first used."""
    if name != "llm":
        raise AttributeError(f"module 'segattn.serving' has no attribute {name!r}; it offers: llm")
    from segattn.serving.offline import llm

    return llm
