"""Ctrl-C and SIGTERM during training: finish the step, save, stop; the second time stop at once."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch
from transformers import TrainerCallback

__all__ = ["GracefulStop"]

_PASSED_ON = 2.0  # seconds


class GracefulStop(TrainerCallback):
    """A callback and context manager: the first Ctrl-C (or SIGTERM) stops after the step, the second one at once.

    The step's checkpoint is written where any checkpoint is: after the step's logging and evaluation, so that going on
    with it makes an unbroken run. With several processes a signal to any of them stops all, after the same step; their
    launcher passes on a signal that they may have had from the terminal already, so what comes within two seconds is
    not a second one.

    Attributes:
        requested: whether a stop was asked for.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}
        self._first = 0.0

    def __enter__(self) -> "GracefulStop":
        # Signal handlers belong to the main thread; elsewhere Ctrl-C stays what it was.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        now, launched = time.monotonic(), int(os.environ.get("WORLD_SIZE", "1")) > 1
        if self._first:  # handled once already, in a process that a launcher has started
            if now - self._first > _PASSED_ON:
                self._restore()
                signal.raise_signal(number)
            return
        self.requested, self._first = True, now
        if not launched:
            self._restore()
        elif os.environ.get("RANK") != "0":
            return
        # Not print: the signal may have come in the midst of one.
        os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once, without\n")

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """End training after this step, with a checkpoint, if a stop was asked for."""
        self.requested = _any_process(self.requested, args)
        if self.requested:
            control.should_training_stop = True
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Leave out what is done at an epoch's end: it has not come."""
        if self.requested and not float(state.epoch or 0).is_integer():
            control.should_log = control.should_evaluate = control.should_save = False


def _any_process(flag: bool, args: Any) -> bool:
    if args.world_size <= 1:
        return flag
    shared = torch.tensor(int(flag), device=args.device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return bool(shared)
