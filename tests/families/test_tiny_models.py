"""The tiny models are what the experiments on families take them for."""

import pytest
import torch

from families.tiny_models import CAUSAL_FAMILIES, IMAGE_TEXT_FAMILIES, VOCABULARY, CannotBuild, build

LENGTH = 14
SMALLEST_EFFECT = 1e-3
# Different kinds: plain, absolute positions, encoders run as decoders, windows, chunks, latent and sparse attention,
# experts, recurrent and convolution layers, decoders of encoder-decoder and of image-text models.
SAMPLE = [
    *(
        (family, False)
        for family in ("llama", "gpt2", "falcon", "bert", "bart", "gemma3_text", "llama4_text", "gpt_oss")
    ),
    *((family, False) for family in ("deepseek_v3", "glm_moe_dsa", "mixtral", "jamba", "qwen3_next", "lfm2")),
    *((family, True) for family in ("llava", "qwen2_vl")),
]
EVERY = [(family, False) for family in CAUSAL_FAMILIES] + [(family, True) for family in IMAGE_TEXT_FAMILIES]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny matrices gain nothing from threads, and threads that wait for busy cores take a hundred times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def named(case):
    return case[0] + (" with images" if case[1] else "")


def tokens():
    return torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def run(model, ids, mask=None):
    given = {} if mask is None else {"attention_mask": mask}
    return model(input_ids=ids, use_cache=False, **given).logits


def with_another_first(ids):
    """The rows with only their first token changed."""
    changed = ids.clone()
    changed[:, 0] = (ids[:, 0] - 2) % (VOCABULARY - 3) + 3
    return changed


def added(visible):
    """A mask as 4D scores to add."""
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min).expand(2, 1, LENGTH, LENGTH).clone()


def check_runs(model):
    ids = tokens()
    logits = run(model, ids)
    assert logits.shape[:2] == ids.shape
    assert logits.shape[2] >= VOCABULARY
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, run(model, ids))
    # Somewhere later: where every layer has a window, what is far away is out of reach.
    effect = (run(model, with_another_first(ids)) - logits)[:, 1:].abs().max()
    assert effect > SMALLEST_EFFECT


@pytest.mark.parametrize("case", SAMPLE, ids=named)
def test_a_model_runs_and_the_same_seed_gives_the_same_model(case):
    family, image_text = case
    state = torch.random.get_rng_state()
    model, same, other = (build(family, seed=seed, image_text=image_text) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    check_runs(model)
    ids = tokens()
    assert torch.equal(run(model, ids), run(same, ids))
    assert not torch.equal(run(model, ids), run(other, ids))


@pytest.mark.parametrize("case", SAMPLE, ids=named)
def test_a_wrong_mask_shows(case):
    family, image_text = case
    model, ids = build(family, image_text=image_text), tokens()
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    logits = run(model, ids, added(causal))
    hidden = causal.clone()
    hidden[6:, 4] = False  # one key, hidden from queries that have seen it
    seen = causal.clone()
    seen[2, 4] = True  # one key, shown to one earlier query
    assert (run(model, ids, added(hidden)) - logits).abs().max() > 10 * SMALLEST_EFFECT
    assert (run(model, ids, added(seen)) - logits)[:, 2].abs().max() > 10 * SMALLEST_EFFECT


def test_overrides_reach_the_text_configuration():
    assert build("llama", num_hidden_layers=1).config.num_hidden_layers == 1
    assert build("llava", image_text=True, num_hidden_layers=1).config.text_config.num_hidden_layers == 1


def test_what_a_class_does_not_support_raises_as_in_transformers():
    with pytest.raises(ValueError, match="does not support an attention implementation"):
        build("codegen", "sdpa")


@pytest.mark.slow
@pytest.mark.parametrize("case", EVERY, ids=named)
def test_every_family_runs_or_says_why_not(case):
    family, image_text = case
    reason = ""
    try:
        model = build(family, image_text=image_text)
    except CannotBuild as error:
        model, reason = None, str(error)
    if model is None:
        assert reason.endswith(".")
        return
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_500_000
    check_runs(model)
