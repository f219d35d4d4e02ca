"""One call to train, which whatever ends it early leaves with a checkpoint to go on with."""

import logging
from typing import Any

from segattn.training.errors import DiskFullError
from segattn.training.interrupt import GracefulStop

__all__ = ["run_training"]

logger = logging.getLogger(__name__)


def run_training(trainer: Any, resume: str | bool | None) -> bool:
    """Train, from a checkpoint on if told so; an end before the last step leaves a checkpoint.

    Args:
        trainer: a `segattn.training.resumable.ResumableSFTTrainer`.
        resume: which checkpoint; see `segattn.training.checkpoints.chosen_checkpoint`.

    Returns:
        Whether Ctrl-C (or SIGTERM) ended it early.
    """
    stop = GracefulStop()
    trainer.add_callback(stop)
    try:
        with stop:
            trainer.train(resume_from_checkpoint=resume)
    except (KeyboardInterrupt, SystemExit):
        raise  # at once: the last checkpoint is there
    except Exception as error:
        if not isinstance(error, DiskFullError):
            _save_for_later(trainer)
        raise
    finally:
        trainer.remove_callback(stop)
    if stop.requested:
        logger.warning("stopped after step %d; go on with --resume", trainer.state.global_step)
    return stop.requested


def _save_for_later(trainer: Any) -> None:
    try:
        saved = trainer.save_now()
    except Exception as error:  # the first error is the one to be told
        logger.warning("the run ended early, and could not be saved: %s", error)
        return
    if saved is not None:
        logger.warning("the run ended early; step %d is in %s: go on with --resume", trainer.state.global_step, saved)
