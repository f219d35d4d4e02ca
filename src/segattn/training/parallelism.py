"""How a run is spread over processes and devices: data parallelism, or refused."""

import logging
import os
from typing import Any

from segattn.errors import UnsupportedModelError

__all__ = ["check_parallelism", "keep_adapter_whole"]

logger = logging.getLogger(__name__)

_REFUSED = {
    "cp": "context parallelism cuts a sequence into parts and attends causally between them, without a mask",
    "sp": "sequence parallelism (Ulysses) cuts a sequence into parts, of which no process knows all segment ids",
    "tp": "tensor parallelism gives the processes of a group the same rows, which the order of the rows here does not",
}


def check_parallelism(args: Any, model: Any = None) -> None:
    """Refuse everything but data parallelism: DDP, FSDP and ZeRO.

    Several GPUs in one process (torch.nn.DataParallel) are not used, which a line says.

    Args:
        args: the training arguments; what `accelerate launch` was told counts too.
        model: the model, where it is loaded.

    Raises:
        UnsupportedModelError: context, sequence or tensor parallelism, or an accelerate feature that is not verified.
    """
    sizes = _sizes(args)
    sizes["tp"] = max(sizes["tp"], int(getattr(model, "tp_size", None) or 1))
    for name, why in _REFUSED.items():
        if sizes[name] > 1:
            raise UnsupportedModelError(
                f"{name}_size is {sizes[name]}, but {why}; use data parallelism: DDP, FSDP or ZeRO "
                "(examples/distributed), and --packing or a smaller --max_length for memory"
            )
    if os.environ.get("ACCELERATE_USE_MEGATRON_LM", "false").lower() == "true":
        raise UnsupportedModelError(
            "Megatron-LM builds models of its own, with causal attention; use DDP, FSDP or ZeRO (examples/distributed)"
        )
    if args.n_gpu > 1:
        logger.warning(
            "%d GPUs are there and one is used; `accelerate launch --multi_gpu -m segattn train ...` uses all",
            args.n_gpu,
        )
        args._n_gpu = 1


def keep_adapter_whole(plugin: Any) -> None:
    """Have FSDP write checkpoints from which an adapter can be loaded.

    Args:
        plugin: accelerate's FullyShardedDataParallelPlugin, of a run that trains an adapter.

    Raises:
        UnsupportedModelError: FSDP's own activation checkpointing, under which PEFT finds no adapter to save.
    """
    if plugin.activation_checkpointing:
        raise UnsupportedModelError(
            "fsdp_activation_checkpointing renames the layers, so that PEFT would save an empty adapter; set it to "
            "false and pass --gradient_checkpointing true, or train all weights (--no_use_peft)"
        )
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # which may be those of shares
    plugin.set_state_dict_type("FULL_STATE_DICT")  # adapters are small, and shares of one could not be loaded for use


def _sizes(args: Any) -> dict[str, int]:
    """The size of each kind of parallelism, from the arguments or from the environment that the launcher has set."""
    told = getattr(args, "parallelism_config", None)
    launched = os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true"
    return {
        name: int(
            (getattr(told, f"{name}_size", None) if told is not None else None)
            or (os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE") if launched else None)
            or 1
        )
        for name in _REFUSED
    }
