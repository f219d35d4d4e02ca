"""How far a run is: one live line on a terminal, plain lines elsewhere, in place of transformers' own bars."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from segattn.reports.smoothing import Smoothed

__all__ = ["ProgressLine", "shown_progress"]


@contextmanager
def shown_progress(trainer: Any) -> Iterator[None]:
    """Show a `ProgressLine` in place of the bars and printed logs of transformers; a notebook keeps its own table.

    Args:
        trainer: its `disable_tqdm` asks for plain lines, also on a terminal.
    """
    if not [one for one in (ProgressCallback, PrinterCallback) if trainer.pop_callback(one) is not None]:
        yield
        return
    line = ProgressLine(live=not trainer.args.disable_tqdm and sys.stderr.isatty())
    trainer.add_callback(line)
    try:
        yield
    finally:
        line.close()  # also where training broke off
        trainer.remove_callback(line)


class ProgressLine(TrainerCallback):
    """Tells steps, loss, tokens per second, padding, the opening bias, time left and the last held-out loss.

    It reads what the trainer logs and asks the device for nothing. Only the main process speaks, on stderr.

    Args:
        live: keep one line up to date, step by step; otherwise write a line whenever the trainer logs.
    """

    def __init__(self, live: bool) -> None:
        self.live = live
        self._loss = Smoothed()
        self._told: dict[str, str] = {}
        self._bar: Any = None
        self._first_step, self._start = 0, 0.0
        self._scored = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Begin the line."""
        self._first_step, self._start = state.global_step, time.perf_counter()
        if self.live and state.is_world_process_zero:
            self._bar = _bar(state.max_steps, state.global_step)
            self._bar.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Let the clock begin with the first step: what came before is not done again."""
        if state.global_step == self._first_step:
            self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Move on."""
        self._show(state)

    def on_prediction_step(
        self,
        args: Any,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        eval_dataloader: Any = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Say how far the evaluation is."""
        if self._bar is None:
            return
        self._scored += 1
        size = f" of {len(eval_dataloader)}" if hasattr(eval_dataloader, "__len__") else ""
        self._show(state, f"scoring held-out batch {self._scored}{size}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Take up what was logged."""
        if not state.is_world_process_zero or not logs:
            return
        told = self._told
        if "loss" in logs:
            # Plain lines are a record of their own; one line over and over shows where the loss tends.
            told["loss"] = f"loss {self._loss.add(logs['loss']) if self.live else logs['loss']:.4f}"
            if "tokens_per_second" in logs:
                answers = f"{logs['answer_tokens_per_second']:,.0f} of answers"
                told["speed"] = f"{logs['tokens_per_second']:,.0f} tokens/s ({answers})"
                told["padding"] = f"padding {100 * logs['padding_share']:.0f} %"
            bias = logs.get("opening_bias", 0.0)
            told["bias"] = f"opening bias {bias:.1f}" if bias else ""
        if "eval_loss" in logs:
            told["held_out"] = f"held-out {logs['eval_loss']:.4f}"
        if "eval_opening_loss" in logs:
            told["opening"] = f"(opening {logs['eval_opening_loss']:.4f})"
        elif "eval_loss" in logs:
            told["opening"] = ""
        self._scored = 0
        if self._bar is not None:
            self._show(state)
        elif "loss" in logs:
            _write(self._line(state))
        elif "eval_loss" in logs:
            _write(f"step {state.global_step} of {state.max_steps}, {told['held_out']}")
        elif "eval_opening_loss" in logs:
            _write(
                f"step {state.global_step} of {state.max_steps}, held-out {logs['eval_opening_loss']:.4f} "
                "under the opening bias"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Leave the last state of the line behind."""
        if self._bar is not None:
            self._show(state)
            self.close()

    def close(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, state: Any, now: str = "") -> None:
        if self._bar is not None:
            text = now or self._told_text(state)
            self._bar.update(self._bar.task_ids[0], completed=state.global_step, told=text)

    def _line(self, state: Any) -> str:
        return f"step {state.global_step} of {state.max_steps}, {self._told_text(state)}"

    def _told_text(self, state: Any) -> str:
        # What matters most comes first: a narrow terminal cuts the end off.
        parts = [self._told.get("loss"), self._left(state), self._held_out()]
        parts += [self._told.get(name) for name in ("speed", "padding", "bias")]
        return ", ".join(part for part in parts if part)

    def _held_out(self) -> str:
        return " ".join(part for name in ("held_out", "opening") if (part := self._told.get(name)))

    def _left(self, state: Any) -> str:
        """The time left, if the steps to come take as long as those done in this run, evaluations included."""
        done, left = state.global_step - self._first_step, state.max_steps - state.global_step
        if done <= 0 or left <= 0:
            return ""
        seconds = round((time.perf_counter() - self._start) / done * left)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _write(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bar(total: int, completed: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    bar = Progress(
        TextColumn("step"),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        BarColumn(bar_width=12),
        TextColumn(
            "{task.fields[told]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
        console=Console(stderr=True),
        expand=True,
    )
    bar.add_task("", total=total, completed=completed, told="")
    return bar
