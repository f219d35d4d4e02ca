"""The row formats that are recognised by their fields, and how each becomes a `Sample`.

| format | fields | prompt | answer |
|---|---|---|---|
| chat | messages | all messages before the last | the last (assistant) message; earlier ones are learned too |
| prompt and completion | prompt, completion | text, or a list of messages | text, or a list of one assistant message |
| instruction | instruction, output (input, answer) | instruction, then input | output |
| intent | text, intent | text | intent, underscores as spaces |
| slots | text, slots (requested) | text, then what was asked for | `slot: value` for each slot, or `none` |
| BoolQ, PIQA, Social IQa, HellaSwag, WinoGrande, ARC, OpenBookQA | see `segattn.data.commonsense_rows` | | |
| reading | context, question, answers | context, blank line, question | the first of answers |

Any row may also carry `choices` (candidate answers), `task` and `id`; the first two also `tools`, which the chat
template describes to the model, and tool calls in their messages. `segattn.data.texts` reads plain text with spans.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segattn.data.commonsense_rows import COMMONSENSE_ROWS
from segattn.data.samples import DataError, Sample

__all__ = ["FORMATS", "Format", "complete_intents", "format_of", "read_row"]

Row = Mapping[str, Any]

_OPTIONS = re.compile(r"Answer format:\s*(\S+(?:/\S+)+)\s*$")


@dataclass(frozen=True)
class Format:
    """A row format: its name, the fields that tell it, and its reader."""

    name: str
    fields: tuple[str, ...]
    read: Callable[[Row], Sample]


def _user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def _text(row: Row, field: str) -> str:
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{field} is {value!r}; expected a text that is not empty")
    return value


def _messages(row: Row, field: str) -> tuple[Row, ...]:
    value = row[field]
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise DataError(f"{field} is {value!r}; expected a list of messages with role and content")
    return tuple(value)


def _read_chat(row: Row) -> Sample:
    messages = _messages(row, "messages")
    last = messages[-1]
    if len(messages) < 2 or not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise DataError("messages must hold a prompt and end with an assistant message, which is the answer")
    return Sample(messages=messages[:-1], learn="all", tools=_tools(row), **_answer(last))


def _answer(message: Row) -> dict[str, Any]:
    calls = message.get("tool_calls") or None
    return {"answer": message.get("content") or "", "tool_calls": None if calls is None else tuple(calls)}


def _tools(row: Row) -> tuple[Row, ...] | None:
    """The tools of a row: a list of schemas, or (columns of data sets hold one type) the JSON text of such a list."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except json.JSONDecodeError as error:
            raise DataError(f"tools is a text that is no JSON ({error}); expected a list of tool schemas") from error
    if not tools:
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"tools is {str(tools)[:80]!r}; expected a list of tool schemas, JSON objects")
    return tuple(tools)


def _read_completion(row: Row) -> Sample:
    prompt = row["prompt"]
    messages = _user(_text(row, "prompt")) if isinstance(prompt, str) else _messages(row, "prompt")
    if isinstance(row["completion"], str):
        return Sample(messages=messages, answer=_text(row, "completion"), tools=_tools(row))
    completion = _messages(row, "completion")
    if len(completion) != 1 or completion[0].get("role") != "assistant":
        raise DataError("completion must be a text or a list of exactly one assistant message")
    return Sample(messages=messages, tools=_tools(row), **_answer(completion[0]))


def _read_instruction(row: Row) -> Sample:
    instruction, output = _text(row, "instruction"), _text(row, "output")
    prompt = f"{instruction}\n{row['input']}" if row.get("input") else instruction
    return Sample(messages=_user(prompt), answer=output, choices=_options(instruction, output, row.get("answer")))


def _options(instruction: str, output: str, answer: Any) -> tuple[str, ...] | None:
    """The candidates of a commonsense row: the output with each option of "Answer format: a/b" for the right one."""
    if answer is None:
        return None
    found = _OPTIONS.search(instruction)
    if found is None:
        raise DataError('there is an answer, but instruction does not end with its options, "Answer format: a/b/..."')
    options = found.group(1).split("/")
    if answer not in options or not output.endswith(answer):
        raise DataError(
            f"the answer {answer!r} must be one of {options} (the options in instruction) and end the output {output!r}"
        )
    stem = output.removesuffix(answer)
    return tuple(stem + option for option in options)


def _read_intent(row: Row) -> Sample:
    return Sample(messages=_user(_text(row, "text")), answer=_text(row, "intent").replace("_", " "))


def _read_slots(row: Row) -> Sample:
    slots = row["slots"]
    if not isinstance(slots, Sequence) or not all(
        isinstance(s, Mapping) and {"slot", "value"} <= set(s) for s in slots
    ):
        raise DataError(f"slots is {str(slots)[:80]!r}; expected a list of objects with slot and value")
    requested = row.get("requested") or []
    text = _text(row, "text") + (f"\n\nAsked for: {', '.join(requested)}" if requested else "")
    answer = "; ".join(f"{slot['slot']}: {slot['value']}" for slot in slots)
    return Sample(messages=_user(text), answer=answer or "none")


def _read_reading(row: Row) -> Sample:
    answers = row["answers"]
    if isinstance(answers, Mapping):  # the hub's SQuAD: {"text": [...], "answer_start": [...]}
        answers = answers.get("text")
    if isinstance(answers, str) or not isinstance(answers, Sequence) or not answers:
        raise DataError(f"answers is {answers!r}; expected a list of at least one text")
    return Sample(messages=_user(f"{_text(row, 'context')}\n\n{_text(row, 'question')}"), answer=answers[0])


def _commonsense_formats() -> list[Format]:
    def reader(to_instruction: Callable[[Row], Row]) -> Callable[[Row], Sample]:
        def read(row: Row) -> Sample:
            try:
                return _read_instruction(to_instruction(row))
            except (KeyError, TypeError, ValueError) as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(f"the row names no right option ({error!r}); test splits often hide it") from error

        return read

    return [Format(name, fields, reader(to_instruction)) for name, fields, to_instruction in COMMONSENSE_ROWS]


FORMATS = (
    Format("chat", ("messages",), _read_chat),
    Format("prompt and completion", ("prompt", "completion"), _read_completion),
    Format("instruction", ("instruction", "output"), _read_instruction),
    Format("intent", ("text", "intent"), _read_intent),
    Format("slots", ("text", "slots"), _read_slots),
    Format("reading", ("context", "question", "answers"), _read_reading),
    *_commonsense_formats(),
)


def format_of(row: Row) -> Format:
    """Return the format that a row's fields tell.

    Raises:
        DataError: the fields fit no format.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"the row is a {type(row).__name__}; expected a JSON object")
    for candidate in FORMATS:
        if all(field in row for field in candidate.fields):
            return candidate
    known = "; ".join(f"{known.name}: {', '.join(known.fields)}" for known in FORMATS)
    raise DataError(f"the fields {sorted(row)} fit no format. Expected one of: {known}")


def read_row(row: Row, expected: Format, task: str, sample_id: str) -> Sample:
    """Read one row that must be of the expected format.

    Raises:
        DataError: another format, a missing field, or contents that cannot be used.
    """
    found = format_of(row)
    if found is not expected:
        raise DataError(f"the row is of the format {found.name!r}, the first one was {expected.name!r}; split the data")
    sample = found.read(row)
    choices = sample.choices if isinstance(row.get("choices"), Mapping) else row.get("choices", sample.choices)
    return replace(
        sample,
        choices=None if choices is None else tuple(choices),
        task=str(row.get("task", task)),
        id=str(row.get("id", sample_id)),
    )


def complete_intents(samples: list[Sample], intents: set[str]) -> list[Sample]:
    """Give every sample of the intent format all intents as choices; with one intent there is no choice."""
    choices = tuple(sorted(intents))
    return [replace(sample, choices=choices) for sample in samples] if len(choices) > 1 else samples
