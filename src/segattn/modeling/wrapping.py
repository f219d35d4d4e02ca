"""The class of an enabled model: its own class with a forward, generate and save that know segments.

An instance's class is swapped for a subclass of the same name, so that `generate()` and trainers, which read
signatures, accept `segment_ids`, and `save_pretrained` writes the same architecture name.
"""

import functools
import inspect
from typing import Any

from torch import Tensor

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling.forward_pass import begin, current, end
from segattn.modeling.hooks import call_arguments, parameter_names
from segattn.modeling.state import SegmentState
from segattn.segments import check_segment_ids

__all__ = ["enabled_class", "stock_class"]


def enabled_class(cls: type[Any], *, adapter: bool = False) -> type[Any]:
    """Return the subclass of `cls` that knows segments; `adapter` for a PEFT wrapper, which only saves."""
    key: Any = cls  # mypy does not take a metaclass for hashable
    return _enabled_class(key, adapter)


@functools.cache
def _enabled_class(cls: Any, adapter: bool) -> type[Any]:
    members: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_segattn_stock_class": cls,
        "__reduce_ex__": functools.partialmethod(_reduce, cls, adapter),
    }
    if adapter:
        members["save_pretrained"] = _adapter_save(cls)
    else:
        members["forward"] = _forward(cls)
        if hasattr(cls, "generate"):
            members["generate"] = _generate(cls)
            members["prepare_inputs_for_generation"] = _prepare_inputs(cls)
            for name in ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager"):
                if hasattr(cls, name):
                    members[name] = _refuse_continuous_batching(name)
    return type(cls.__name__, (cls,), members)


def _reduce(self: Any, cls: type[Any], adapter: bool, protocol: int) -> tuple[Any, ...]:  # noqa: ARG001
    """Copy and pickle by the stock class, for the class of an enabled model exists in no module."""
    return _new, (cls, adapter), self.__dict__


def _new(cls: type[Any], adapter: bool) -> Any:
    enabled = enabled_class(cls, adapter=adapter)
    return object.__new__(enabled)


def stock_class(cls: type[Any]) -> type[Any]:
    """Return the class an enabled class was made from; any other class itself."""
    stock: type[Any] = cls.__dict__.get("_segattn_stock_class", cls)
    return stock


def _with_segment_ids(signature: inspect.Signature) -> inspect.Signature:
    parameter = inspect.Parameter("segment_ids", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = list(signature.parameters.values())
    at_end = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    parameters.insert(len(parameters) - 1 if at_end else len(parameters), parameter)
    return signature.replace(parameters=parameters)


def _forward(cls: type[Any]) -> Any:
    signature, names = inspect.signature(cls.forward), parameter_names(cls.forward)

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, segment_ids: Tensor | None = None, **kwargs: Any) -> Any:
        # A plain call has begun its pass in a hook. Wrappers like LoRA's call `forward` itself: begin here.
        under_way = current()
        owner: object = self if under_way is not None and under_way.owner is self else object()
        try:
            if owner is not self:
                state: SegmentState = self._segattn_state
                begun = begin(state, owner)
                assert begun is not None
                state.settle(begun, call_arguments(names, args, {**kwargs, "segment_ids": segment_ids}), self.config)
            output = cls.forward(self, *args, **kwargs)
        except BaseException:  # also Ctrl-C, which torch's hooks do not see
            end(owner, succeeded=False)
            raise
        if owner is not self:
            end(owner, succeeded=True)
        return output

    forward.__signature__ = _with_segment_ids(signature)  # type: ignore[attr-defined]
    return forward


def _generate(cls: type[Any]) -> Any:
    @functools.wraps(cls.generate)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        state: SegmentState = self._segattn_state
        if not state.is_causal:
            _check_generation(self, args, kwargs)
            if kwargs.get("segment_ids") is None:
                kwargs["segment_ids"] = _prompt_segment_ids(state, args, kwargs)
        return cls.generate(self, *args, **kwargs)

    return generate


def _check_generation(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse generation options that would cut a segment or change the prompt."""
    config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or model.generation_config
    for option, why in (
        ("prefill_chunk_size", "it cuts the prompt without regard to segments"),
        ("token_healing", "it changes the prompt after its segments were found"),
    ):
        if kwargs.get(option) or getattr(config, option, None):
            raise UnsupportedModelError(
                f"generate({option}=...) cannot honour segments: {why}. Leave it out, or run causally on purpose "
                "with `with segattn.causal(model): ...`"
            )
    draft = kwargs.get("assistant_model")
    if draft is not None and "_segattn_state" not in vars(draft):
        raise UnsupportedModelError(
            f"the assistant model ({type(draft).__name__}) is not enabled, so it takes no segment_ids; call "
            "segattn.enable(assistant_model) too, or leave it out"
        )


def _prompt_segment_ids(state: SegmentState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Derive the segments from the whole prompt, once: what is generated later stays causal."""
    prompt = next((kwargs[name] for name in ("inputs", "input_ids") if kwargs.get(name) is not None), None)
    if prompt is None and args:
        prompt = args[0]
    if prompt is None or state.segmenter is None:
        missing = "no token ids to derive it from" if prompt is None else "the model was enabled without a segmenter"
        raise SegmentError(
            f"generate() got no segment_ids, and {missing}; pass segment_ids (batch, prompt length), or run causally "
            "on purpose with `with segattn.causal(model): ...`"
        )
    padding = kwargs.get("attention_mask")
    if padding is not None and padding.shape != prompt.shape:
        raise SegmentError(
            f"generate() got input_ids {tuple(prompt.shape)} with attention_mask {tuple(padding.shape)} and no "
            "segment_ids; pass the whole prompt (transformers skips what is cached), or segment_ids for all of it"
        )
    return state.segmenter.segment_ids(prompt, padding)


def _prepare_inputs(cls: type[Any]) -> Any:
    stock = cls.prepare_inputs_for_generation
    signature, names = inspect.signature(stock), parameter_names(stock)

    @functools.wraps(cls.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(
        self: Any, input_ids: Tensor, *args: Any, segment_ids: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepare a step; a static cache has its 4D mask built here, so the segments must be known here."""
        state: SegmentState = self._segattn_state
        length = call_arguments(names, (input_ids, *args), kwargs).get("next_sequence_length")
        new = input_ids.shape[1] if length is None else length
        in_prompt = segment_ids is not None and (new != 1 or kwargs.get("is_first_iteration", False))
        owner = object()
        begun = begin(state, owner)
        assert begun is not None
        try:
            if in_prompt and not state.is_causal:
                begun.segment_ids = check_segment_ids(segment_ids)  # type: ignore[arg-type]
            inputs: dict[str, Any] = stock(self, input_ids, *args, **kwargs)
        finally:
            end(owner, succeeded=False)
        inputs.pop("segment_ids", None)
        if in_prompt:
            inputs["segment_ids"] = segment_ids
        return inputs

    prepare_inputs_for_generation.__signature__ = _with_segment_ids(signature)  # type: ignore[attr-defined]
    return prepare_inputs_for_generation


def _refuse_continuous_batching(name: str) -> Any:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG001
        raise UnsupportedModelError(
            f"{name}() runs paged attention, which builds no mask from segments; use model.generate(**batch), or "
            "segattn.disable(model) to run causally"
        )

    refuse.__name__ = name
    return refuse


def _adapter_save(cls: type[Any]) -> Any:
    @functools.wraps(cls.save_pretrained)
    def save_pretrained(self: Any, save_directory: str, *args: Any, **kwargs: Any) -> Any:
        from segattn.modeling.checkpoint import write_segmentation

        result = cls.save_pretrained(self, save_directory, *args, **kwargs)
        write_segmentation(self, save_directory)
        return result

    return save_pretrained
