"""Score a model on tasks."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from segattn.cli.loading import DTYPE_HELP, Dtype

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Option(help="A folder (model or adapter), a hub id, or smollm2.")],
    data: Annotated[
        list[str], typer.Option(help="A .jsonl file, a folder of tasks, or a hub data set; may be repeated.")
    ],
    attention: Annotated[
        Literal["auto", "segments", "causal"],
        typer.Option(help="auto: as the checkpoint was tuned; causal where it records nothing."),
    ] = "auto",
    split: Annotated[Literal["train", "dev"], typer.Option(help="Which split of a folder or hub data set.")] = "dev",
    batch_size: Annotated[int, typer.Option(min=1, help="How many answers run at once.")] = 16,
    limit: Annotated[int, typer.Option(min=0, help="At most this many samples of each task; 0: all.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help=DTYPE_HELP)] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="Results file; default: one per run under runs/eval.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard results that are there already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Rank the answers of each task by log-likelihood, with 95 % confidence intervals.

    A run that was stopped goes on where it was; a finished one is shown again. Rows with choices give an accuracy, all
    rows the loss of the right answer (nats per token).

    Example:  segattn eval --model runs/adapter --data data/tasks --attention segments --limit 200
    """
    from segattn.cli.loading import load_chat_model
    from segattn.data import DataError, load_samples
    from segattn.evaluation.run import evaluate, model_fingerprint

    if not (samples := _limited([sample for source in data for sample in load_samples(source, split)], limit)):
        raise DataError("there are no samples to score")
    loaded = load_chat_model(model, attention, dtype, device, _tell)
    network, segmenter = _enabled(loaded)
    settings = {
        "model": model,
        "weights": model_fingerprint(model) or model_fingerprint(str(getattr(network, "name_or_path", model))),
        "dtype": str(network.dtype).removeprefix("torch."),
    }
    key = hashlib.sha256(json.dumps([settings, loaded.attention, segmenter.policy]).encode()).hexdigest()[:8]
    target = output or Path("runs/eval") / f"{Path(model).name}-{loaded.attention}-{key}.json"
    rows = target.with_suffix(".rows.jsonl")
    if fresh:
        rows.unlink(missing_ok=True)
    evaluation = evaluate(
        network,
        segmenter,
        samples,
        attention=loaded.attention,
        batch_size=batch_size,
        settings=settings,
        rows=rows,
        progress=_progress(),
    )
    content = json.dumps({**evaluation.to_dict(), "rows": str(rows)}, indent=2)
    _write(target, content)
    if as_json:
        print(content)
    else:
        _print_table(evaluation)
        _tell(f"results: {target}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _limited(samples: list[Any], limit: int) -> list[Any]:
    if not limit:
        return samples
    seen: dict[str, int] = {}
    kept = []
    for sample in samples:
        seen[sample.task] = seen.get(sample.task, 0) + 1
        if seen[sample.task] <= limit:
            kept.append(sample)
    return kept


def _enabled(loaded: Any) -> tuple[Any, Any]:
    """The model, enabled, and the segmenter to run it with."""
    import segattn

    segmenter = loaded.segmenter or segattn.Segmenter.from_tokenizer(loaded.tokenizer)
    return segattn.enable(loaded.model, segmenter), segmenter


class _Bar:
    """A progress bar that closes when all is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True))
        self.task = self.progress.add_task("samples", total=None)
        self.progress.start()

    def __call__(self, done: int, total: int) -> None:
        self.progress.update(self.task, completed=done, total=total)
        if done == total:
            self.progress.stop()


def _progress() -> Any:
    """A bar on a terminal, a line every tenth of the way in a pipe."""
    if sys.stderr.isatty():
        return _Bar()

    def tell(done: int, total: int) -> None:
        if done == total or done * 10 // total > (done - 1) * 10 // total:
            _tell(f"{done} of {total} samples")

    return tell


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content + "\n", encoding="utf-8")
    partial.replace(path)


def _print_table(evaluation: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from segattn.evaluation.run import average_accuracy

    attention = evaluation.settings["attention"]
    table = Table(title=f"{evaluation.settings['model']}, attention {attention} (95 % intervals in brackets)")
    for column in ("task", "samples", "chance", "accuracy", "accuracy per token", "answer loss"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in evaluation.tasks:
        chance = "-" if task.chance is None else f"{task.chance:.3f}"
        table.add_row(
            task.task,
            str(task.samples),
            chance,
            str(task.accuracy or "-"),
            str(task.accuracy_per_token or "-"),
            str(task.loss),
        )
    average = average_accuracy(evaluation.tasks)
    if average is not None:
        table.add_section()
        table.add_row("average", "", "", str(average), "", "")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
