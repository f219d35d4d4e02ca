"""Answer one question."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from segattn.cli.loading import CHAT_MODEL_HELP, DTYPE_HELP, Attention, Dtype
from segattn.cli.prefixes import FILE_HELP, open_prefixes

__all__ = ["command"]


def command(
    question: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    model: Annotated[str, typer.Option("--model", "-m", help=CHAT_MODEL_HELP)] = "smollm2-segments",
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    attention: Annotated[Attention, typer.Option(help="auto: segments for a checkpoint tuned with them.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens to generate.")] = 256,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Sample with this temperature.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1.0, help="Sample from this probability mass.")] = None,
    seed: Annotated[int, typer.Option(help="The seed of sampling.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help=DTYPE_HELP)] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    prefix_cache: Annotated[Path | None, typer.Option(dir_okay=False, help=FILE_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print tokens, segments, text and timing as JSON.")] = False,
) -> None:
    """Answer one question with a base model, an adapter or a merged model.

    A checkpoint that was tuned with segments runs with them; any other runs causally.

    Example:  segattn generate --model runs/segments "What is the capital of France?"
    """
    from transformers import set_seed

    from segattn.cli.conversation import Conversation, GenerationOptions
    from segattn.cli.loading import AnswerError, load_chat_model

    text = sys.stdin.read().strip() if question == "-" else question
    if not text:
        raise AnswerError("the question is empty; pass it as an argument, or as text on stdin with -")
    started = time.perf_counter()
    chat_model = load_chat_model(model, attention, dtype, device, tell=lambda line: print(line, file=sys.stderr))
    load_seconds = time.perf_counter() - started
    set_seed(seed)
    options = GenerationOptions(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    prefixes = open_prefixes(chat_model, prefix_cache)
    conversation = Conversation(chat_model, options, system, prefixes)
    turn = conversation.ask(text, None if as_json else lambda piece: print(piece, end="", flush=True))
    if not as_json:
        print()
    if prefixes is not None and prefix_cache is not None:
        prefixes.save(prefix_cache)
    if not as_json:
        return
    result = {"model": model, "attention": chat_model.attention, "load_seconds": load_seconds, **turn.to_dict()}
    print(json.dumps(result, indent=2, ensure_ascii=False))
