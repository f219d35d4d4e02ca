"""Written answers: which option they name, and whether they are right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segattn.data import Sample
from segattn.reproduction.answers import chosen_option, is_right, options_of

USER = ({"role": "user", "content": "?"},)
OPTIONS = ("answer1", "answer2", "answer10")


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("the correct answer is answer2", "answer2"),
        ("Answer10.", "answer10"),
        ("answer1 or answer2", "answer1"),
        ("answer11", None),
        ("myanswer1", None),
        ("", None),
        ("It is answer2, not answer1", "answer2"),
    ],
)
def test_the_first_option_that_is_named_counts(text, option):
    assert chosen_option(text, OPTIONS) == option


def test_options_may_be_parts_of_each_other():
    assert chosen_option("card payment fee", ("card", "card payment", "card payment fee")) == "card payment fee"


def test_what_choices_share():
    assert options_of(("it is true", "it is false")) == ("it is ", ("true", "false"))
    assert options_of(("true", "false")) == ("", ("true", "false"))
    assert options_of(("it is", "it is so")) == ("it ", ("is", "is so"))
    assert options_of(("a ", "a a")) == ("", ("a ", "a a"))


@given(st.lists(st.text("ab ", min_size=1, max_size=6).filter(str.strip), min_size=2, max_size=4, unique=True))
def test_stem_and_option_give_the_choice_back(choices):
    stem, options = options_of(choices)
    assert [stem + option for option in options] == choices
    assert all(options)


def test_right_and_wrong():
    choices = ("the answer is true", "the answer is false")
    sample = Sample(USER, choices[1], choices)
    assert is_right("the answer is false", sample)
    assert is_right("False!", sample)
    assert not is_right("the answer is true", sample)
    assert not is_right("", sample)
    free = Sample(USER, "the 1st of July")
    assert is_right("1st of july.", free)
    assert not is_right("2nd of July", free)
    intents = Sample(USER, "card arrival", ("card arrival", "lost card"))
    assert is_right("Card arrival", intents)
    assert not is_right("the card arrival, or lost card", intents)


@given(st.text(max_size=30), st.sampled_from([0, 1]))
def test_no_text_is_right_for_two_options(text, place):
    choices = ("it is answer1", "it is answer2")
    assert sum(is_right(text, Sample(USER, choice, choices)) for choice in choices) <= 1
    assert is_right(f"{choices[place]} {text}", Sample(USER, choices[place], choices))
