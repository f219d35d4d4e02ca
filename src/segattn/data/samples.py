"""One example to learn from or to be asked: the prompt as chat messages, the answer, and what to choose from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from segattn.errors import SegmentAttentionError

__all__ = ["ROLES", "DataError", "Message", "Sample", "check_messages"]

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "tool", "assistant")


class DataError(SegmentAttentionError, ValueError):
    """Data that cannot be used: the message names the file, the line and what was expected."""


@dataclass(frozen=True)
class Sample:
    """A prompt with its answer.

    Attributes:
        messages: the prompt, chat messages with "role" and "content"; the answer is not among them.
        answer: the text of the assistant message that follows; may be empty where it calls tools.
        choices: the candidate answers, the right one among them; None where the answer is free text.
        task: the name that results are grouped by.
        id: unique within a task.
        learn: "last" trains on the answer alone, "all" also on the assistant messages inside the prompt.
        tools: handed to the chat template: the JSON schemas of what the assistant may call.
        tool_calls: the calls of the answer, as in a chat message; None where it calls nothing.
    """

    messages: tuple[Message, ...]
    answer: str
    choices: tuple[str, ...] | None = None
    task: str = "data"
    id: str = ""
    learn: Literal["last", "all"] = "last"
    tools: tuple[Mapping[str, Any], ...] | None = None
    tool_calls: tuple[Mapping[str, Any], ...] | None = None

    def __post_init__(self) -> None:
        check_messages(self.messages)
        if self.messages[-1]["role"] == "assistant":
            raise DataError(
                "the prompt ends with an assistant message and an answer follows; expected a user or tool message last"
            )
        if not isinstance(self.answer, str) or not (self.answer.strip() or self.tool_calls):
            raise DataError(f"the answer is {self.answer!r}; expected a text that is not empty")
        if self.choices is not None:
            self._check_choices(self.choices)

    def _check_choices(self, choices: Sequence[str]) -> None:
        if len(choices) < 2 or len(set(choices)) != len(choices):
            raise DataError(f"the choices are {list(choices)!r}; expected at least two, all different")
        if self.answer not in choices:
            raise DataError(f"the answer {self.answer!r} is not among the choices {list(choices)!r}")

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The prompt's messages and the answer's."""
        calls = {} if self.tool_calls is None else {"tool_calls": list(self.tool_calls)}
        return (*self.messages, {"role": "assistant", "content": self.answer, **calls})

    @property
    def fingerprint(self) -> str:
        """A short hash of everything that decides how the sample is scored."""
        content: list[Any] = [
            self.task,
            self.id,
            [dict(message) for message in self.messages],
            self.answer,
            self.choices,
        ]
        content += [value for value in (self.tools, self.tool_calls) if value]
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what no chat template renders as it was meant.

    Raises:
        DataError: no messages, an unknown role, content that is not text, or two assistant messages in a row.
    """
    if not messages:
        raise DataError('there are no messages; expected at least one, e.g. {"role": "user", "content": "..."}')
    previous = None
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise DataError(
                f"message {number} is {_short(message)}; expected an object with a role ({', '.join(ROLES)}) and a "
                "content"
            )
        content = message.get("content")
        calls_a_tool = message["role"] == "assistant" and bool(message.get("tool_calls"))
        if not isinstance(content, str) and not (content is None and calls_a_tool):
            raise DataError(f"message {number} ({message['role']}) has content {_short(content)}; expected a text")
        if message["role"] == previous == "assistant":
            raise DataError(f"messages {number - 1} and {number} are both from the assistant; join them into one")
        previous = message["role"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
