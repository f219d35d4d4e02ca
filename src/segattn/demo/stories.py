"""A small, seeded source of story worlds: people walk, take and drop things; the question comes last.

    Omar goes to the barn. Emma takes the lamp. ... Where is the lamp?

Every place of a story is visited once, and the answer is equally often each of the visited places in order of
mention, so that no rule about the position of a place beats one in `DIFFICULTIES[...].moves`. `baselines`
measures what such rules get.
"""

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["DIFFICULTIES", "PLACES", "Difficulty", "Story", "baselines", "stories"]

Split = Literal["train", "held-out"]

PLACES = ("kitchen", "garden", "barn", "office", "school", "market")
PEOPLE = ("Anna", "Omar", "Emma", "Paul", "Lucy", "Jack", "Rosa", "Tom", "Sara", "Ben", "Mary", "Max")
THINGS = ("lamp", "key", "book", "coin", "cup", "map", "rope", "bell")
BOXES = ("box", "bag", "basket")

SYSTEM_TEXT = "Answer with one place."
# One text in this many belongs to the held-out split, whatever the seed: a hash of the text decides.
HELD_OUT_SHARE = 5
MOST_STORIES = 5000


@dataclass(frozen=True)
class Difficulty:
    """How a story is made: how many people, moves and other acts (one number of these), and what is asked for."""

    people: int
    moves: int
    acts: tuple[int, ...]
    asks: Literal["person", "thing", "packed thing"]


DIFFICULTIES: dict[str, Difficulty] = {
    # Where is the person? The place that the person went to last.
    "easy": Difficulty(people=2, moves=3, acts=(0,), asks="person"),
    # Where is the thing? Somebody takes it, walks, perhaps drops it and walks on.
    "medium": Difficulty(people=2, moves=4, acts=(1, 2), asks="thing"),
    # Where is the thing that was put into a box? The box is carried and dropped.
    "hard": Difficulty(people=2, moves=4, acts=(1, 2, 3), asks="packed thing"),
}


@dataclass(frozen=True)
class Story:
    """One example: the prompt as chat messages, the answer and all answers to choose from."""

    messages: tuple[dict[str, str], ...]
    answer: str
    choices: tuple[str, ...]

    @property
    def text(self) -> str:
        """The story with its question: the last message."""
        return self.messages[-1]["content"]


@dataclass
class _World:
    """Where everybody and everything is while a story is told."""

    place_of_person: dict[str, str] = field(default_factory=dict)
    # A thing lies at a place, is held by a person or is inside a box: whatever it moves with.
    carrier: dict[str, str] = field(default_factory=dict)

    def place(self, name: str) -> str | None:
        """Return the place of a person or thing, or None while the story has not told it."""
        while name in self.carrier:
            name = self.carrier[name]
        return name if name in PLACES else self.place_of_person.get(name)


def stories(count: int, seed: int, difficulty: str = "medium", split: Split = "train") -> list[Story]:
    """Make `count` different stories; the same arguments always give the same list.

    Args:
        count: how many; the answers are spread evenly over `PLACES`.
        seed: any integer.
        difficulty: a key of `DIFFICULTIES`.
        split: "train" and "held-out" never share a text, whatever their seeds.

    Raises:
        ValueError: an unknown difficulty or split, or a count out of range.
    """
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty is {difficulty!r}; expected one of {', '.join(DIFFICULTIES)}")
    if split not in ("train", "held-out"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'held-out'")
    if not 0 <= count <= MOST_STORIES:
        raise ValueError(f"count is {count}; expected 0 to {MOST_STORIES}: there are not many more different texts")
    rng = random.Random(f"{seed}/{difficulty}/{split}")
    found: list[Story] = []
    seen: set[str] = set()
    for answer in _balanced(count, rng):
        story = _story(DIFFICULTIES[difficulty], answer, split, seen, rng)
        seen.add(story.text)
        found.append(story)
    return found


def baselines(examples: Sequence[Story]) -> dict[str, float]:
    """Return the accuracy of guessing, and of rules that look only at the position of a place.

    The rules answer with the first, second, ... last place that the story names, or with the answer that is
    the most frequent one in `examples`.
    """
    if not examples:
        raise ValueError("baselines of no examples; expected at least one")
    total = len(examples)
    answers = [example.answer for example in examples]
    result = {
        "guessing": sum(1 / len(example.choices) for example in examples) / total,
        "most frequent answer": max(map(answers.count, answers)) / total,
    }
    named = [_places_named(example.text) for example in examples]
    for position in range(max(map(len, named))):
        hits = sum(len(p) > position and p[position] == a for p, a in zip(named, answers, strict=True))
        result[f"place {position + 1} of the story"] = hits / total
    result["last place of the story"] = sum(p[-1:] == [a] for p, a in zip(named, answers, strict=True)) / total
    return result


def _places_named(text: str) -> list[str]:
    words = text.replace(".", " ").replace("?", " ").split()
    return [word for word in words if word in PLACES]


def _balanced(count: int, rng: random.Random) -> Iterator[str]:
    """Yield answers in random order, each place as often as every other (give or take one)."""
    whole, rest = divmod(count, len(PLACES))
    answers = [*PLACES * whole, *rng.sample(PLACES, rest)]
    rng.shuffle(answers)
    yield from answers


def _story(difficulty: Difficulty, answer: str, split: Split, seen: set[str], rng: random.Random) -> Story:
    """Tell stories until one has this answer as the wanted place in the order of mention, and is a new one."""
    wanted = rng.randrange(difficulty.moves)
    while True:
        others = rng.sample([place for place in PLACES if place != answer], difficulty.moves - 1)
        visits = [*others[:wanted], answer, *others[wanted:]]
        told = _tell(difficulty, visits, rng)
        if told is None:
            continue
        text, place = told
        if place == answer and text not in seen and _split_of(text) == split:
            messages = ({"role": "system", "content": SYSTEM_TEXT}, {"role": "user", "content": text})
            return Story(messages, answer, PLACES)


def _split_of(text: str) -> Split:
    return "held-out" if zlib.crc32(text.encode()) % HELD_OUT_SHARE == 0 else "train"


def _tell(difficulty: Difficulty, visits: list[str], rng: random.Random) -> tuple[str, str] | None:
    """Tell one story that visits these places in this order; return it with the true answer, None if there is none."""
    people = rng.sample(PEOPLE, difficulty.people)
    thing, box = rng.choice(THINGS), rng.choice(BOXES)
    kinds = ["move"] * difficulty.moves + ["act"] * rng.choice(difficulty.acts)
    rng.shuffle(kinds)
    world, sentences, places = _World(), [], iter(visits)
    for kind in kinds:
        person = rng.choice(people)
        if kind == "move":
            world.place_of_person[person] = place = next(places)
            sentences.append(f"{person} goes to the {place}.")
            continue
        sentence = _act(world, person, thing, box if difficulty.asks == "packed thing" else None, rng)
        if sentence is None:
            return None
        sentences.append(sentence)
    asked = rng.choice(people) if difficulty.asks == "person" else thing
    if difficulty.asks == "packed thing" and world.carrier.get(thing) != box:
        return None
    answer = world.place(asked)
    if answer is None:
        return None
    question = f"Where is {asked}?" if difficulty.asks == "person" else f"Where is the {asked}?"
    return " ".join([*sentences, question]), answer


def _act(world: _World, person: str, thing: str, box: str | None, rng: random.Random) -> str | None:
    """Let a person take, pack or drop something; None when this person can do nothing here."""
    place = world.place_of_person.get(person)
    if place is None:
        return None
    portable = thing if box is None else box

    def lies_here(name: str) -> bool:
        # What the story has not told of yet is found wherever somebody first touches it.
        return world.carrier.get(name, place) == place

    options: list[tuple[str, str, str]] = []  # the sentence, what is moved, what carries it from now on
    if lies_here(portable):
        options.append((f"{person} takes the {portable}.", portable, person))
    if world.carrier.get(portable) == person:
        options.append((f"{person} drops the {portable}.", portable, place))
    if box is not None and thing not in world.carrier and (lies_here(box) or world.carrier[box] == person):
        options.append((f"{person} puts the {thing} into the {box}.", thing, box))
    if not options:
        return None
    sentence, name, carrier = rng.choice(options)
    if carrier == box:
        world.carrier.setdefault(carrier, place)
    world.carrier[name] = carrier
    return sentence
