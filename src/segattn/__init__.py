"""Segment-based attention for decoder language models: train, evaluate, inspect and run.

The tensor functions need only torch. Everything that touches transformers is imported on first use,
so that `import segattn` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segattn.version import __version__

# Public name -> module that defines it. The one list of what users may call.
_PUBLIC = {
    "LabelLeakError": "segattn.errors",
    "SegmentAttentionError": "segattn.errors",
    "SegmentError": "segattn.errors",
    "TemplateError": "segattn.errors",
    "UnsupportedModelError": "segattn.errors",
    "attention_cost": "segattn.segments",
    "check_labels": "segattn.segments",
    "spans_to_segment_ids": "segattn.segments",
    "segment_mask": "segattn.masks",
    "block_mask": "segattn.blocks",
    "segment_attention": "segattn.attention",
    "PrefixCache": "segattn.generation",
    "Segmenter": "segattn.templates",
    "causal": "segattn.modeling",
    "disable": "segattn.modeling",
    "enable": "segattn.modeling",
    "from_pretrained": "segattn.modeling",
    "is_enabled": "segattn.modeling",
    "save_pretrained": "segattn.modeling",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from segattn.attention import segment_attention as segment_attention
    from segattn.blocks import block_mask as block_mask
    from segattn.errors import LabelLeakError as LabelLeakError
    from segattn.errors import SegmentAttentionError as SegmentAttentionError
    from segattn.errors import SegmentError as SegmentError
    from segattn.errors import TemplateError as TemplateError
    from segattn.errors import UnsupportedModelError as UnsupportedModelError
    from segattn.generation import PrefixCache as PrefixCache
    from segattn.masks import segment_mask as segment_mask
    from segattn.modeling import causal as causal
    from segattn.modeling import disable as disable
    from segattn.modeling import enable as enable
    from segattn.modeling import from_pretrained as from_pretrained
    from segattn.modeling import is_enabled as is_enabled
    from segattn.modeling import save_pretrained as save_pretrained
    from segattn.segments import attention_cost as attention_cost
    from segattn.segments import check_labels as check_labels
    from segattn.segments import spans_to_segment_ids as spans_to_segment_ids
    from segattn.templates import Segmenter as Segmenter


def __getattr__(name: str) -> Any:
    """Import the module behind a public name when it is first used."""
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'segattn' has no attribute {name!r}; it offers: {', '.join(_PUBLIC)}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_PUBLIC})
