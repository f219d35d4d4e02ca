"""Trackers (TensorBoard, Weights & Biases): whether they are there, before anything is loaded."""

from collections.abc import Sequence

from segattn.errors import UnsupportedModelError

__all__ = ["check_trackers"]

_INSTALL = {"tensorboard": "pip install 'segattn[tensorboard]'", "wandb": "pip install wandb"}


def check_trackers(report_to: str | Sequence[str] | None) -> None:
    """Refuse a tracker that is not installed; transformers would, after the model is loaded.

    Args:
        report_to: TRL's argument: a name or several. Trackers other than these two are left to transformers.

    Raises:
        UnsupportedModelError: names the tracker and how to install it.
    """
    from transformers.integrations import is_tensorboard_available, is_wandb_available

    available = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    for name in [report_to] if isinstance(report_to, str) else report_to or ():
        if name in available and not available[name]():
            raise UnsupportedModelError(
                f"--report_to {name} needs a package that is not installed: {_INSTALL[name]}, or leave it out"
            )
