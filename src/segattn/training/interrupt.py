"""Ctrl-C during training: finish the step, save, stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback

__all__ = ["GracefulStop"]


class GracefulStop(TrainerCallback):
    """A callback and context manager: the first Ctrl-C (or SIGTERM) stops after the step, the second one at once.

    Attributes:
        requested: whether a stop was asked for.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "GracefulStop":
        # Signal handlers belong to the main thread; elsewhere Ctrl-C stays what it was.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """End training after this step if a stop was asked for."""
        if self.requested:
            control.should_training_stop = True
