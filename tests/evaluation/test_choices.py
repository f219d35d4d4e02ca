"""Log-likelihoods of answers, against one stock forward pass per answer under a mask built by hand."""

import peft
import pytest
import torch

import segattn
from chatml import conversation
from cli.tiny_chat import make_model, make_tokenizer
from modeling.tiny import hand_mask
from segattn.data import DataError, Sample
from segattn.evaluation import answer_loss, rank_choices

TOKENIZER = make_tokenizer()
SEGMENTER = segattn.Segmenter.from_tokenizer(TOKENIZER)


def sample(number, prompt, choices, answer, system=None):
    messages = ({"role": "system", "content": system},) if system else ()
    return Sample((*messages, {"role": "user", "content": prompt}), answer, choices, id=str(number))


# Prompts of different length, two to five choices of one to nine tokens.
SAMPLES = [
    sample(0, "yes or no?", ("yes", "no"), "no"),
    sample(1, "a longer question, is it not?", ("a", "bb", "ccc", "dddddddd"), "bb", system="be brief"),
    sample(2, "x", ("true", "false", "maybe", "y", "z"), "z"),
    sample(3, "yes or no??", ("yes", "yes!", "no"), "yes!"),
]


def by_hand(model, item, answer, attention):
    """(sum of the log-likelihoods, number of tokens) of an answer."""
    messages = [*item.messages, {"role": "assistant", "content": answer}]
    ids, labels, segments = conversation(TOKENIZER, messages)
    rows = [segments if attention == "segments" else [-1] * len(ids)]
    with torch.no_grad():
        log_probs = model(torch.tensor([ids]), attention_mask=hand_mask(model, rows, "sdpa")).logits[0].log_softmax(-1)
    scored = [position for position, label in enumerate(labels) if label != -100]
    return sum(float(log_probs[position - 1, labels[position]]) for position in scored), len(scored)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("attention", ["segments", "causal"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_choice_equals_a_run_of_its_own(family, attention, batch_size):
    model = segattn.enable(make_model(family=family), SEGMENTER)
    stock = make_model(family=family)
    results = rank_choices(model, SEGMENTER, SAMPLES, attention=attention, batch_size=batch_size)
    for item, result in zip(SAMPLES, results, strict=True):
        want = [by_hand(stock, item, choice, attention) for choice in item.choices]
        assert result.log_likelihoods == pytest.approx([total for total, _ in want], abs=2e-4)
        assert result.tokens == tuple(count for _, count in want)
        assert (result.id, result.choices, item.choices[result.answer]) == (item.id, item.choices, item.answer)
        best = max(want)[0]
        assert result.log_likelihoods[result.predicted] == pytest.approx(best, abs=2e-4)
        per_token = [total / count for total, count in want]
        assert result.predicted_per_token == per_token.index(max(per_token))
        assert result.correct == (item.choices[result.predicted] == item.answer)
        assert result.loss == pytest.approx(-per_token[result.answer], abs=1e-4)


def test_the_two_masks_give_different_numbers():
    model = segattn.enable(make_model(), SEGMENTER)
    segments, causal = (rank_choices(model, SEGMENTER, SAMPLES, attention=name) for name in ("segments", "causal"))
    differences = [abs(a.log_likelihoods[0] - b.log_likelihoods[0]) for a, b in zip(segments, causal, strict=True)]
    assert min(differences) > 1e-2


def test_the_given_segmenter_decides_whatever_the_model_was_enabled_with():
    model = segattn.enable(make_model(), SEGMENTER.with_policy("causal"))
    stock = make_model()
    [result] = rank_choices(model, SEGMENTER, SAMPLES[:1])
    assert result.log_likelihoods[0] == pytest.approx(by_hand(stock, SAMPLES[0], "yes", "segments")[0], abs=2e-4)
    [result] = rank_choices(model, SEGMENTER.with_policy("causal"), SAMPLES[:1])
    assert result.log_likelihoods[0] == pytest.approx(by_hand(stock, SAMPLES[0], "yes", "causal")[0], abs=2e-4)


def test_an_adapter_counts_and_dropout_does_not():
    def adapted():
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, lora_dropout=0.5)
        torch.manual_seed(5)
        return peft.get_peft_model(make_model(), config)

    model = segattn.enable(adapted().train(), SEGMENTER)
    stock = adapted().merge_and_unload().eval()
    [result] = rank_choices(model, SEGMENTER, SAMPLES[:1])
    assert result.log_likelihoods[1] == pytest.approx(by_hand(stock, SAMPLES[0], "no", "segments")[0], abs=2e-4)
    assert abs(by_hand(make_model(), SAMPLES[0], "no", "segments")[0] - result.log_likelihoods[1]) > 1e-2


@pytest.mark.parametrize("attention", ["segments", "causal"])
def test_answer_loss_is_a_mean_over_tokens(attention):
    model = segattn.enable(make_model(), SEGMENTER)
    loss = answer_loss(model, SEGMENTER, SAMPLES, attention=attention, batch_size=3)
    want = [by_hand(make_model(), item, item.answer, attention) for item in SAMPLES]
    assert loss.tokens == tuple(count for _, count in want)
    assert loss.per_sample == pytest.approx([-total / count for total, count in want], abs=1e-4)
    assert loss.mean == pytest.approx(-sum(total for total, _ in want) / sum(count for _, count in want), abs=1e-4)


def test_progress_is_told_to_the_end():
    model, told = segattn.enable(make_model(), SEGMENTER), []
    rank_choices(model, SEGMENTER, SAMPLES, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_cannot_be_ranked_is_refused():
    model = segattn.enable(make_model(), SEGMENTER)
    free = Sample(({"role": "user", "content": "u"},), "a", id="9")
    with pytest.raises(DataError, match="sample '9' of 'data' has no choices"):
        rank_choices(model, SEGMENTER, [free])
    with pytest.raises(DataError, match="no samples"):
        answer_loss(model, SEGMENTER, [])
    with pytest.raises(segattn.UnsupportedModelError, match="attention is 'both'"):
        rank_choices(model, SEGMENTER, SAMPLES, attention="both")
    for attention in ("segments", "causal"):
        with pytest.raises(segattn.UnsupportedModelError, match="not enabled"):
            rank_choices(make_model(), SEGMENTER, SAMPLES, attention=attention)
