"""A conversation that keeps the keys and values of its turns, and says how much of them each turn could use."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from segattn.cli.loading import AnswerError, ChatModel

if TYPE_CHECKING:
    from segattn.generation import PrefixCache

__all__ = ["Conversation", "GenerationOptions", "Turn"]

Finish = Literal["end", "length", "stopped"]
Reuse = Literal["off", "empty", "part", "extended"]


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are generated; without `temperature` and `top_p`, greedily."""

    max_new_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for `generate`; a checkpoint's own sampling settings do not apply."""
        if self.temperature in (None, 0) and self.top_p is None:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature or 1.0, "top_p": self.top_p or 1.0, "top_k": 0}


@dataclass(frozen=True)
class Turn:
    """One answer and what it took.

    `reused_tokens` of the `prompt_tokens` came from the prefix cache. `cache` says how: "extended" (this conversation
    went on where it stood), "part" (a system prompt, or turns before a difference), "empty" (nothing fitted) or "off"
    (the model's keys cannot be shared, so that every turn computes all). `finish` is "end" (the model ended its
    answer), "length" or "stopped" (by the user).
    """

    text: str
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    segments: list[tuple[int, int]]
    first_token_seconds: float
    seconds: float
    cache: Reuse
    finish: Finish

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass
class Conversation:
    """Messages, what is known of their keys and values, and the answers so far.

    `prefixes` is None for a model whose keys cannot be shared.
    """

    chat_model: ChatModel
    options: GenerationOptions = field(default_factory=GenerationOptions)
    system: str | None = None
    prefixes: "PrefixCache | None" = None

    def __post_init__(self) -> None:
        self.turns: list[Turn] = []
        self.messages: list[dict[str, str]] = []
        self._stop = False
        self._held = 0  # tokens of this conversation whose keys were computed
        self.reset()

    def reset(self) -> None:
        """Forget the messages; the system prompt stays, and so do the prefixes."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        self._held = 0

    def set_system(self, text: str | None) -> None:
        """Begin a new conversation with this system prompt, or with none."""
        self.system = text
        self.reset()

    def stop(self) -> None:
        """Stop the answer under way after its next token; safe to call from a signal handler."""
        self._stop = True

    def encode(self) -> Any:
        """Return the batch (1, length) of the messages so far, with the generation prompt."""
        if not self.messages:
            raise AnswerError("the conversation has no messages yet; ask something first")
        return self.chat_model.encode(self.messages)

    def ask(self, text: str, write: Callable[[str], None] | None = None) -> Turn:
        """Answer one user message, and keep both in the conversation.

        Args:
            text: what the user says.
            write: receives the answer piece by piece while it is generated.

        Raises:
            AnswerError: the conversation no longer fits into the model's context.
            TemplateError: the chat template refuses the conversation.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            turn = self._answer(write or _discard)
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": turn.text})
        self.turns.append(turn)
        return turn

    def _answer(self, write: Callable[[str], None]) -> Turn:
        self._stop = False
        batch = self.encode()
        prompt, segment_ids = batch["input_ids"], batch["segment_ids"]
        room = _room(self.chat_model, prompt.shape[1])
        started = time.perf_counter()
        request = None if self.prefixes is None else self.prefixes.begin(prompt, segment_ids)
        clock = _Clock(self)
        output = self.chat_model.generate(
            batch,
            past_key_values=None if request is None else request.past_key_values,
            max_new_tokens=min(self.options.max_new_tokens, room),
            stopping_criteria=[clock],
            streamer=_streamer(self.chat_model.tokenizer, write),
            pad_token_id=_pad_token(self.chat_model),
            **self.options.arguments(),
        )
        seconds = time.perf_counter() - started
        answer = output[0, prompt.shape[1] :].tolist()
        reused = 0
        event: Reuse = "off"
        if self.prefixes is not None and request is not None:
            self.prefixes.finish(request, output)
            reused = request.reused[0]
            event = "empty" if reused == 0 else "extended" if 0 < self._held <= reused else "part"
        self._held = output.shape[1] - 1  # the newest token has no keys yet
        ended = bool(answer) and answer[-1] in _end_tokens(self.chat_model)
        return Turn(
            text=self.chat_model.tokenizer.decode(answer, skip_special_tokens=True).strip(),
            prompt_tokens=prompt.shape[1],
            reused_tokens=reused,
            new_tokens=len(answer),
            segments=_runs(segment_ids[0].tolist()),
            first_token_seconds=(clock.first or started) - started,
            seconds=seconds,
            cache=event,
            finish="end" if ended else "stopped" if self._stop else "length",
        )


def _runs(segment_ids: list[int]) -> list[tuple[int, int]]:
    """Return the segments as (start, end) pairs, end exclusive."""
    edges = [i for i in range(len(segment_ids)) if i == 0 or segment_ids[i] != segment_ids[i - 1]]
    ends = [*edges[1:], len(segment_ids)]
    return [(start, end) for start, end in zip(edges, ends, strict=True) if segment_ids[start] >= 0]


def _room(chat_model: ChatModel, prompt_tokens: int) -> int:
    length = chat_model.context_length
    if length is None:
        return 2**31 - 1
    if prompt_tokens >= length:
        raise AnswerError(
            f"the conversation has {prompt_tokens} tokens and {chat_model.name} holds {length}; shorten it or begin "
            "a new one"
        )
    return length - prompt_tokens


def _end_tokens(chat_model: ChatModel) -> set[int]:
    end = chat_model.model.generation_config.eos_token_id
    return set(end) if isinstance(end, (list, tuple)) else {end}


def _pad_token(chat_model: ChatModel) -> int | None:
    pad = chat_model.model.generation_config.pad_token_id
    return pad if pad is not None else chat_model.tokenizer.eos_token_id


class _Clock:
    """A stopping criterion: notes when the first token came, and ends the answer when the user asked for it."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.first: float | None = None

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
        if self.first is None:
            self.first = time.perf_counter()
        return input_ids.new_full((input_ids.shape[0],), self.conversation._stop).bool()


def _discard(piece: str) -> None:
    """Take a piece of an answer that nobody reads."""


def _streamer(tokenizer: Any, write: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc,unused-ignore]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
            if text:
                write(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
