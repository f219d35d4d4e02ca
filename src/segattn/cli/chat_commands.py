"""What a line that begins with a slash does in `segattn chat`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from segattn.cli.conversation import Conversation
from segattn.cli.display import coloured_tokens, runs_of, runs_table
from segattn.cli.prefixes import summary
from segattn.errors import SegmentAttentionError

__all__ = ["ChatCommands"]


class ChatCommands:
    """The slash commands of one conversation; each prints to stdout."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.quit = False
        # Name -> (what it takes, what it does, how).
        self.table: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "/mask": ("", "show the segments of the conversation so far", self._mask),
            "/stats": ("", "show tokens, cache use and speed of every answer", self._stats),
            "/system": ("TEXT", "begin a new conversation with this system prompt", self._system),
            "/reset": ("", "begin a new conversation", self._reset),
            "/save": ("FILE", "save the conversation as JSON", self._save),
            "/help": ("", "show these commands", self._help),
            "/quit": ("", "leave (so does the end of the input)", self._quit),
        }

    def run(self, line: str) -> None:
        """Run a line that begins with a slash; errors are printed, not raised."""
        name, _, argument = line.strip().partition(" ")
        if name not in self.table:
            print(f"There is no {name}; there are {', '.join(self.table)}. Begin with a space to say it to the model.")
            return
        takes, _, run = self.table[name]
        argument = argument.strip()
        if bool(takes) != bool(argument):
            print(f"Expected: {name} {takes}".rstrip())
            return
        try:
            run(argument)
        except (SegmentAttentionError, OSError) as error:
            print(f"{name}: {error}")

    def _mask(self, _: str) -> None:
        batch = self.conversation.encode()
        ids, segment_ids = batch["input_ids"][0].tolist(), batch["segment_ids"][0].tolist()
        tokenizer = self.conversation.chat_model.tokenizer
        print(runs_table(runs_of(ids, segment_ids, tokenizer)))
        if sys.stdout.isatty():
            from rich.console import Console

            Console().print(coloured_tokens(ids, segment_ids, tokenizer), soft_wrap=True)

    def _stats(self, _: str) -> None:
        if not self.conversation.turns:
            print("No answers yet.")
        for number, turn in enumerate(self.conversation.turns, 1):
            after_first = max(turn.seconds - turn.first_token_seconds, 1e-9)
            print(
                f"{number}: prompt {turn.prompt_tokens} tokens, {turn.reused_tokens} from the cache ({turn.cache}), "
                f"{len(turn.segments)} segments; first token after {turn.first_token_seconds:.2f} s; "
                f"answer {turn.new_tokens} tokens, {max(turn.new_tokens - 1, 0) / after_first:.1f} per second, "
                f"{turn.finish}"
            )
        print(summary(self.conversation.prefixes))

    def _system(self, text: str) -> None:
        self.conversation.set_system(text)
        print("New conversation with this system prompt.")

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        print("New conversation.")

    def _save(self, name: str) -> None:
        path = Path(name).expanduser()
        content = {
            "model": self.conversation.chat_model.name,
            "attention": self.conversation.chat_model.attention,
            "messages": self.conversation.messages,
            "turns": [turn.to_dict() for turn in self.conversation.turns],
        }
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
        print(f"Saved {path}")

    def _help(self, _: str) -> None:
        for name, (takes, does, _run) in self.table.items():
            print(f"{f'{name} {takes}':14} {does}")
        print("Ctrl-C stops an answer.")

    def _quit(self, _: str) -> None:
        self.quit = True
