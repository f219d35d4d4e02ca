"""Whether an answer that a model wrote is the right one."""

import re
import string
from collections.abc import Sequence

from segattn.data import Sample

__all__ = ["chosen_option", "is_right", "options_of"]


def options_of(choices: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Split choices into the words with which they all begin and what tells them apart.

    ("the correct answer is true", "the correct answer is false") -> ("the correct answer is ", ("true", "false"))
    """
    words = [choice.split(" ") for choice in choices]
    shared = 0
    while all(any(one[shared + 1 :]) for one in words) and len({one[shared] for one in words}) == 1:
        shared += 1
    stem = "".join(f"{word} " for word in words[0][:shared])
    return stem, tuple(" ".join(one[shared:]) for one in words)


def chosen_option(text: str, options: Sequence[str]) -> str | None:
    """Return the option that a text names first; of those that begin at one place, the longest.

    LLM-Adapters' evaluation reads answers so (arXiv 2304.01933, its commonsense_evaluate.py): the first of "true" and
    "false", of "answer1", "answer2", ... in what was generated. Here an option counts as a whole word, in any case.
    """
    found = []
    for option in options:
        match = re.search(rf"(?<!\w){re.escape(option.lower())}(?!\w)", text.lower())
        if match:
            found.append((match.start(), -len(option), option))
    return min(found)[2] if found else None


def is_right(text: str, sample: Sample) -> bool:
    """Tell whether a generated text answers a sample rightly.

    Choices that share their first words ("the correct answer is ...") are looked for in the text; other answers must
    be the same text, but for case, punctuation, articles and white space (as SQuAD compares them, arXiv 1606.05250).
    """
    if sample.choices:
        stem, options = options_of(sample.choices)
        if stem:
            return chosen_option(text, options) == sample.answer.removeprefix(stem)
    return _plain(text) == _plain(sample.answer)


def _plain(text: str) -> str:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))
