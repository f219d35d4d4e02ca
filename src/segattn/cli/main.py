"""The `segattn` command: a table of commands, each imported only when it is called."""

import os
import sys
from importlib import import_module
from typing import Annotated, Any

try:
    import typer
    from typer.core import TyperCommand, TyperGroup
except ModuleNotFoundError:
    raise SystemExit("The segattn command needs typer. Run: pip install 'segattn[cli]'") from None

from segattn.errors import SegmentAttentionError
from segattn.version import __version__

__all__ = ["COMMANDS", "app", "main"]

# Name -> (module that defines `command`, one line of help). A module may also define CONTEXT_SETTINGS (for commands
# that take foreign options) and COMMAND_HELP (where the docstring of `command` is not its help).
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("segattn.cli.demo", "Tune, compare and draw a small model in minutes; writes report.html."),
    "fetch": ("segattn.cli.fetch", "Bring the pretrained model."),
    "train": ("segattn.cli.train", "Fine-tune with LoRA under segments or causally."),
    "adapt": ("segattn.cli.adapt", "Convert a causal chat model to segments, without labels."),
    "eval": ("segattn.cli.eval", "Score a model on tasks under segments or causally."),
    "reproduce": ("segattn.cli.reproduce", "Run a sweep of models, data sets, arms and seeds."),
    "lm-eval": ("segattn.cli.lm_eval", "Run tasks of the lm-evaluation-harness."),
    "generate": ("segattn.cli.generate", "Answer one question."),
    "chat": ("segattn.cli.chat", "Talk to a model in the terminal."),
    "serve": ("segattn.cli.serve", "Serve a model or an adapter with vLLM."),
    "inspect": ("segattn.cli.inspect", "Show the segments of a chat over its tokens."),
    "bench": ("segattn.cli.bench", "Measure segments against causal and dense attention on this machine."),
    "report": ("segattn.cli.report", "Write a report of finished runs."),
    "doctor": ("segattn.cli.doctor", "Check this installation and say what is missing."),
}

# In this order one is looked for that brings a missing package.
_EXTRAS = ["", "cli", "train", "eval", "viz", "tensorboard", "serve", "hf", "all"]

# Markdown, because rich markup would swallow the brackets of `segattn[train]`.
_MARKUP: Any = "markdown"


class _LazyGroup(TyperGroup):
    """Lists commands from the table, and imports one when it is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, line) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=line, rich_markup_mode=_MARKUP))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Replace the listed stand-in by the command itself."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed if name is None else _load(name), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what users can mend is a message and an exit code (2 mostly), not a traceback."""
        try:
            return super().invoke(ctx)
        except (SegmentAttentionError, ModuleNotFoundError) as error:
            message = _message(error)
            if message is None or os.environ.get("SEGATTN_TRACEBACK") == "1":
                raise
            print(f"segattn: {message}", file=sys.stderr)
            raise typer.Exit(getattr(error, "exit_code", 2)) from error


def _load(name: str) -> Any:
    """Import a command's module and make its command."""
    module = import_module(COMMANDS[name][0])
    single = typer.Typer(add_completion=False, rich_markup_mode=_MARKUP)
    single.command(
        name,
        help=getattr(module, "COMMAND_HELP", None),
        context_settings=getattr(module, "CONTEXT_SETTINGS", None),
    )(module.command)
    return typer.main.get_command(single)


def _message(error: Exception) -> str | None:
    """Return what to print for an error, None if it is a defect of ours and deserves its traceback."""
    if isinstance(error, SegmentAttentionError):
        return str(error)
    missing = (getattr(error, "name", None) or "").split(".")[0]
    from segattn.pretrained.environment import requirements

    declared = requirements()
    for extra in sorted(declared, key=lambda name: _EXTRAS.index(name) if name in _EXTRAS else len(_EXTRAS)):
        if missing in (name.lower().replace("-", "_") for name, _ in declared[extra]):
            target = f"segattn[{extra}]" if extra else "segattn"
            return f"this command needs {missing}, which is not installed. Run: pip install '{target}'"
    return None


app = typer.Typer(
    cls=_LazyGroup,
    rich_markup_mode=_MARKUP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"segattn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Segment-based attention for decoder language models: train, evaluate, inspect and run.

    Start with `segattn doctor`, then `segattn demo`. Every command has its own `--help` with an example.
    """


def main() -> None:
    """Run the command line."""
    app(prog_name="segattn")


if __name__ == "__main__":
    main()
