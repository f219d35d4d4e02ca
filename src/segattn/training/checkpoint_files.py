"""What a checkpoint's folder must hold, and whether its files can be read where no checksum says so."""

import json
import zipfile
from pathlib import Path

__all__ = ["missing_part", "unreadable"]


_PARTS = {
    "trainer_state.json": ("trainer_state.json",),
    "the weights": ("*model*.safetensors", "*model*.bin"),
    "optimizer.pt": ("optimizer.pt", "optimizer.bin"),
    "scheduler.pt": ("scheduler.pt",),
    "rng_state.pth": ("rng_state*.pth",),
}
# FSDP and DeepSpeed keep weights and optimizer in folders of their own.
_SHARDED = ("pytorch_model_fsdp*", "global_step*")


def missing_part(folder: Path) -> str | None:
    """Say which part of a checkpoint is missing: state, weights, optimizer, schedule or random numbers; None: none."""
    sharded = any(path.is_dir() for pattern in _SHARDED for path in folder.glob(pattern))
    for name, patterns in _PARTS.items():
        if sharded and name != "trainer_state.json":
            continue
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            only_model = name == "optimizer.pt" and (folder / "trainer_state.json").is_file()
            return f"{name} is missing" + (" (was it saved with --save_only_model?)" if only_model else "")
    return None


def unreadable(file: Path) -> str | None:
    """Say what is wrong with a file that no checksum covers; None if nothing is seen.

    Safetensors files are opened, which compares their header with their length; JSON is parsed; torch's zip files are
    tested against the CRC-32 inside.
    """
    if file.stat().st_size == 0:
        return "is empty"
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt"):
                pass
        elif file.suffix in (".pt", ".pth", ".bin") and file.name != "training_args.bin":
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                return f"is damaged ({damaged} in it)"
    except Exception as error:
        return f"cannot be read ({error})"
    return None
