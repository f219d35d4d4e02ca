"""Read from rendered text what a template writes around user and assistant messages."""

from dataclasses import dataclass

from segattn.errors import TemplateError
from segattn.templates.affixes import common_prefix, common_suffix
from segattn.templates.probes import Probe, Prober, Rendering, chat

__all__ = ["HOW_TO_NAME_MARKERS", "Layout", "read_layout"]

HOW_TO_NAME_MARKERS = (
    "Name the markers instead: segattn.Segmenter.from_markers(tokenizer, bidirectional=['<|user|>', ...], "
    "causal=['<|assistant|>'])"
)


@dataclass(frozen=True)
class Layout:
    """The text that a template writes around messages, without the whitespace before it.

    `user`: before a user message. `assistant`: before an assistant message, "" if there is nothing. `closing`:
    after a user message, where the assistant has no header. `opening`: roles a conversation must begin with.
    """

    user: str
    assistant: str
    closing: str
    opening: tuple[str, ...]


def read_layout(prober: Prober) -> Layout:
    """Compare conversations that differ by one message.

    Raises:
        TemplateError: the template refuses user/assistant conversations, or writes nothing that tells them apart.
    """
    for opening in ((), ("system",)):
        asked = prober.probe(chat(*opening, "user"))
        answered = prober.probe(chat(*opening, "user", "assistant"))
        if asked is None or answered is None or len(answered.words) != len(opening) + 2:
            continue
        going_on = prober.probe(chat(*opening, "user", "assistant", "user"))
        prompted = prober.text(chat(*opening, "user"), generation=True)
        return _compare(prober, opening, asked, answered, going_on, prompted or asked.rendering.text)
    raise TemplateError(
        "the chat template refuses a conversation of one user and one assistant message, or leaves one of them out; "
        f"expected one that renders both. {HOW_TO_NAME_MARKERS}"
    )


def _compare(
    prober: Prober, opening: tuple[str, ...], asked: Probe, answered: Probe, going_on: Probe | None, prompted: str
) -> Layout:
    before_user = asked.between(len(asked.words) - 1)
    before_answer = answered.between(len(answered.words) - 1)
    before_next = going_on.between(len(going_on.words) - 1) if going_on else ""
    user = _user_header(prober, before_user, before_next, answered.tail)
    generation = prompted.removeprefix(asked.rendering.text) if prompted.startswith(asked.rendering.text) else ""
    assistant = _assistant_header(generation, before_answer, asked.tail)
    if not assistant:
        assistant = _unconditional_prompt(before_next, user, answered.tail, before_answer)
    if not assistant:
        assistant = _header_in_the_question(prober, user, before_answer)
    bos = str(prober.tokenizer.bos_token or "")
    if bos and user.startswith(bos) and not assistant.startswith(bos):
        user = user.removeprefix(bos).lstrip()
    closing = "" if assistant else before_answer.strip()
    if not user or not (assistant or closing):
        raise TemplateError(
            f"the chat template writes {before_user!r} before a user message and {before_answer!r} between it and "
            f"the answer; expected text that tells the two apart. {HOW_TO_NAME_MARKERS}"
        )
    return Layout(user, assistant, closing, opening)


def _user_header(prober: Prober, first: str, later: str, after_answer: str) -> str:
    """The text before a user message, given what stands before the first and a later one."""
    if later and later.startswith(after_answer) and later[len(after_answer) :].strip():
        return later[len(after_answer) :].lstrip()
    if later:
        return _shared_end(prober.encode(first), prober.encode(later)).lstrip()
    return first.lstrip()


def _assistant_header(generation: str, before_answer: str, after_question: str) -> str:
    """The text before an assistant message: what the generation prompt and a rendered answer begin with."""
    added = before_answer
    if before_answer.startswith(after_question):
        added = before_answer[len(after_question) :]
    if not generation.strip():
        return added.lstrip() if before_answer.startswith(after_question) else ""
    common = common_prefix([generation.lstrip(), added.lstrip()])
    if common.strip():
        return common
    # The end of a question reads otherwise at the end of a conversation: look for the prompt's first line.
    line = generation.strip().splitlines()[0]
    return line if line in before_answer else ""


def _unconditional_prompt(before_next: str, user: str, after_answer: str, before_answer: str) -> str:
    """The generation prompt of a template that writes it always, even after an answer."""
    end = before_next[: before_next.rfind(user)] if user and user in before_next else ""
    prompt = after_answer.removeprefix(end)
    return prompt.lstrip() if end and prompt != after_answer and before_answer.endswith(prompt) else ""


def _header_in_the_question(prober: Prober, user: str, before_answer: str) -> str:
    """The answer's header where the template writes it with each question and knows no generation prompt.

    It begins with the special token that user headers begin with, e.g. `<|im_start|>`.
    """
    ids = prober.encode(user).ids
    head = prober.added.get(ids[0], "") if ids else ""
    at = before_answer.rfind(head) if head else -1
    return before_answer[at:] if at >= 0 and before_answer[at + len(head) :].strip() else ""


def _shared_end(first: Rendering, second: Rendering) -> str:
    """The text of the tokens that both end with (characters would cut into a special token)."""
    shared = len(common_suffix([first.ids, second.ids]))
    return first.text[first.offsets[-shared][0] :] if shared else ""
