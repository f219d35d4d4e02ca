"""The schedules of the opening bias."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segattn
from segattn.training import opening_bias
from segattn.training.opening import SCHEDULES, Opening


def test_four_steps_by_hand():
    assert [opening_bias(step, 4) for step in range(6)] == [-8.0, -6.0, -4.0, -2.0, None, None]


def test_four_steps_in_probability_by_hand():
    weights = [math.exp(opening_bias(step, 4, "probability")) for step in range(4)]
    start = math.exp(-8)
    assert weights == pytest.approx(
        [start, start + (1 - start) / 4, start + (1 - start) / 2, start + 3 * (1 - start) / 4]
    )
    assert opening_bias(4, 4, "probability") is None


def test_three_layers_by_hand():
    """In 4 steps each layer takes 2; the first begins at once, the middle one after 1, the last after 2."""
    bottom_up = [opening_bias(step, 4, "bottom_up", 3).tolist() for step in range(4)]
    assert bottom_up == [[-8, -8, -8], [-4, -8, -8], [0, -4, -8], [0, 0, -4]]
    top_down = [opening_bias(step, 4, "top_down", 3).tolist() for step in range(4)]
    assert top_down == [row[::-1] for row in bottom_up]


@pytest.mark.parametrize("schedule", SCHEDULES[:-1])
def test_no_opening_is_the_plain_rule_from_the_start(schedule):
    assert opening_bias(0, 0, schedule) is None


def numbers(bias):
    return bias if isinstance(bias, torch.Tensor) else torch.tensor(bias or 0.0)


@settings(deadline=None)
@given(st.integers(1, 10_000), st.sampled_from(SCHEDULES[:-1]), st.integers(1, 40), st.data())
def test_it_never_falls_and_is_gone_in_the_end(steps, schedule, layers, data):
    step = data.draw(st.integers(0, steps - 1))
    bias, after = (numbers(opening_bias(at, steps, schedule, layers)) for at in (step, step + 1))
    assert bool((bias >= -8).all())
    assert bool((bias <= 0).all())
    assert bool((after >= bias).all())
    assert bool((bias < 0).any())
    assert opening_bias(steps + step, steps, schedule, layers) is None


def test_learned_factors_are_on_the_linear_bias_and_end_with_it():
    opening = Opening(segattn.enable(tiny()), 4, "learned")
    torch.testing.assert_close(opening.bias(1), torch.full((2, 4), -6.0))  # untrained: the linear bias itself
    with torch.no_grad():
        opening.factors[0, 1] = 100.0
        opening.factors[1, 2] = -100.0
    assert opening.bias(2)[0, 1].item() == pytest.approx(-8.0)
    assert opening.bias(2)[1, 2].item() == pytest.approx(0.0)
    assert opening.bias(4) is None
    assert opening.mean_bias(4) == 0


def test_what_was_learned_comes_back(tmp_path):
    first, second = (Opening(segattn.enable(tiny()), 4, "learned") for _ in range(2))
    torch.nn.init.normal_(first.factors)
    first.save(tmp_path)
    second.load(tmp_path)
    assert torch.equal(first.factors, second.factors)


@pytest.mark.parametrize("schedule", ["bottom_up", "top_down", "learned"])
def test_a_model_whose_layers_share_one_mask_is_refused(schedule):
    model = segattn.enable(tiny(), backend="dense")
    with pytest.raises(segattn.UnsupportedModelError, match="one number for all"):
        Opening(model, 4, schedule)


def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    return LlamaForCausalLM(config)
