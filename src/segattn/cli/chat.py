"""Talk to a model in the terminal."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segattn.cli.loading import CHAT_MODEL_HELP, DTYPE_HELP, Attention, Dtype
from segattn.cli.prefixes import FILE_HELP, open_prefixes

if TYPE_CHECKING:
    from segattn.cli.conversation import Conversation

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Option("--model", "-m", help=CHAT_MODEL_HELP)] = "smollm2-segments",
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    attention: Annotated[Attention, typer.Option(help="auto: segments for a checkpoint tuned with them.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of one answer.")] = 512,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Sample with this temperature.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1.0, help="Sample from this probability mass.")] = None,
    seed: Annotated[int, typer.Option(help="The seed of sampling.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help=DTYPE_HELP)] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    prefix_cache: Annotated[Path | None, typer.Option(dir_okay=False, help=FILE_HELP)] = None,
) -> None:
    """Talk to a model in the terminal, or line by line through a pipe.

    The keys and values of earlier turns are kept, so each turn computes only what is new; --prefix-cache keeps them
    from one run to the next. Inside: /mask shows the segments, /stats what each answer took, /help the rest; Ctrl-C
    stops an answer.

    Example:  segattn chat --model runs/segments --system "Be brief."
    """
    from transformers import set_seed

    from segattn.cli.chat_commands import ChatCommands
    from segattn.cli.conversation import Conversation, GenerationOptions
    from segattn.cli.loading import load_chat_model

    chat_model = load_chat_model(model, attention, dtype, device, tell=lambda line: print(line, file=sys.stderr))
    set_seed(seed)
    options = GenerationOptions(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    prefixes = open_prefixes(chat_model, prefix_cache)
    conversation = Conversation(chat_model, options, system, prefixes)
    commands = ChatCommands(conversation)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        print(f"{model}, {chat_model.attention} attention. /help shows the commands, /quit leaves.")
    for line in _lines(interactive):
        # A leading space says a line that begins with a slash to the model.
        if line.startswith("/"):
            commands.run(line)
        elif line.strip():
            _answer(conversation, line.strip())
        if commands.quit:
            break
    if prefixes is not None and prefix_cache is not None:
        prefixes.save(prefix_cache)


def _lines(interactive: bool) -> Iterator[str]:
    """Yield what the user types or pipes in, until it ends."""
    if not interactive:
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  line editing and history for input()

    while True:
        try:
            yield input("\nyou> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit leaves.")


def _answer(conversation: "Conversation", text: str) -> None:
    """Print the answer while it is generated; what goes wrong is a line, and the conversation goes on."""
    from segattn.errors import SegmentAttentionError

    try:
        with _interrupt_stops(conversation):
            turn = conversation.ask(text, lambda piece: print(piece, end="", flush=True))
    except KeyboardInterrupt:
        print("\n[stopped before an answer; the question is forgotten]")
    except SegmentAttentionError as error:
        print(f"segattn: {error}", file=sys.stderr)
    else:
        print({"end": "", "length": " [cut at --max-new-tokens]", "stopped": " [stopped]"}[turn.finish], flush=True)


@contextmanager
def _interrupt_stops(conversation: "Conversation") -> Iterator[None]:
    """Make the first Ctrl-C end the answer after its next token, and a second one abandon the turn."""

    def handle(*_: Any) -> None:
        conversation.stop()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
