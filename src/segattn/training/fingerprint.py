"""The settings that decide what a run's weights become, and how those of two runs differ."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from segattn.training.errors import CheckpointError

__all__ = ["compare_settings", "differences", "settings_of", "versions_of"]

# What a run that goes on must share with the one before: where these differ, its weights are no run's weights.
# Those of the optimizer are kept in its state: other ones would be ignored in silence.
_FIXED = (
    "seed", "data_seed", "learning_rate", "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2",
    "adam_epsilon", "gradient_accumulation_steps", "train_sampling_strategy", "packing", "padding_free",
    "neftune_noise_alpha", "dataloader_drop_last", "loss_type",
)  # fmt: skip
# What people change on purpose when they go on: more steps, another precision.
_FREE = (
    "max_steps", "num_train_epochs", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm",
    "bf16", "fp16", "max_length", "pad_to_multiple_of",
)  # fmt: skip
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
_NOT_OF_THE_ADAPTER = ("base_model_name_or_path", "inference_mode", "revision", "auto_mapping", "peft_version")
_SAMPLED = 64  # values of each weight tensor


def settings_of(trainer: Any) -> dict[str, Any]:
    """Return the settings that decide the weights, by name, as JSON types.

    Data and base weights are given by checksums: of all rows, and of the first values of every weight tensor. To be
    called before the weights of a checkpoint are loaded.
    """
    args = trainer.args
    found = {name: getattr(args, name, None) for name in (*_FIXED, *_FREE)}
    found["batch size"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    found["training data"] = _rows_checksum(trainer.train_dataset)
    found["base weights"] = _weights_checksum(trainer.model)
    found["trainer"] = type(trainer).__name__
    found["adapter"] = _adapter(trainer.model)
    found.update(trainer.run_settings)
    return dict(json.loads(json.dumps(found, default=_plain)))


def versions_of(trainer: Any) -> dict[str, Any]:
    """Return the versions of the packages, the kind of device and the number of processes."""
    found: dict[str, Any] = {"device": trainer.args.device.type, "processes": trainer.args.world_size}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Return, for each name in `before` whose value differs, a line that says so."""
    return {name: _line(name, value, now.get(name)) for name, value in before.items() if value != now.get(name)}


def compare_settings(before: dict[str, Any], now: dict[str, Any], where: str) -> list[str]:
    """Return a line for each setting that differs but may; refuse those that may not.

    Args:
        before: the settings in the checkpoint.
        now: of the run that goes on with it.
        where: the checkpoint, for the error.

    Raises:
        CheckpointError: names each setting that must be the same, with both values.
    """
    different = differences(before, now)
    fatal = [line for name, line in different.items() if name not in _FREE]
    if fatal:
        raise CheckpointError(
            f"{where} is of a run with other settings: {'; '.join(fatal)}. Give the same, or begin anew in another "
            "--output_dir without --resume"
        )
    return list(different.values())


def _line(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        inner = [_line(f"{name} {key}", before.get(key), now.get(key)) for key in {**before, **now}]
        return "; ".join(line for line in inner if line)
    if before == now:
        return ""
    if isinstance(before, str) and before.startswith("sha256:"):
        return f"the {name} differ from those it was made with"
    return f"{name} was {before!r} and is now {now!r}"


def _rows_checksum(rows: Any) -> str | None:
    """The checksum of all rows; None for a stream, which cannot be read twice."""
    if rows is None or not hasattr(rows, "column_names") or not hasattr(rows, "__len__"):
        return None
    digest = hashlib.sha256()
    for table in rows.with_format("arrow").iter(batch_size=1000):
        for name in sorted(table.column_names):
            _add_column(digest, name, table[name].combine_chunks())
    return f"sha256:{digest.hexdigest()}"


def _add_column(digest: Any, name: str, column: Any) -> None:
    import pyarrow
    from pyarrow import compute

    digest.update(name.encode())
    if pyarrow.types.is_list(column.type) and pyarrow.types.is_integer(column.type.value_type):
        # Millions of tokens: as bytes, not as text.
        digest.update(compute.list_value_length(column).to_numpy(zero_copy_only=False).tobytes())
        digest.update(column.flatten().to_numpy(zero_copy_only=False).tobytes())
    else:
        digest.update(json.dumps(column.to_pylist(), sort_keys=True, default=str).encode())


def _weights_checksum(model: nn.Module) -> str:
    """The checksum of the first values of every weight tensor that is loaded, not of a new adapter's."""
    adapted = hasattr(model, "peft_config")
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if adapted and weight.requires_grad:
                continue
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            sample = weight.detach().flatten()[:_SAMPLED].contiguous().cpu()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _adapter(model: nn.Module) -> dict[str, Any] | None:
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    config = next(iter(configs.values())).to_dict()
    return {name: value for name, value in config.items() if name not in _NOT_OF_THE_ADAPTER}


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
