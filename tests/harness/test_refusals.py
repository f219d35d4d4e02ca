"""What would run causally in silence, or what nobody has run, is refused by name; mistakes are answered."""

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

import segattn
from cli.tiny_chat import make_model, make_tokenizer
from harness.local_tasks import run_tasks
from segattn.errors import SegmentError, UnsupportedModelError
from segattn.harness import SegmentLM

CHAT = "<|im_start|>user\nis it so?<|im_end|>\n<|im_start|>assistant\n"


def load(saved, kind="turns", **options):
    return SegmentLM(str(saved / kind), device="cpu", **options)


@pytest.mark.parametrize("task", ["local_multiple_choice", "local_loglikelihood", "local_generate_until"])
def test_prompts_without_the_chat_template(saved, local_tasks, task):
    with pytest.raises(SegmentError, match="--apply_chat_template"):
        run_tasks(load(saved), local_tasks, [task])
    run_tasks(load(saved, attention="causal"), local_tasks, [task])


def test_what_needs_no_template_runs_without_it(saved, local_tasks):
    """A text that is measured as a whole, and the bare likelihood of an answer, have no prompt."""
    lm = load(saved)
    run_tasks(lm, local_tasks, ["local_loglikelihood_rolling"])
    assert lm.loglikelihood([Instance("loglikelihood", {}, ("", "yes"), 0)], disable_tqdm=True)[0][0] < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "foo"}, "attention is 'foo'; expected one of auto, segments, causal"),
        ({"plain_context": "yes"}, "plain_context is 'yes'; expected one of refuse, segment, causal"),
        ({"peft": "nowhere/at-all"}, "peft=nowhere/at-all has no adapter_config.json"),
    ],
)
def test_mistakes(saved, options, message):
    with pytest.raises(SegmentError, match=message):
        load(saved, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "seq2seq"},
        {"truncation": True},
        {"parallelize": True},
        {"device_map": "auto"},
        {"tp_plan": "auto"},
        {"delta": "some/delta"},
        {"autogptq": True},
        {"autogptq": "model.safetensors"},
        {"gptqmodel": True},
        {"gguf_file": "model.gguf"},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize(("kind", "attention"), [("turns", "auto"), ("base", "segments")])
def test_options_that_do_not_go_with_segments(saved, options, kind, attention):
    (name, value) = next(iter(options.items()))
    with pytest.raises(UnsupportedModelError, match=rf"^{name}={value} does not go with attention=segments, for .*;"):
        load(saved, kind, attention=attention, **options)


def test_those_options_are_free_causally(saved):
    assert load(saved, attention="causal", truncation=True).truncation is True


def test_several_processes(saved, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedModelError, match="2 processes"):
        load(saved)


def test_a_model_without_attention():
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=258, hidden_size=8, num_hidden_layers=1, state_size=2))
    SegmentLM(model, tokenizer=make_tokenizer())
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM cannot honour segments"):
        SegmentLM(model, tokenizer=make_tokenizer(), attention="segments")


def test_a_checkpoint_whose_segments_were_always_given(saved):
    with pytest.raises(SegmentError, match="saved without a segmenter"):
        load(saved, "given")
    assert load(saved, "given", attention="causal").get_model_info()["attention"] == "causal"


def test_a_misspelt_argument_is_no_silent_default(saved):
    with pytest.raises(TypeError, match="attn"):
        load(saved, attn="causal")
    with pytest.raises(UnsupportedModelError, match="there is no argument attn; did you mean attention"):
        SegmentLM(make_model(), tokenizer=make_tokenizer(), attn="causal")


def test_a_tokenizer_that_the_segmenter_was_not_made_with(saved):
    other = make_tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<x>"]})
    model = segattn.enable(make_model(), segattn.Segmenter.from_tokenizer(make_tokenizer()))
    SegmentLM(model, tokenizer=other)  # the markers are the same
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{n}": n for n in range(258)}, unk_token="w0")), eos_token="w1"
    )
    with pytest.raises(segattn.TemplateError, match="expected the tokenizer that the segmenter was made with"):
        SegmentLM(model, tokenizer=words)


def test_rows_that_nobody_has_asked_for(saved):
    """A later harness that runs the model on its own must not do so causally."""
    import torch

    lm = load(saved)
    with pytest.raises(SegmentError, match="belong to no request"):
        lm._model_call(torch.ones(1, 5, dtype=torch.int64))
    with pytest.raises(SegmentError, match="belong to no request"):
        lm._model_generate(torch.ones(1, 5, dtype=torch.int64), max_length=9, stop=[])


def test_a_cache_of_responses_belongs_to_one_model_and_mask(saved, tmp_path):
    """--use_cache: the keys of the harness hold the request alone."""

    def answer(lm, name):
        cached = CachingLM(lm, str(tmp_path / name))
        (found,) = cached.loglikelihood([Instance("loglikelihood", {}, (CHAT, "yes"), 0)])
        cached.dbdict.close()
        return found

    first = answer(load(saved), "one.db")
    assert answer(load(saved), "one.db") == first
    for other in (load(saved, attention="causal"), load(saved, "prefix"), load(saved, plain_context="segment")):
        with pytest.raises(SegmentError, match="holds responses of another run"):
            answer(other, "one.db")
    causal = answer(load(saved, attention="causal"), "two.db")
    assert causal != first
    with pytest.raises(SegmentError, match="attention 'causal'"):
        answer(load(saved), "two.db")


def test_a_cache_of_responses_that_hf_has_written(saved, tmp_path):
    from lm_eval.models.huggingface import HFLM

    def answer(lm):
        cached = CachingLM(lm, str(tmp_path / "hf.db"))
        found = cached.loglikelihood([Instance("loglikelihood", {}, (CHAT, "yes"), 0)])
        cached.dbdict.close()
        return found

    want = answer(HFLM(str(saved / "turns"), device="cpu"))
    assert answer(load(saved, attention="causal")) == want
    with pytest.raises(SegmentError, match="did not say how it attended"):
        answer(load(saved))
