"""Convert a causal chat model without labels."""

import contextlib
import json
import sys
from typing import Annotated, Any, Literal

import typer

__all__ = ["command"]

# Before and after, what segments cost beside the causal run of the adapted model, and the loss beside SFT's.
_PAIRS = (
    ("adapted, segments", "base, segments"),
    ("adapted, causal", "base, causal"),
    ("adapted, segments", "sft, segments"),
)


def command(
    model: Annotated[str, typer.Option(help="A causal chat model: a folder, a hub id, or smollm2.")] = "smollm2",
    prompts: Annotated[
        str,
        typer.Option(
            help="A .jsonl file, a folder of them, or a hub data set (streamed). Rows of every format "
            "of `segattn train`, or prompts without an answer. builtin: a few thousand plain "
            "English prompts."
        ),
    ] = "builtin",
    output_dir: Annotated[
        str,
        typer.Option(
            "--output-dir", "--output_dir", help="The folder of the adapter, the answers and adapt_result.json."
        ),
    ] = "runs/adapted",
    answers: Annotated[
        Literal["teacher", "given"],
        typer.Option(help="Learn on answers that the causal model writes itself, or on those that the rows give."),
    ] = "teacher",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 300,
    opening_steps: Annotated[
        int,
        typer.Option(
            "--opening-steps",
            "--opening_steps",
            min=0,
            help="Open the segments gradually over this many steps; 0: at once.",
        ),
    ] = 0,
    learning_rate: Annotated[
        float,
        typer.Option("--learning-rate", "--learning_rate", help="At its peak; it falls linearly to 0."),
    ] = 5e-4,
    warmup_steps: Annotated[
        int,
        typer.Option("--warmup-steps", "--warmup_steps", min=0, help="Steps until the peak."),
    ] = 10,
    lora_r: Annotated[
        int,
        typer.Option("--lora-r", "--lora_r", min=1, help="The rank of the adapter; alpha is twice as much."),
    ] = 16,
    lora_targets: Annotated[
        str,
        typer.Option(
            "--lora-targets", "--lora_targets", help="The adapted modules: all-linear, or names separated by commas."
        ),
    ] = "all-linear",
    adapter_dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(
            "--adapter-dtype",
            "--adapter_dtype",
            help="What the finished adapter is rounded to and saved as; bfloat16 halves its size.",
        ),
    ] = "float32",
    batch_size: Annotated[int, typer.Option("--batch-size", "--batch_size", min=1, help="Prompts a step.")] = 8,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            "--max_new_tokens",
            min=1,
            help="The most tokens of an answer; a longer one is learned up to there.",
        ),
    ] = 96,
    answer_temperature: Annotated[
        float,
        typer.Option(
            "--answer-temperature",
            "--answer_temperature",
            help="At which the teacher answers; 0: its likeliest token each time.",
        ),
    ] = 0.0,
    answer_batch_size: Annotated[
        int,
        typer.Option(
            "--answer-batch-size", "--answer_batch_size", min=1, help="How many answers are generated at once."
        ),
    ] = 16,
    temperature: Annotated[float, typer.Option(help="Softens both distributions in the loss.")] = 1.0,
    max_length: Annotated[
        int,
        typer.Option(
            "--max-length",
            "--max_length",
            min=2,
            help="The most tokens of a prompt and its answer. Nothing is ever cut.",
        ),
    ] = 1024,
    too_long: Annotated[
        Literal["error", "drop"],
        typer.Option("--too-long", "--too_long", help="Longer ones: refuse, or leave them out and say how many."),
    ] = "error",
    shuffle: Annotated[
        int,
        typer.Option(min=0, help="Prompts are mixed within a buffer of this many; 0: taken in their order."),
    ] = 2000,
    held_out: Annotated[
        int,
        typer.Option(
            "--held-out",
            "--held_out",
            min=0,
            help="Prompts that are kept apart and measured: from a dev split, or the first ones. 0: none.",
        ),
    ] = 64,
    eval_steps: Annotated[
        int,
        typer.Option(
            "--eval-steps",
            "--eval_steps",
            min=0,
            help="Measure the held-out loss every so many steps; 0: a quarter of --steps.",
        ),
    ] = 0,
    save_steps: Annotated[
        int,
        typer.Option("--save-steps", "--save_steps", min=1, help="Save a checkpoint every so many steps."),
    ] = 100,
    compare_sft: Annotated[
        bool,
        typer.Option(
            "--compare-sft",
            "--compare_sft",
            help="Also tune on the same answers with the plain loss of SFT, and measure it.",
        ),
    ] = False,
    policy: Annotated[
        Literal["turns", "prefix"],
        typer.Option(help="What is one segment: a message, or all between two answers."),
    ] = "turns",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Of the frozen weights. auto: bfloat16, unless the processor only emulates it."),
    ] = "auto",
    report_to: Annotated[
        str,
        typer.Option("--report-to", "--report_to", help="Where the trainer logs: none, tensorboard, wandb, ..."),
    ] = "none",
    seed: Annotated[
        int,
        typer.Option(help="Of the order of prompts, the adapter's first weights and sampled answers."),
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the answers and the last checkpoint of --output-dir.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Convert a causal chat model into a segment model on plain prompts; no labels are needed.

    The causal model is the teacher: it answers the prompts, and the same model with segments and an adapter learns to
    give every token of the answers the probabilities that the teacher gives it. Held-out prompts show how near it came.

    Example:  segattn adapt --model smollm2 --prompts prompts.jsonl --output-dir runs/adapted

    Example:  segattn adapt --model smollm2 --lora-r 4 --adapter-dtype bfloat16 --compare-sft
    """
    flags = {name: value for name, value in locals().items() if name not in ("resume", "as_json")}
    from segattn.evaluation.agreement import agreement_report
    from segattn.training.adapt import adapt
    from segattn.training.adapt_result import write_result
    from segattn.training.adapt_settings import AdaptSettings

    settings = AdaptSettings(**flags)
    # The trainer prints its log lines to stdout, which belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        result = adapt(settings, resume=resume, progress=_Progress())
    content = result.to_dict()
    report = agreement_report(content["held_out"], _PAIRS)
    write_result(result, settings, report=report)
    if as_json:
        print(json.dumps({**content, "report": report}, indent=1))
    else:
        _print(content, report)
    if result.interrupted:
        raise typer.Exit(130)  # so that `segattn adapt && segattn chat` does not go on with half a model


class _Progress:
    """One line that is written over on a terminal, a line every tenth of the way in a pipe."""

    def __init__(self) -> None:
        self.tenths: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}: {done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)
            return
        tenth = done * 10 // total
        if tenth > self.tenths.get(what, 0):
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)
        self.tenths[what] = tenth


def _print(content: dict[str, Any], report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    for step, loss in content["curve"]:
        print(f"held-out KL after step {step}: {loss:.4f}")
    if report["students"]:
        count = len(next(iter(content["held_out"].values())))
        table = Table(title=f"agreement with the causal base on {count} held-out prompts (95 % intervals)")
        for column in ("model", "KL per token", "same likeliest token", "same answer", "same beginning"):
            table.add_column(column)
        for name, row in report["students"].items():
            table.add_row(name, *(_interval(row[measure]) for measure in ("kl", "top1", "exact", "prefix")))
        Console(width=None if sys.stdout.isatty() else 140).print(table)
    how = "stopped early: " if content["interrupted"] else ""
    print(f"{how}{content['steps']} steps on {content['prompts']} prompts in {content['seconds']['train']:.0f} s")
    print(f"adapter: {content['adapter_bytes'] / 1e6:.2f} MB, saved to")
    print(content["output_dir"])


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
