"""Serve a model or an adapter with vLLM."""

import shlex
from typing import Annotated, Literal

import typer

__all__ = ["COMMAND_HELP", "CONTEXT_SETTINGS", "command"]

# vLLM's parser reads its flags, not typer.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}

COMMAND_HELP = """Start vLLM's OpenAI-compatible server for a checkpoint that was tuned with segments: a model or a LoRA
adapter. Further flags are those of `vllm serve`.

Example:  segattn serve runs/mine --max-model-len 4096 --port 8000

Clients need no change: segments are found in the token ids. A request sets its own by
`"vllm_xargs": {"segment_attention": "causal"}`, or a list of positions `[start, end, ...]` in place of "causal".

vLLM pins an older transformers, so it wants an environment of its own (docs/serving.md).
"""


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder or a hub id of a model or an adapter, or smollm2-segments.")],
    attention: Annotated[
        Literal["segments", "causal"], typer.Option(help="causal: serve a checkpoint that was tuned causally.")
    ] = "segments",
    show_command: Annotated[bool, typer.Option("--show-command", help="Print vLLM's command and stop.")] = False,
) -> None:
    """Start vLLM's server."""
    from segattn.serving.server import server_command, start_server

    if show_command:
        print(shlex.join(server_command(model, context.args, attention)))
        return
    start_server(model, context.args, attention)
