"""Show the segments of a chat over its tokens."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["command"]

_PICTURE_UP_TO = 100


def command(
    text: Annotated[str | None, typer.Argument(help="A user message; or use --messages.")] = None,
    messages: Annotated[Path | None, typer.Option(help='A JSON file: [{"role": ..., "content": ...}, ...].')] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt before the text.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Whose chat template and segmenter to use.")] = "smollm2",
    policy: Annotated[
        Literal["turns", "prefix", "causal"] | None, typer.Option(help="Another segmentation than the checkpoint's.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Draw the mask into this picture (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print tokens, segment ids and segments as JSON.")] = False,
) -> None:
    """Show the segments of a chat over its tokens, and the mask that follows from them. Loads no weights.

    Example:  segattn inspect "What is the capital of France?" --system "Be brief."
    """
    from segattn import attention_cost
    from segattn.cli.display import coloured_tokens, mask_picture, runs_of, runs_table
    from segattn.cli.loading import load_segmenter

    chat = _chat(text, messages, system)
    segmenter, tokenizer = load_segmenter(model, policy)
    answered = chat[-1]["role"] == "assistant"
    batch = segmenter.apply_chat_template(chat, add_generation_prompt=not answered, return_tensors="pt")
    ids, segment_ids = batch["input_ids"][0].tolist(), batch["segment_ids"][0].tolist()
    runs = runs_of(ids, segment_ids, tokenizer)
    cost = {name: int(value) for name, value in attention_cost(batch["segment_ids"]).items()}
    if save is not None:
        from segattn.reports.pictures import draw_mask

        draw_mask(segment_ids, [tokenizer.decode([token]) for token in ids], save)
        print(f"Saved {save}", file=sys.stderr)
    if as_json:
        content = {
            "policy": segmenter.policy,
            "input_ids": ids,
            "segment_ids": segment_ids,
            "runs": [run.to_dict() for run in runs],
            "cost": cost,
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    print(runs_table(runs))
    if sys.stdout.isatty():
        from rich.console import Console

        print()
        Console().print(coloured_tokens(ids, segment_ids, tokenizer), soft_wrap=True)
    if len(ids) <= _PICTURE_UP_TO:
        print(f"\n{mask_picture(segment_ids)}")
    shares = ", ".join(f"{name} {value:,}" for name, value in cost.items())
    print(f"\n{len(ids)} tokens, policy {segmenter.policy}; score computations: {shares}")


def _chat(text: str | None, messages: Path | None, system: str | None) -> list[dict[str, Any]]:
    """Return the conversation that the options describe."""
    from segattn.cli.loading import AnswerError

    if (text is None) == (messages is None):
        raise AnswerError("expected either a text or --messages FILE; got " + ("both" if text else "neither"))
    opening = [] if system is None else [{"role": "system", "content": system}]
    if messages is None:
        return [*opening, {"role": "user", "content": text}]
    try:
        chat = json.loads(messages.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnswerError(f"{messages} cannot be read as JSON ({error})") from error
    if isinstance(chat, dict):
        chat = chat.get("messages")
    if not (isinstance(chat, list) and chat and all(isinstance(item, dict) and "role" in item for item in chat)):
        raise AnswerError(f'{messages} holds no chat; expected [{{"role": "user", "content": "..."}}, ...]')
    return [*opening, *chat]
