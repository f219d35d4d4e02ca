"""What every trainer of this room asks of its model and options before TRL sees them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling import is_enabled, segmenter_of
from segattn.training.parallelism import check_parallelism

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["check_options", "copy_of", "segmenter_to_train_with", "uncut"]


def segmenter_to_train_with(model: Any) -> "Segmenter":
    """Return the segmenter of an enabled model, which tells the segments of every prompt.

    Raises:
        UnsupportedModelError: the model is a name, or not enabled.
        SegmentError: it has no segmenter, or one without a tokenizer.
    """
    if isinstance(model, str) or not is_enabled(model):
        raise UnsupportedModelError(
            f"the model is {model if isinstance(model, str) else type(model).__name__}, which is not enabled; load it "
            "and call segattn.enable(model, segmenter) before the trainer is made"
        )
    segmenter = segmenter_of(model)
    if segmenter is None or segmenter.tokenizer is None:
        lacking = "was enabled without a segmenter" if segmenter is None else "has a segmenter without a tokenizer"
        raise SegmentError(
            f"the model {lacking}, which tokenizes the prompts and tells their segments; call "
            "segattn.enable(model, segattn.Segmenter.from_tokenizer(tokenizer))"
        )
    return segmenter


def check_options(options: dict[str, Any], segmenter: "Segmenter") -> None:
    """Refuse what would drop the mask or tokenize past the segmenter; the tokenizer is the segmenter's by default.

    Raises:
        UnsupportedModelError: a processor of images, Liger kernels, or processes that share no data in parallel.
    """
    if options.get("args") is not None:
        check_parallelism(options["args"], options.get("model"))
    given = options.get("processing_class")
    if given is None:
        options["processing_class"] = segmenter.tokenizer
    elif not hasattr(given, "convert_tokens_to_ids"):
        raise UnsupportedModelError(
            f"processing_class is a {type(given).__name__}; expected the segmenter's tokenizer (leave it out): prompts "
            "are text only"
        )
    if getattr(options.get("args"), "use_liger_kernel", False):
        raise UnsupportedModelError(
            "use_liger_kernel cannot be used here: its kernels are not verified with a segment mask. Leave it out"
        )


@contextmanager
def uncut(args: Any) -> Iterator[int | None]:
    """Keep TRL from cutting or dropping rows over max_length inside the block; yields max_length."""
    max_length, args.max_length = args.max_length, None
    try:
        yield max_length
    finally:
        args.max_length = max_length


def copy_of(model: Any) -> Any:
    """Return the model as it is now, frozen and enabled: the reference that a fully tuned policy is kept near to."""
    return copy.deepcopy(model).requires_grad_(False).eval()
