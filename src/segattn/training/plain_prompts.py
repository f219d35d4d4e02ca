"""A few thousand plain English prompts, made from lists: for trials where no data set of prompts is at hand.

Requests about a topic, questions to a short note, and chats that go on from an answer; a third of them under a system
prompt. Topics and people of the "dev" split never occur in "train", so that held-out prompts are of other things.
"""

import random
from collections.abc import Iterator

from segattn.data import Message, Split
from segattn.training.prompts import Prompt

__all__ = ["plain_prompts"]

_TOPICS = (
    "photosynthesis", "volcanoes", "the water cycle", "honey bees", "electric cars", "the Roman Empire", "chess",
    "black holes", "vaccines", "the printing press", "jazz music", "solar power", "earthquakes", "coral reefs",
    "the human heart", "bread baking", "the Great Wall of China", "penguins", "the internet", "gravity", "rainbows",
    "the French Revolution", "recycling", "the moon", "owls", "democracy", "the Silk Road", "glaciers", "inflation",
    "the immune system", "tea", "bridges", "whales", "the Renaissance", "thunderstorms", "public libraries",
    "marathons", "chocolate", "satellites", "deserts", "dreams", "the violin", "airplanes", "mushrooms", "sleep",
    "maps", "steam engines",
    "ocean tides", "forests", "money", "yoga", "robots", "dinosaurs", "cheese", "clocks", "the Olympic Games", "rice",
    "lighthouses", "fossils", "windmills", "magnets", "spiders", "castles", "comets", "DNA", "coffee", "bicycles",
)  # fmt: skip

_REQUESTS = (
    "What is {topic}? Answer in one sentence.", "Explain {topic} to a child.", "Give me three facts about {topic}.",
    "Write a short poem about {topic}.", "Why does {topic} matter?", "Write a title for an essay about {topic}.",
    "Write one question that a teacher could ask about {topic}.", "List five words that belong to {topic}.",
    "Tell me something surprising about {topic}.", "Write a message to a friend about {topic}.",
    "What do people often get wrong about {topic}?", "Describe {topic} in exactly ten words.",
    "Name one book or film that has to do with {topic}.", "I have to give a talk about {topic}. How should I begin?",
    "Compare {topic} with {other}.", "What could {topic} and {other} have in common?",
    "Write a tweet about {topic}.", "What would the world be without {topic}?", "Write a riddle about {topic}.",
    "Is it true that {topic} can be dangerous?", "Suggest a science project about {topic}.",
)  # fmt: skip

_PEOPLE = ("Anna", "Omar", "Emma", "Paul", "Lucy", "Jack", "Rosa", "Tom", "Sara", "Ben", "Mary", "Max", "Ivan", "Noor",
           "Lea")  # fmt: skip
_ERRANDS = ("buy apples", "call the dentist", "return a book", "fix the bike", "feed the cat", "post a letter",
            "pay the rent", "book a train", "water the plants", "bake a cake")  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_SYSTEMS = (
    "Answer in one short sentence.", "You are a friendly teacher.", "Be brief and precise.",
    "You are a helpful librarian.",
    "Answer politely.", "You write for a newspaper.", "Use simple words only.", "You are an assistant for travellers.",
)  # fmt: skip

_FOLLOW_UPS = ("Can you say that in fewer words?", "Why is that so?", "Give me an example.", "And what else?",
               "Write that as a question.", "Thank you. What should I read next?")  # fmt: skip

# One topic, one person in this many belongs to the dev split.
_DEV_SHARE = 5


def plain_prompts(split: Split = "train", seed: int = 0) -> Iterator[Prompt]:
    """Yield prompts without end; the same arguments always give the same ones, and some come twice.

    Args:
        split: "train" and "dev" share no topic and no person.
        seed: decides which prompts come in which order.
    """
    rng = random.Random(f"{seed}/{split}")
    topics = _share(_TOPICS, split)
    people = _share(_PEOPLE, split)
    number = 0
    while True:
        number += 1
        kind = rng.random()
        messages: list[Message] = []
        if rng.random() < 1 / 3:
            messages.append({"role": "system", "content": rng.choice(_SYSTEMS)})
        if kind < 0.6:
            messages.append(_user(_request(topics, rng)))
        elif kind < 0.85:
            messages.append(_user(_note(people, rng)))
        else:
            messages += _chat(topics, rng)
        yield Prompt.alone(messages, f"built-in prompt {number}")


def _share(items: tuple[str, ...], split: Split) -> list[str]:
    return [item for place, item in enumerate(items) if (place % _DEV_SHARE == 0) == (split == "dev")]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _request(topics: list[str], rng: random.Random) -> str:
    topic, other = rng.sample(topics, 2)
    return rng.choice(_REQUESTS).format(topic=topic, other=other)


def _note(people: list[str], rng: random.Random) -> str:
    """A note of what people do on which day, and a question to it, before or after the note."""
    names = rng.sample(people, rng.randint(2, min(4, len(people)))) if len(people) > 2 else people
    days, errands = rng.sample(_DAYS, len(names)), rng.sample(_ERRANDS, len(names))
    plans = list(zip(names, days, errands, strict=True))
    note = " ".join(f"{name} has to {errand} on {day}." for name, day, errand in plans)
    name, day, errand = rng.choice(plans)
    question = rng.choice(
        (
            f"When does {name} have to {errand}?",
            f"What does {name} have to do?",
            f"Who is busy on {day}?",
            "Write these plans as a list.",
            "Sum this up in one sentence.",
        )
    )
    return f"{question}\n\n{note}" if rng.random() < 0.3 else f"{note}\n\n{question}"


def _chat(topics: list[str], rng: random.Random) -> list[Message]:
    topic = rng.choice(topics)
    answer = f"{topic[0].upper()}{topic[1:]} is a wide subject, and people have asked about it for a long time."
    return [
        _user(f"Tell me about {topic}."),
        {"role": "assistant", "content": answer},
        _user(rng.choice(_FOLLOW_UPS)),
    ]
