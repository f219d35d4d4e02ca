"""A conversation that keeps its KV cache between turns, and says how much of it each turn could use."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from segattn.cli.loading import AnswerError, ChatModel

__all__ = ["Conversation", "GenerationOptions", "Turn", "reusable_length"]

Finish = Literal["end", "length", "stopped"]


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

    `reused_tokens` of the `prompt_tokens` came from the cache. `cache` says what happened to it: "empty" (nothing
    to reuse), "extended", "cut" (its tail no longer fitted the conversation) or "rebuilt" (nothing of it fitted).
    `finish` is "end" (the model ended its answer), "length" or "stopped" (by the user).
    """

    text: str
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    segments: list[tuple[int, int]]
    first_token_seconds: float
    seconds: float
    cache: str
    finish: Finish

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass
class Conversation:
    """Messages, the cache that holds their keys and values, and the answers so far."""

    chat_model: ChatModel
    options: GenerationOptions = field(default_factory=GenerationOptions)
    system: str | None = None

    def __post_init__(self) -> None:
        self.turns: list[Turn] = []
        self.messages: list[dict[str, str]] = []
        self._stop = False
        # What the cache holds: its tokens, and the segments that they were computed under.
        self._cache: Any = None
        self._ids: list[int] = []
        self._segment_ids: list[int] = []
        self.reset()

    def reset(self) -> None:
        """Forget the messages and the cache; the system prompt stays."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        self._forget()

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
            # Half a turn would poison the next one: neither its message nor its cache stays.
            self.messages.pop()
            self._forget()
            raise
        self.messages.append({"role": "assistant", "content": turn.text})
        self.turns.append(turn)
        return turn

    def _answer(self, write: Callable[[str], None]) -> Turn:
        from transformers import DynamicCache

        self._stop = False
        batch = self.encode()
        ids, segment_ids = batch["input_ids"][0].tolist(), batch["segment_ids"][0].tolist()
        room = _room(self.chat_model, len(ids))
        reused, event = self._fit_cache(ids, segment_ids)
        if self._cache is None:
            self._cache = DynamicCache(config=self.chat_model.model.config)
        started = time.perf_counter()
        clock = _Clock(self)
        output = self.chat_model.generate(
            batch,
            past_key_values=self._cache,
            max_new_tokens=min(self.options.max_new_tokens, room),
            stopping_criteria=[clock],
            streamer=_streamer(self.chat_model.tokenizer, write),
            pad_token_id=_pad_token(self.chat_model),
            **self.options.arguments(),
        )
        seconds = time.perf_counter() - started
        sequence = output[0].tolist()
        answer = sequence[len(ids) :]
        # The newest token has no keys yet. All generated tokens are causal.
        held = int(self._cache.get_seq_length())
        self._ids = sequence[:held]
        self._segment_ids = (segment_ids + [-1] * len(answer))[:held]
        ended = bool(answer) and answer[-1] in _end_tokens(self.chat_model)
        return Turn(
            text=self.chat_model.tokenizer.decode(answer, skip_special_tokens=True).strip(),
            prompt_tokens=len(ids),
            reused_tokens=reused,
            new_tokens=len(answer),
            segments=_runs(segment_ids),
            first_token_seconds=(clock.first or started) - started,
            seconds=seconds,
            cache=event,
            finish="end" if ended else "stopped" if self._stop else "length",
        )

    def _fit_cache(self, ids: list[int], segment_ids: list[int]) -> tuple[int, str]:
        """Cut the cache back to what the new prompt begins with; returns (tokens kept, what happened)."""
        if self._cache is None:
            return 0, "empty"
        held = len(self._ids)
        kept = reusable_length(self._ids, self._segment_ids, ids, segment_ids)
        if kept == held:
            return kept, "extended"
        # Sliding-window and recurrent layers have let go of what a cut would bring back.
        if kept == 0 or not _can_be_cut(self._cache):
            self._forget()
            return 0, "rebuilt"
        self._cache.crop(kept - held)  # negative: how many to let go
        return kept, "cut"

    def _forget(self) -> None:
        self._cache = None
        self._ids, self._segment_ids = [], []


def reusable_length(
    cached_ids: list[int], cached_segment_ids: list[int], ids: list[int], segment_ids: list[int]
) -> int:
    """Return how many cached tokens a new prompt can build on.

    They must be the same tokens under the same segments, and the cut may not go through a segment, neither a cached
    one (its tokens have seen what follows the cut) nor a new one (its tokens must see what follows). At least one
    token is left to compute.
    """
    limit = min(len(cached_ids), len(ids) - 1)
    kept = next((i for i in range(limit) if cached_ids[i] != ids[i] or cached_segment_ids[i] != segment_ids[i]), limit)
    while kept > 0 and (_inside(cached_segment_ids, kept) or _inside(segment_ids, kept)):
        kept -= 1
    return kept


def _inside(segment_ids: list[int], position: int) -> bool:
    """Tell whether a cut before `position` goes through a segment."""
    return position < len(segment_ids) and segment_ids[position - 1] == segment_ids[position] >= 0


def _runs(segment_ids: list[int]) -> list[tuple[int, int]]:
    """Return the segments as (start, end) pairs, end exclusive."""
    edges = [i for i in range(len(segment_ids)) if i == 0 or segment_ids[i] != segment_ids[i - 1]]
    ends = [*edges[1:], len(segment_ids)]
    return [(start, end) for start, end in zip(edges, ends, strict=True) if segment_ids[start] >= 0]


def _can_be_cut(cache: Any) -> bool:
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


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
