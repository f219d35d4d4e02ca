"""Run the lm-evaluation-harness on a model that reads with segments."""

import sys
from typing import Annotated

import typer

__all__ = ["COMMAND_HELP", "CONTEXT_SETTINGS", "command"]

# lm_eval's parser reads the flags, not typer.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}

COMMAND_HELP = """Run the tasks of EleutherAI's lm-evaluation-harness. All flags are those of `lm_eval`; the model is
`segattn` unless `--model` says otherwise.

Example:  segattn lm-eval --model_args pretrained=runs/mine --apply_chat_template --tasks arc_easy --num_fewshot 5

In `--model_args`, besides what `hf` takes (`pretrained`, `peft`, `dtype`, ...):

- `attention`  auto (default: as the checkpoint was tuned), segments or causal
- `plain_context`  what a prompt without chat template is under segments: refuse (default), segment or causal
"""


def command(
    context: typer.Context,
    all_flags: Annotated[bool, typer.Option("--all-flags", help="List every flag of lm_eval.")] = False,
) -> None:
    """Run the tasks of the lm-evaluation-harness."""
    from segattn.harness.command import run_harness

    arguments = ["run", "--help"] if all_flags else context.args
    if not arguments:
        print("segattn: lm-eval needs --tasks; see segattn lm-eval --help", file=sys.stderr)
        raise typer.Exit(2)
    run_harness(arguments)
