"""The models that the scripts measure, loaded once per process."""

from functools import cache
from typing import Any

from script import Options

from segattn.bench.models import load_model, single_layer, variants

SMOLLM2 = "SmolLM2-135M"
LAYER = "one layer of Llama 3.2 1B's shape"


@cache
def models(name: str, options: Options) -> dict[str, Any]:
    """Return the variants "causal", "segments" and "dense" of a model, which share their weights."""
    if name == SMOLLM2:
        return variants(load_model("smollm2", options.dtype, options.device))
    return variants(single_layer(options.dtype, options.device, tiny=options.quick))
