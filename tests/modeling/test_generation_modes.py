"""Drafts, embeddings, code of one's own, and the options that are refused."""

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.generation import GenerateDecoderOnlyOutput

import chatml
import segattn
from cli.tiny_chat import make_model, make_tokenizer
from modeling.generating import (
    GREEDY,
    PADDED_REALS,
    PADDED_ROWS,
    ROWS,
    WINDOWED,
    WITHOUT_A_BUG,
    assert_same,
    build,
    generate,
    generate_by_hand,
    run_by_hand,
)
from modeling.tiny import hand_mask, tokens

DRAFTS = {
    "prompt lookup": lambda name: {"prompt_lookup_num_tokens": 3},
    "early exit": lambda name: {"assistant_early_exit": 1},
    "another model with segments": lambda name: {"assistant_model": segattn.enable(build(name, seed=3))},
    "the same model with segments": lambda name: {"assistant_model": segattn.enable(build(name))},
    "another causal model": lambda name: {"assistant_model": build(name, seed=3)},
    "the same model, causal": lambda name: {"assistant_model": build(name)},
}


@pytest.mark.filterwarnings("ignore:.*generation_config.*")
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "top_k": 1}], ids=["greedy", "sampling"])
@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("name", ["llama", *(pytest.param(name, marks=WITHOUT_A_BUG) for name in WINDOWED[1:])])
def test_drafts_only_propose(name, draft, sampling):
    ids, rows, reals = tokens(1), PADDED_ROWS[:1], PADDED_REALS[:1]
    want = generate_by_hand(name, "sdpa", ids, rows, reals, **GREEDY)
    got = generate(name, "sdpa", ids, rows, reals, **{**GREEDY, **sampling}, **draft(name))
    assert_same(got, want)


@WITHOUT_A_BUG
def test_a_draft_with_segments_proposes_what_the_model_says():
    """Every proposal is accepted only if the draft follows the same segments."""

    def passes(draft):
        model, calls = segattn.enable(build("gemma3")), []
        model.register_forward_pre_hook(lambda *_: calls.append(1))
        draft.generation_config.num_assistant_tokens = 6
        draft.generation_config.assistant_confidence_threshold = 0.0
        model.generate(tokens()[1:], segment_ids=torch.tensor(PADDED_ROWS[1:]), assistant_model=draft, **GREEDY)
        return len(calls)

    assert passes(segattn.enable(build("gemma3"))) == 2
    assert passes(build("gemma3")) > 2


def test_a_draft_with_another_tokenizer():
    tokenizer, options = make_tokenizer(), GREEDY
    ids, _, row = chatml.conversation(tokenizer, [{"role": "user", "content": "3 + 4?"}], generation_prompt=True)
    want = run_by_hand(make_model(), "sdpa", torch.tensor([ids]), [row], **options)
    config = make_model().config
    config.vocab_size += 6
    torch.manual_seed(1)
    draft, others = LlamaForCausalLM(config).eval(), make_tokenizer()
    others.add_tokens([f"<{number}>" for number in range(6)])
    inputs = {"input_ids": torch.tensor([ids]), "segment_ids": torch.tensor([row]), "assistant_model": draft}
    inputs |= {"tokenizer": tokenizer, "assistant_tokenizer": others}
    model = segattn.enable(make_model())
    # Not with do_sample and top_k=1: transformers divides 0 by 0 where draft and model agree to the last digit.
    assert_same(model.generate(**inputs, **options), want)
    segattn.enable(draft)
    with pytest.raises(segattn.UnsupportedModelError, match=r"call segattn.disable\(assistant_model\)"):
        model.generate(**inputs, **options)


def test_a_draft_cannot_help_where_transformers_says_so():
    model = segattn.enable(build())
    inputs = {"segment_ids": torch.tensor(ROWS), "assistant_model": build(seed=1), **GREEDY}
    with pytest.raises(ValueError, match="only supported for batch_size = 1"):
        model.generate(tokens(), **inputs)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("name", WINDOWED)
def test_embeddings_with_segment_ids(name, options):
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY, **_beams(options))
    model = segattn.enable(build(name))
    inputs = {"attention_mask": torch.tensor(PADDED_REALS), "segment_ids": torch.tensor(PADDED_ROWS)}
    inputs |= {"inputs_embeds": model.get_input_embeddings()(tokens()), **GREEDY, **options}
    got = model.generate(**inputs)
    got.sequences = torch.cat([tokens(), got.sequences], 1)
    assert_same(got, want)
    assert_same(model.generate(tokens(), **inputs), want)


def _beams(options):
    return {key: value for key, value in options.items() if key == "num_beams"}


class NeverAsked:
    def segment_ids(self, input_ids, attention_mask=None):
        raise AssertionError("the token ids are not the prompt")

    def to_dict(self):
        return {}


@pytest.mark.parametrize("ids", [(), (tokens(),)], ids=["alone", "beside token ids"])
def test_embeddings_without_segment_ids_are_refused(ids):
    model = segattn.enable(build(), NeverAsked())
    with pytest.raises(segattn.SegmentError, match=r"generate\(\) got no segment_ids, and no token ids"):
        model.generate(*ids, inputs_embeds=model.get_input_embeddings()(tokens()), **GREEDY)


@pytest.mark.parametrize(
    "options",
    [{"prompt_lookup_num_tokens": 2}, {"assistant_early_exit": 1}, {"assistant_model": 1}, {"prefill_chunk_size": 14}],
    ids=str,
)
def test_embeddings_with_drafts_or_chunks_are_refused(options):
    """A stock model generates wrong tokens then, or stops with an error of shapes."""
    model = segattn.enable(build())
    if "assistant_model" in options:
        options = {"assistant_model": build(seed=1)}
    embeds = model.get_input_embeddings()(tokens(1))
    with pytest.raises(segattn.UnsupportedModelError, match="with inputs_embeds"):
        model.generate(tokens(1), inputs_embeds=embeds, segment_ids=torch.tensor(ROWS[:1]), **options)


def decode_greedily(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    kwargs["is_first_iteration"], new, logits = True, None, []
    for _ in range(8):
        inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=new, **kwargs)
        step = model(**inputs, return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(step, kwargs)
        kwargs["is_first_iteration"], new = False, 1
        logits.append(step.logits[:, -1])
        input_ids = torch.cat([input_ids, logits[-1].argmax(-1)[:, None]], 1)
    return GenerateDecoderOnlyOutput(sequences=input_ids, logits=logits)


def forget_segments(model, input_ids, *args, segment_ids=None, **kwargs):
    return decode_greedily(model, input_ids, *args, **kwargs)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_decoding_loop_of_ones_own(name, options):
    want = generate_by_hand(name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    padded = (name, "sdpa", tokens(), PADDED_ROWS, PADDED_REALS)
    assert_same(generate(*padded, custom_generate=decode_greedily, **GREEDY, **options), want)
    with pytest.raises(segattn.SegmentError, match=r"segment_ids is missing|got no segment_ids"):
        generate(*padded, custom_generate=forget_segments, **GREEDY, **options)


def test_a_static_mask_without_segments_does_not_pass_for_one_with_segments():
    """The segmenter would give the forward its segments, but the mask was built before."""

    class Segmenter(NeverAsked):
        def segment_ids(self, input_ids, attention_mask=None):
            return torch.tensor(PADDED_ROWS)

    model = segattn.enable(build(), Segmenter())
    options = {"attention_mask": torch.tensor(PADDED_REALS), "custom_generate": forget_segments, **GREEDY}
    want = generate_by_hand("llama", "sdpa", tokens(), PADDED_ROWS, PADDED_REALS, **GREEDY)
    assert_same(model.generate(tokens(), **options), want)
    with pytest.raises(segattn.SegmentError, match="a static cache has its mask built here"):
        model.generate(tokens(), cache_implementation="static", **options)


CUSTOM = """
def generate(model, input_ids=None, marker=None, **kwargs):
    assert marker == "here"
    return model.generate(input_ids, **{key: value for key, value in kwargs.items() if value is not None})
"""


@pytest.mark.parametrize("mode", [{}, {"penalty_alpha": 0.6, "top_k": 4}], ids=["greedy", "contrastive"])
def test_code_from_a_repository(tmp_path, monkeypatch, mode):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = tmp_path / "repo" / "custom_generate"
    folder.mkdir(parents=True)
    (folder / "generate.py").write_text(CUSTOM, encoding="utf-8")
    model = segattn.enable(build())
    inputs = {"input_ids": tokens(), "segment_ids": torch.tensor(ROWS), "marker": "here", "trust_remote_code": True}
    inputs["custom_generate"] = str(tmp_path / "repo")
    if mode:
        with pytest.raises(segattn.UnsupportedModelError, match="contrastive search"):
            model.generate(**inputs, **mode, max_new_tokens=8)
    else:
        want = generate_by_hand("llama", "sdpa", tokens(), ROWS, **GREEDY)
        assert_same(model.generate(**inputs, **GREEDY), want)


def test_guidance_by_the_prompt_s_last_token():
    ids, row, scale = tokens(1), ROWS[0], 1.5
    got = generate("llama", "sdpa", ids, [row], guidance_scale=scale, **GREEDY)
    model, logits = build(), []
    for length in range(14, 22):
        grown = [row + [-1] * (length - 14)]
        with torch.no_grad():
            logits.append(model(ids, attention_mask=hand_mask(model, grown, "sdpa")).logits[:, -1])
            prompted = logits[-1].log_softmax(-1)
            free = model(ids[:, 13:]).logits[:, -1].log_softmax(-1)
        ids = torch.cat([ids, (free + scale * (prompted - free)).argmax(-1)[:, None]], 1)
    assert torch.equal(got.sequences, ids)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(logits), atol=1e-5, rtol=0)


def test_guidance_by_a_negative_prompt_needs_a_segmenter():
    model = segattn.enable(build())
    options = {"guidance_scale": 1.5, "negative_prompt_ids": tokens(1, 5), **GREEDY}
    with pytest.raises(segattn.SegmentError, match="segment_ids is missing"):
        model.generate(tokens(1), segment_ids=torch.tensor(ROWS[:1]), **options)


REFUSED = {
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "asks for contrastive search"),
    "diverse beams": ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "asks for diverse beam search"),
    "forced words": ({"num_beams": 3, "force_words_ids": [[5]]}, "asks for constrained beam search"),
    "constraints": ({"num_beams": 3, "constraints": [1]}, "asks for constrained beam search"),
    "DoLa": ({"dola_layers": "low"}, "asks for DoLa"),
    "MTP": ({"use_mtp": True}, r"generate\(use_mtp=...\) cannot honour segments"),
    "block drafts": ({"speculation_type": "dflash"}, r"generate\(speculation_type=...\) cannot honour"),
    "token healing": ({"token_healing": True}, r"generate\(token_healing=...\) cannot honour"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}], ids=["", "trusting"])
def test_modes_that_were_not_compared_are_refused(options, message, trust):
    ids, segment_ids = tokens(1), torch.tensor(ROWS[:1])
    model = segattn.enable(build())
    with pytest.raises(segattn.UnsupportedModelError, match=message):
        model.generate(ids, segment_ids=segment_ids, max_new_tokens=2, **options, **trust)
    config = GenerationConfig(max_new_tokens=2, **options)
    with pytest.raises(segattn.UnsupportedModelError, match=message):
        model.generate(ids, config, segment_ids=segment_ids, **trust)
    model.generation_config = config
    with pytest.raises(segattn.UnsupportedModelError, match=message):
        model.generate(ids, GenerationConfig(max_new_tokens=3), segment_ids=segment_ids, **trust)
    off = {**dict.fromkeys(options), "num_beams": 1}
    want = generate_by_hand("llama", "sdpa", ids, ROWS[:1], **GREEDY)
    assert_same(model.generate(ids, segment_ids=segment_ids, **{**off, **GREEDY}), want)


@pytest.mark.parametrize(
    "options",
    [
        {"penalty_alpha": 0.6, "do_sample": True, "top_k": 1},
        {"penalty_alpha": 0.0, "top_k": 4},
        {"num_beam_groups": 1},
        {"num_beam_groups": 2},
        {"low_memory": True},
    ],
    ids=str,
)
def test_options_that_transformers_ignores_do_no_harm(options):
    want = generate_by_hand("llama", "sdpa", tokens(), ROWS, **GREEDY)
    assert_same(generate("llama", "sdpa", tokens(), ROWS, **{**GREEDY, **options}), want)


def test_continuous_batching_is_refused_however_it_is_asked_for():
    model, segment_ids = segattn.enable(build()), torch.tensor(ROWS)
    with pytest.raises(segattn.UnsupportedModelError, match="paged attention"):
        model.generate(tokens(), segment_ids=segment_ids, cache_implementation="paged")
    for name in ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager"):
        with pytest.raises(segattn.UnsupportedModelError, match=rf"{name}\(\) runs paged attention"):
            getattr(model, name)([[3, 4]])


def test_right_padding_is_refused():
    model, row = segattn.enable(build()), [[0] * 5 + [1] * 3 + [-1] * 6]
    ids = torch.cat([tokens(1), tokens(1)])
    padded = torch.where(torch.arange(14) < 12, ids, 0)
    rows = torch.tensor(row * 2)
    with pytest.raises(segattn.SegmentError, match="row 1 is padded on the right"):
        model.generate(ids, attention_mask=torch.tensor([[1] * 14, [1] * 12 + [0] * 2]), segment_ids=rows, **GREEDY)
    with pytest.raises(segattn.SegmentError, match="row 0 is padded on the right"):
        model.generate(padded, segment_ids=rows, **GREEDY)
    want = generate_by_hand("llama", "sdpa", padded, row * 2, eos_token_id=0, **GREEDY)
    assert_same(model.generate(padded, segment_ids=rows, eos_token_id=0, **GREEDY), want)


def test_segment_ids_of_one_row_and_a_short_tail():
    ids, row, options = tokens(1), torch.tensor(ROWS[0]), {**GREEDY, "num_beams": 3}
    want = generate_by_hand("llama", "sdpa", ids, ROWS[:1], **options)
    model = segattn.enable(build())
    assert_same(model.generate(ids, segment_ids=row, **options), want)
    for extra in ({}, {"cache_implementation": "static"}):
        assert_same(model.generate(ids, segment_ids=row[None, :12], **options, **extra), want)


@pytest.mark.parametrize("extra", [{}, {"prompt_lookup_num_tokens": 3}, {"cache_implementation": "static"}], ids=str)
def test_segment_ids_that_do_not_fit_the_prompt_are_refused(extra):
    model, ids = segattn.enable(build()), tokens(1)
    with pytest.raises(segattn.SegmentError, match="segment_ids for 16 tokens with a prompt of 14"):
        model.generate(ids, segment_ids=torch.tensor([[0] * 16]), **GREEDY, **extra)
    with pytest.raises(segattn.SegmentError, match="2 rows for a batch of 1"):
        model.generate(ids, segment_ids=torch.tensor(ROWS), **GREEDY, **extra)
