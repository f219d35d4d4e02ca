"""Fine-tune a model."""

import contextlib
import difflib
import json
import os
import sys
from typing import Annotated, Any

import typer

from segattn.errors import SegmentAttentionError

__all__ = ["COMMAND_HELP", "CONTEXT_SETTINGS", "command", "short_forms"]

# TRL's parser reads the flags, not typer.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}

COMMAND_HELP = """Fine-tune with LoRA under segments or causally, through TRL's SFTTrainer. The loss is on answers only.

Example:  segattn train --model smollm2 --data data/banking77 --attention segments --max_steps 200 --output_dir runs/a

Data and mask:

- `--data`  training data: a .jsonl file, a folder with train.jsonl (or one such sub-folder per task), or a hub data
  set. Chats (with tools), prompt and completion, instruction and output, text and intent, text and spans are
  recognised by their fields. All answers of a chat train in one pass.
- `--held_out`  held-out data for the answer loss; default: the dev split of `--data`. `--held_out_samples` 200
- `--attention`  segments (default) or causal; recorded in the checkpoint
- `--policy`  turns (default), prefix, or documents (texts with spans)
- `--causal_roles`  messages of these roles stay causal, e.g. system; `--max_segment_length` splits longer segments into
  pieces. The checkpoint records both
- `--opening_steps`  open the segments gradually over this many steps; `--opening_schedule` says how: linear (default),
  probability, bottom_up, top_down or learned
- `--layers`  segments in these layers only, e.g. 0-14; the checkpoint records it
- `--causal_share`  mixed training: this share of the samples is read causally, so that one checkpoint serves both masks
- `--too_long`  for samples over `--max_length`: error (default), drop, cut_left (the oldest messages, then the
  beginning of the prompt) or cut_longest_segment (the middle of the longest message). Answers are never cut.
- `--packing`  several conversations in a row of `--max_length` tokens, each for itself; `--padding_free` joins the
  rows of a batch. Without them batches are of like length (`--train_sampling_strategy random` for any order).

TRL's flags, all of them (`--all-flags` lists them), also from a file (`--config run.yaml`), among them:

- `--model_name_or_path` (or `--model`), `--dtype`, `--lora_r` 32, `--lora_alpha` 64, `--lora_target_modules`
  all-linear, `--no_use_peft`
- `--output_dir`, `--max_steps`, `--num_train_epochs`, `--per_device_train_batch_size`, `--learning_rate`, `--seed`
- `--eval_strategy steps --eval_steps 25`, `--save_steps`, `--save_total_limit`
- `--resume`  go on with the last whole checkpoint of `--output_dir`; `--resume auto`: where there is one, otherwise
  begin; `--resume FOLDER`: with this one. TRL's `--resume_from_checkpoint` takes the same; default: begin
"""


def command(
    context: typer.Context,
    all_flags: Annotated[bool, typer.Option("--all-flags", help="List every flag with its default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fine-tune with LoRA under segments or causally."""
    from trl import TrlParser

    from segattn.training.settings import ModelSettings, SFTSettings, TrainSettings

    parser = TrlParser((TrainSettings, SFTSettings, ModelSettings), prog="segattn train", allow_abbrev=False)
    if all_flags:
        parser.print_help()
        return
    settings, sft, model = _parse(parser, short_forms(context.args))
    from segattn.pretrained import resolve_model
    from segattn.training import train

    if model.model_name_or_path is not None:
        model.model_name_or_path = resolve_model(model.model_name_or_path)
    if not sys.stderr.isatty():
        sft.disable_tqdm = True
    # The trainer prints its log lines to stdout, which belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        result = train(settings, sft, model)
    if os.environ.get("RANK", "0") != "0":
        return  # the first process speaks for all
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        for point in result.curve:
            print(f"held-out answer loss after step {point.step}: {point.loss:.4f}")
        if result.cut or result.dropped:
            removed = f"({result.removed_tokens} tokens removed), left out {result.dropped}"
            print(f"cut {result.cut} samples to {sft.max_length} tokens {removed}")
        how = "stopped early: " if result.interrupted else ""
        print(f"{how}{result.steps} steps on {result.samples} samples in {result.seconds['train']:.0f} s; saved to")
        print(result.output_dir)
    if result.interrupted:
        raise typer.Exit(130)  # so that `segattn train && segattn eval` does not go on with half a model


def short_forms(arguments: list[str]) -> list[str]:
    """Return the arguments with TRL's flags in place of --model and --resume."""
    spelled: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--model":
            argument = "--model_name_or_path"
        elif argument == "--resume":
            argument = "--resume_from_checkpoint"
            if arguments[place + 1 : place + 2] == [] or arguments[place + 1].startswith("-"):
                spelled += [argument, "last"]
                continue
        spelled.append(argument.replace("--resume=", "--resume_from_checkpoint=", 1))
    return spelled


def _parse(parser: Any, arguments: list[str]) -> Any:
    """Read the flags; what cannot be read is one clear line, not three hundred lines of usage."""

    def refuse(message: str) -> None:
        raise SegmentAttentionError(f"{message} (segattn train --help, or --all-flags for all of them)")

    parser.error = refuse
    known = ["--model", "--resume", "--config"] + [flag for action in parser._actions for flag in action.option_strings]
    for argument in arguments:
        flag = argument.split("=")[0]
        if flag.startswith("--") and flag not in known:
            close = difflib.get_close_matches(flag, known, n=1)
            refuse(f"there is no flag {flag}" + (f"; did you mean {close[0]}?" if close else ""))
    try:
        return parser.parse_args_and_config(arguments)
    except (ValueError, OSError, TypeError) as error:
        refuse(str(error))
