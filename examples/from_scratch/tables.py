"""The task: follow the pointers of a table several steps at once.

A table of `NODES` numbers says where each node points: entry i is the node after node i, and the table is one closed
ring. The prompt shows the table (system message) and asks for once, twice or thrice (user message). The answer lists,
for each of the first `ASKED` nodes, where that many steps lead:

    system    3 5 0 7 1 2 4 6    node 0 points to 3, node 1 to 5, node 2 to 0, ...
    user      thrice
    assistant 6 0 7 4

Half of the entries point ahead. Who reads both ways can join two steps into one at every entry. Who reads from left to
right can do so only at the later of the two: one rule for entries that point back, another for those that point ahead.
The control shows the table two times in a row: at the second copy everything was seen before.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from segattn.data import Sample

__all__ = [
    "ASKED",
    "COPIES",
    "HOPS",
    "NODES",
    "Item",
    "answers_by_ruling_out",
    "draw_items",
    "split_items",
    "to_sample",
]

NODES = 8
ASKED = 4
HOPS = {1: "once", 2: "twice", 3: "thrice"}
COPIES = {"shown once": 1, "shown twice": 2}

Table = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """A table and how many steps are asked for.

    Attributes:
        table: entry i is the node after node i; one ring of all nodes.
        hops: 1, 2 or 3.
    """

    table: Table
    hops: int

    @property
    def answer(self) -> Table:
        """Where `hops` steps lead from each of the first nodes."""
        reached: Table = tuple(range(ASKED))
        for _ in range(self.hops):
            reached = tuple(self.table[node] for node in reached)
        return reached


def draw_table(generator: random.Random) -> Table:
    """Draw a ring through all nodes, each of the (NODES - 1)! equally likely."""
    rest = list(range(1, NODES))
    generator.shuffle(rest)
    ring = [0, *rest]
    following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return tuple(following[node] for node in range(NODES))


def draw_items(seed: int, without: frozenset[Table] = frozenset()) -> Iterator[Item]:
    """Yield items without end, hops in turn, no table of `without`."""
    generator = random.Random(seed)
    while True:
        for hops in HOPS:
            table = draw_table(generator)
            while table in without:
                table = draw_table(generator)
            yield Item(table, hops)


def split_items(train: int, held_out: int) -> tuple[list[Item], list[Item]]:
    """Return items to train on and held-out items of another seed; no table is in both.

    Args:
        train: how many items to train on; tables come again where there are more than (NODES - 1)! of them.
        held_out: how many tables to hold out, all different; each is asked for once, twice and thrice.
    """
    generator = random.Random(1)
    tables: dict[Table, None] = {}  # a set that keeps the order in which they were drawn
    while len(tables) < held_out:
        tables[draw_table(generator)] = None
    learned = draw_items(seed=2, without=frozenset(tables))
    return [next(learned) for _ in range(train)], [Item(table, hops) for table in tables for hops in HOPS]


def to_sample(item: Item, copies: int) -> Sample:
    """Return an item as a chat, the table shown `copies` times in a row."""
    table = " ".join(map(str, item.table * copies))
    messages = ({"role": "system", "content": table}, {"role": "user", "content": HOPS[item.hops]})
    return Sample(messages, " ".join(map(str, item.answer)), task=HOPS[item.hops])


def answers_by_ruling_out(items: list[Item], seed: int = 0) -> float:
    """Return the share of entries that is right by chance, where everything that cannot be is ruled out.

    A node is never where fewer steps lead, and never an earlier entry of the same answer.
    """
    generator, right = random.Random(seed), 0
    for item in items:
        for place, wanted in enumerate(item.answer):
            out, node = set(item.answer[:place]), place
            for _ in range(item.hops):
                out.add(node)
                node = item.table[node]
            right += generator.choice([node for node in range(NODES) if node not in out]) == wanted
    return right / (len(items) * ASKED)
