"""How figures, tables and paragraphs look on the page. Each block ends with an empty line."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from segattn.bench.results import Row
from segattn.bench.timing import Spread

__all__ = ["bare", "bullets", "of", "picture", "prose", "ratio", "seconds", "table", "three", "tokens"]

WIDTH = 120


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table; the first `words` columns are words, the others figures."""
    marks = ["---" if place < words else "---:" for place in range(len(headings))]
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, marks, *rows]) + "\n"


def prose(text: str) -> str:
    """A paragraph."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n\n"


def bullets(items: Mapping[str, str]) -> str:
    """A list of names and what they are."""
    lines = [
        textwrap.fill(f"- **{name}**: {what}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        for name, what in items.items()
    ]
    return "\n".join(lines) + "\n\n"


def picture(title: str, description: str, link: str) -> str:
    """A heading with a picture below."""
    return f"### {title}\n\n![{description}]({link})\n\n"


def ratio(found: Spread, places: int = 2) -> str:
    """A ratio with its quartiles."""
    middle, low, high = (f"{value:.{places}f}" for value in (found.median, found.low, found.high))
    return middle if found.rounds == 1 else f"{middle} ({low}-{high})"


def three(found: Spread) -> str:
    """A ratio with its quartiles, to three places."""
    return ratio(found, 3)


def bare(found: Spread) -> str:
    """A ratio without its quartiles."""
    return f"{found.median:.2f}"


def of(row: Row, contestant: str, base: str, show: Callable[[Spread], str] = ratio) -> str:
    """A ratio of a row, or a dash where one of the two did not run."""
    return show(row.ratio(contestant, base)) if {contestant, base} <= set(row.figures) else "-"


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.{1 if value < 0.1 else 0}f} ms"


def tokens(row: Row) -> str:
    """The length of a row."""
    return f"{row.cell['length']:,}"
