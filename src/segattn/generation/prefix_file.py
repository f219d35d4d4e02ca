"""Known prefixes in one safetensors file: read back only for the model, and the adapters, that computed them."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segattn.generation.errors import PrefixCacheError
from segattn.generation.model_identity import adapters_of, config_digest, weights_digest
from segattn.generation.pieces import Piece
from segattn.generation.prefix_tree import KeysValues
from segattn.version import __version__

__all__ = ["read_prefixes", "write_prefixes"]

_FORMAT = "segattn-prefixes-1"


def write_prefixes(path: str | os.PathLike[str], model: Any, stored: list[tuple[int, Piece, KeysValues]]) -> None:
    """Write pieces, each after its parent, atomically.

    Args:
        path: the file.
        model: that computed them.
        stored: (number of the parent or -1, piece, keys and values).

    Raises:
        PrefixCacheError: the folder does not exist or cannot be written to.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for number, (_, piece, layers) in enumerate(stored):
        tensors[f"{number}.tokens"] = torch.tensor(piece.tokens, dtype=torch.int64)
        for layer, states in enumerate(layers):
            if states is not None:
                tensors[f"{number}.{layer}.keys"], tensors[f"{number}.{layer}.values"] = (part.cpu() for part in states)
    pieces = [[parent, int(piece.is_segment)] for parent, piece, _ in stored]
    metadata = {**_identity(model), "layers": str(len(stored[0][2]) if stored else 0), "pieces": json.dumps(pieces)}
    target = Path(path)
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        os.close(handle)
        try:
            save_file(tensors, partial, metadata=metadata)
            Path(partial).replace(target)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise PrefixCacheError(
            f"{target} cannot be written ({error}); expected a file in a folder that exists"
        ) from error


def read_prefixes(path: str | os.PathLike[str], model: Any) -> Iterator[tuple[int, Piece, KeysValues]]:
    """Read pieces, each after its parent, onto the devices that the model's layers are on.

    Args:
        path: the file.
        model: for which it must have been saved.

    Yields:
        (number of the parent or -1, piece, keys and values).

    Raises:
        PrefixCacheError: the file is damaged, or was saved for another model; names what differs.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            _check(path, metadata, _identity(model))
            devices = _layer_devices(model, int(metadata["layers"]))
            for number, (parent, is_segment) in enumerate(json.loads(metadata["pieces"])):
                tokens = tuple(file.get_tensor(f"{number}.tokens").tolist())
                states = tuple(_layer(file, number, layer, device) for layer, device in enumerate(devices))
                if not -1 <= parent < number or any(len(tokens) != part.shape[-2] for part in _tensors(states)):
                    raise ValueError(f"piece {number} does not fit its place")
                yield parent, Piece(tokens, bool(is_segment)), states
    except FileNotFoundError:
        raise PrefixCacheError(f"there is no file {os.fspath(path)}; PrefixCache.save writes one") from None
    except (SafetensorError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        if isinstance(error, PrefixCacheError):
            raise
        raise PrefixCacheError(
            f"{os.fspath(path)} is no complete file of prefixes ({error}); delete it, and save one again"
        ) from error


def _layer(file: Any, number: int, layer: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    if f"{number}.{layer}.keys" not in file.keys():  # noqa: SIM118  not a mapping
        return None
    keys, values = (file.get_tensor(f"{number}.{layer}.{part}").to(device) for part in ("keys", "values"))
    return keys, values


def _tensors(states: KeysValues) -> list[Tensor]:
    return [part for layer in states if layer is not None for part in layer]


def _layer_devices(model: Any, layers: int) -> list[torch.device]:
    """Return the device of each layer, where its keys and values belong."""
    stack = next((module for module in model.modules() if len(getattr(module, "layers", ())) == layers), None)
    if stack is None or layers == 0:
        return [model.device] * layers
    return [next((weight.device for weight in layer.parameters()), model.device) for layer in stack.layers]


def _identity(model: Any) -> dict[str, str]:
    return {
        "format": _FORMAT,
        "segattn": __version__,
        "model": type(model).__name__,
        "config": config_digest(model),
        "dtype": str(model.dtype),
        "adapters": adapters_of(model),
        "weights": weights_digest(model),
    }


def _check(path: str | os.PathLike[str], saved: dict[str, str], now: dict[str, str]) -> None:
    """Name what a file and the model differ in."""
    if saved.get("format") != _FORMAT:
        raise PrefixCacheError(
            f"{os.fspath(path)} holds {saved.get('format', 'no prefixes')!r}; expected {_FORMAT!r}, as this version of "
            "segattn writes it. Delete the file, and save one again"
        )
    for name in ("model", "config", "dtype", "adapters", "weights"):
        if saved.get(name) != now[name]:
            raise PrefixCacheError(
                f"{os.fspath(path)} was saved for a model with other {name} ({_short(saved.get(name))}) than this "
                f"one's ({_short(now[name])}), so its keys are not this model's; load that model, or delete the file"
            )


def _short(value: str | None) -> str:
    text = value or "none"
    return text[:12] if len(text) == 64 else text
