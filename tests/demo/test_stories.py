"""Stories against a simulator of its own, which reads the text and knows nothing of the generator."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segattn.demo.stories import DIFFICULTIES, PLACES, Story, baselines, stories

SENTENCES = {
    "goes": re.compile(r"(\w+) goes to the (\w+)\."),
    "takes": re.compile(r"(\w+) takes the (\w+)\."),
    "drops": re.compile(r"(\w+) drops the (\w+)\."),
    "puts": re.compile(r"\w+ puts the (\w+) into the (\w+)\."),
}


def follow(text: str) -> str:
    """Answer the question of a story by moving every single thing along, sentence by sentence."""
    where: dict[str, str] = {}
    hands: dict[str, str] = {}  # thing -> who holds it
    inside: dict[str, str] = {}  # thing -> box

    def settle() -> None:
        for thing, person in hands.items():
            where[thing] = where[person]
        for thing, box in inside.items():
            if box in where:
                where[thing] = where[box]

    for sentence in re.findall(r"[^.?]+\.", text):
        verb, match = next((v, m) for v, p in SENTENCES.items() if (m := p.fullmatch(sentence.strip())))
        first, second = match.groups()
        if verb == "goes":
            where[first] = second
        elif verb == "takes":
            assert second not in hands, f"taken twice: {text}"
            assert where.get(second, where[first]) == where[first], f"taken from afar: {text}"
            hands[second] = first
        elif verb == "drops":
            assert hands.pop(second) == first, f"dropped by another: {text}"
            where[second] = where[first]
        else:
            actor = sentence.split()[0]
            assert where.get(second, where[actor]) == where[actor], f"packed from afar: {text}"
            where.setdefault(second, where[actor])
            inside[first] = second
        settle()
    asked = re.search(r"Where is (?:the )?(\w+)\?$", text)
    assert asked is not None
    return where[asked.group(1)]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(-(2**40), 2**40), split=st.sampled_from(["train", "held-out"]))
def test_every_answer_is_what_the_story_says(difficulty, seed, split):
    for story in stories(24, seed, difficulty, split):
        assert follow(story.text) == story.answer
        assert story.choices == PLACES


def test_the_simulator_notices_a_wrong_answer():
    text = "Tom goes to the barn. Tom takes the key. Tom goes to the school. Tom drops the key. Tom goes to the park. "
    assert follow(text + "Where is the key?") == "school"
    assert follow(text + "Where is Tom?") == "park"
    packed = "Tom goes to the barn. Tom takes the box. Tom puts the key into the box. Tom goes to the school. "
    assert follow(packed + "Where is the key?") == "school"


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_splits_share_no_text_whatever_their_seeds(difficulty):
    train = {story.text for seed in (0, 1) for story in stories(400, seed, difficulty)}
    held_out = {story.text for seed in (0, 7) for story in stories(200, seed, difficulty, "held-out")}
    assert not train & held_out
    assert len(stories(400, 0, difficulty)) == len({story.text for story in stories(400, 0, difficulty)})


def test_a_seed_gives_the_same_stories_and_another_seed_others():
    assert stories(50, 3) == stories(50, 3)
    assert stories(50, 3) != stories(50, 4)
    assert stories(0, 3) == []


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_answers_are_balanced_and_no_position_gives_them_away(difficulty):
    found = stories(1200, 0, difficulty)
    assert Counter(story.answer for story in found) == dict.fromkeys(PLACES, 200)
    measured = baselines(found)
    assert measured["guessing"] == pytest.approx(1 / 6)
    assert measured["most frequent answer"] == pytest.approx(1 / 6)
    # Five standard errors of a share of 1/3 or 1/4 among 1200.
    assert max(measured.values()) < 1 / DIFFICULTIES[difficulty].moves + 5 * 0.0136


def test_baselines_count_by_hand():
    def story(text, answer):
        return Story(({"role": "user", "content": text},), answer, ("barn", "school"))

    found = [
        story("Tom goes to the barn. Tom goes to the school. Where is Tom?", "school"),
        story("Ben goes to the barn. Tom goes to the school. Where is Ben?", "barn"),
        story("Tom goes to the school. Where is Tom?", "school"),
    ]
    measured = baselines(found)
    assert measured["guessing"] == pytest.approx(0.5)
    assert measured["most frequent answer"] == pytest.approx(2 / 3)
    assert measured["place 1 of the story"] == pytest.approx(2 / 3)
    assert measured["place 2 of the story"] == pytest.approx(1 / 3)
    assert measured["last place of the story"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((1, 0, "huge"), "easy, medium, hard"), ((-1, 0), "0 to"), ((10**6, 0), "0 to"), ((1, 0, "easy", "test"), "held")],
)
def test_arguments_out_of_range_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        stories(*arguments)


def test_baselines_want_examples():
    with pytest.raises(ValueError, match="at least one"):
        baselines([])
