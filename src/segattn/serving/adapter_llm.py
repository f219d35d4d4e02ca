"""vLLM's `LLM` that answers with one LoRA adapter unless told otherwise."""

from typing import Any

from vllm import LLM
from vllm.lora.request import LoRARequest

from segattn.errors import SegmentAttentionError
from segattn.serving.checkpoint import Target

__all__ = ["AdapterLLM", "make_llm"]


class AdapterLLM(LLM):
    """An `LLM` whose requests run with `adapter` unless they name another `lora_request`."""

    adapter: LoRARequest

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as `LLM.generate` does."""
        return super().generate(*args, **self._with_adapter(kwargs))

    def chat(self, *args: Any, **kwargs: Any) -> Any:
        """Answer chats as `LLM.chat` does."""
        return super().chat(*args, **self._with_adapter(kwargs))

    def _with_adapter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "lora_request": kwargs.get("lora_request") or self.adapter}


def make_llm(target: Target, arguments: dict[str, Any]) -> LLM:
    """Make the `LLM` of a target; what our own checks refuse is raised as such.

    Raises:
        SegmentAttentionError: see `segattn.serving.llm`.
    """
    try:
        if target.adapter is None:
            return LLM(**arguments)
        engine = AdapterLLM(**arguments)
    except ValueError as error:
        # vLLM's config is a pydantic class, which wraps errors.
        for item in error.errors() if hasattr(error, "errors") else ():
            cause = item.get("ctx", {}).get("error")
            if isinstance(cause, SegmentAttentionError):
                raise cause from error
        raise
    engine.adapter = LoRARequest(str(target.name), 1, target.adapter)
    return engine
