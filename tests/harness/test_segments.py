"""With segments, every request equals a stock model under a mask that was built by hand."""

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM

import segattn
from cli.tiny_chat import make_model, make_tokenizer
from harness import by_hand
from harness.checkpoints import adapted
from harness.local_tasks import requests_of, run_tasks
from segattn.harness import SegmentLM

TOKENIZER = make_tokenizer()
SEGMENTER = segattn.Segmenter.from_tokenizer(TOKENIZER)
QUESTION = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nis it so?<|im_end|>\n<|im_start|>assistant\n"
SHAPES = [
    {},
    {"num_fewshot": 2, "system_instruction": "be brief"},
    {"num_fewshot": 2, "fewshot_as_multiturn": False},
]


def harness_model(family="llama", **options):
    model = segattn.enable(make_model(family=family), SEGMENTER)
    return SegmentLM(model, tokenizer=TOKENIZER, **{"batch_size": 3, **options})


def watched(lm):
    """Keep the tokens that are generated: text does not tell bytes that are no text apart."""
    kept, generate = {}, lm._model_generate

    def model_generate(context, max_length, stop, **options):
        output = generate(context, max_length, stop, **options)
        for row, real, new in zip(context, options["attention_mask"], output[:, context.shape[1] :], strict=True):
            kept[tuple(row[real.bool()].tolist())] = new.tolist()
        return output

    lm._model_generate = model_generate
    return kept


def ask(lm, *pairs):
    return lm.loglikelihood([Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)], disable_tqdm=True)


def assert_scores(found, want):
    assert [value for value, _ in found] == pytest.approx([value for value, _ in want], abs=2e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in want]


@pytest.mark.parametrize(
    ("family", "max_length"),
    [
        ("llama", 300),
        ("gemma3", 48),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in (("llama", 48), ("gemma3", 300))),
    ],
)
def test_every_request_of_every_kind_of_task(local_tasks, family, max_length):
    lm, stock = harness_model(family, max_length=max_length), make_model(family=family)
    generated, cut = watched(lm), 0
    for shape in SHAPES:
        for task, arguments, response in requests_of(
            run_tasks(lm, local_tasks, apply_chat_template=True, gen_kwargs={"max_gen_toks": 6}, **shape)
        ):
            if "generate" in task or "prefilled" in task:
                ids, _ = by_hand.prompt(arguments[0])
                want = by_hand.generate(stock, arguments[0], 6, most=max_length - 6)
                new = generated[tuple(ids[-(max_length - 6) :])]
                # The harness stops after a stop string; a batch goes on until its last row has stopped.
                assert new[: len(want)] == want[: len(new)]
                assert len(new) == 6 or "\n" in TOKENIZER.decode(new) or TOKENIZER.eos_token_id in new
                cut += len(ids) > max_length - 6
            elif "rolling" in task:
                if len(arguments[0]) < max_length:
                    want, _ = by_hand.score(stock, "", arguments[0])
                    assert response == pytest.approx(want, abs=2e-4)
            else:
                want = by_hand.score(stock, *arguments, most=max_length)
                assert_scores([response], [want])
                cut += len(by_hand.prompt(arguments[0])[0]) > max_length
    assert cut == 0 if max_length == 300 else cut > 25


def test_the_two_masks_give_other_numbers(local_tasks):
    segments, causal = (
        requests_of(
            run_tasks(
                harness_model(attention=attention), local_tasks, ["local_loglikelihood"], apply_chat_template=True
            )
        )
        for attention in ("segments", "causal")
    )
    assert min(abs(a[2][0] - b[2][0]) for a, b in zip(segments, causal, strict=True)) > 1e-2


@pytest.mark.parametrize(
    ("batch_size", "logits_cache"), [(1, True), (2, False), (16, True), ("auto", True), ("auto:2", False)]
)
def test_batches_and_the_cache_of_logits_change_nothing(batch_size, logits_cache):
    lm = harness_model(batch_size=batch_size, max_batch_size=2, logits_cache=logits_cache, max_length=100)
    stock = make_model()
    other = QUESTION.replace("so", "really so")
    pairs = [(QUESTION, answer) for answer in ("a", "b", "ab", "abc", "a")] + [(other, "b"), ("", "a"), (other, "a")]
    assert_scores(ask(lm, *pairs), [by_hand.score(stock, *pair) for pair in pairs])
    texts = ["hello there", "x"]
    found = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts])
    assert found == pytest.approx([by_hand.score(stock, "", text)[0] for text in texts], abs=2e-4)
    generated = watched(lm)
    asked = [Instance("generate_until", {}, (text, {"until": [], "max_gen_toks": 3}), 0) for text in (QUESTION, other)]
    lm.generate_until(asked, disable_tqdm=True)
    for text in (QUESTION, other):
        want = by_hand.generate(stock, text, 3)
        assert generated[tuple(by_hand.prompt(text)[0])][: len(want)] == want


@pytest.mark.parametrize("logits_cache", [True, False])
def test_the_same_tokens_parted_elsewhere_are_other_requests(logits_cache):
    """A prompt that ends inside of a message and a continuation that ends it: the mask differs, the tokens do not."""
    lm, stock = harness_model(logits_cache=logits_cache), make_model()
    text = "<|im_start|>user\nabcdefgh"
    parts = [(text[:-n], text[-n:]) for n in (1, 2, 3, 2)]
    want = []
    for context, continuation in parts:
        ids = by_hand.tokens(context + continuation)
        want.append(by_hand.score_row(stock, ids, [0] * len(ids), len(continuation)))
    assert len({round(value, 3) for value, _ in want}) == 3
    assert_scores(ask(lm, *parts), want)


def test_zeros_at_the_end_of_a_row_are_tokens_like_others():
    """Rows are padded with zeros, and 0 is a token ("!" here)."""
    assert by_hand.tokens("!") == [0]
    lm, stock = harness_model(batch_size=4), make_model()
    pairs = [(QUESTION, answer) for answer in ("!a", "!!!b", "a", "!!b")]
    assert_scores(ask(lm, *pairs), [by_hand.score(stock, *pair) for pair in pairs])


def test_markers_in_a_continuation_open_no_segment():
    lm, stock = harness_model(), make_model()
    answer = "yes<|im_end|>\n<|im_start|>user\nreally?"
    assert_scores(ask(lm, (QUESTION, answer)), [by_hand.score(stock, QUESTION, answer)])


def test_a_checkpoint_and_its_adapter_run_as_they_were_tuned(saved):
    want = by_hand.score(adapted(saved).merge_and_unload().eval(), QUESTION, "yes")
    given = {"pretrained": str(saved / "base"), "peft": str(saved / "adapter")}
    for where in (given, {"pretrained": str(saved / "adapter")}):
        lm = SegmentLM(**where, device="cpu")
        assert lm.get_model_info()["attention"] == "segments"
        assert_scores(ask(lm, (QUESTION, "yes")), [want])
    lm = SegmentLM(str(saved / "turns"), device="cpu")
    assert_scores(ask(lm, (QUESTION, "yes")), [by_hand.score(make_model(), QUESTION, "yes")])


def test_the_recorded_policy_is_followed(saved):
    """ "prefix" joins the system's and the user's message."""
    lm = SegmentLM(str(saved / "prefix"), device="cpu")
    ids, segments = by_hand.prompt(QUESTION)
    joined = [min(segment, 0) for segment in segments]
    row = ids + by_hand.tokens("yes")
    assert_scores(ask(lm, (QUESTION, "yes")), [by_hand.score_row(make_model(), row, joined, 4)])
    assert lm.get_model_info()["segment_policy"] == "prefix"


def test_a_loaded_model_runs_as_its_config_says(saved):
    model = AutoModelForCausalLM.from_pretrained(saved / "turns")
    lm = SegmentLM(model, tokenizer=TOKENIZER)
    assert_scores(ask(lm, (QUESTION, "yes")), [by_hand.score(make_model(), QUESTION, "yes")])
    assert lm.get_model_info()["segmenter"] == SEGMENTER.to_dict()


def test_segments_in_some_layers(tmp_path):
    model = segattn.enable(make_model(), SEGMENTER, layers=[1])
    segattn.save_pretrained(model, tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    ids, segments = by_hand.prompt(QUESTION)
    row = [*ids, *by_hand.tokens("yes")]
    with torch.no_grad():
        given = torch.tensor([[*segments, -1, -1, -1]])
        logits = model(torch.tensor([row]), segment_ids=given).logits[0].log_softmax(-1)
    want = sum(float(logits[place - 1, row[place]]) for place in range(len(row) - 4, len(row)))
    assert abs(want - by_hand.score(make_model(), QUESTION, "yes")[0]) > 1e-3
    for where in (str(tmp_path), model):
        lm = SegmentLM(where, device="cpu", tokenizer=TOKENIZER)
        assert ask(lm, (QUESTION, "yes"))[0][0] == pytest.approx(want, abs=2e-4)
        assert lm.get_model_info()["segment_layers"] == [1]


@pytest.mark.parametrize(("kind", "said"), [("base", "never tuned with segments"), ("causal", "was tuned causally")])
def test_segments_are_had_where_they_are_asked_for(saved, caplog, kind, said):
    lm = SegmentLM(str(saved / kind), attention="segments", device="cpu")
    assert said in caplog.text
    assert_scores(ask(lm, (QUESTION, "yes")), [by_hand.score(make_model(), QUESTION, "yes")])
    info = lm.get_model_info()
    assert (info["attention"], info["segment_policy"], info["segments_as_tuned"]) == ("segments", "turns", False)


@pytest.mark.parametrize("kind", ["turns", "given"])
def test_a_plain_prompt_can_be_one_segment_or_causal(saved, kind):
    stock = make_model()
    ids = by_hand.tokens("is it so? yes")
    for plain, segment in (("segment", 0), ("causal", -1)):
        lm = SegmentLM(str(saved / kind), plain_context=plain, device="cpu")
        want = by_hand.score_row(stock, ids, [segment] * 9, 4)
        assert_scores(ask(lm, ("is it so?", " yes")), [want])
        # A BOS before it stays causal.
        want = by_hand.score_row(stock, [by_hand.PREFIX, *ids], [-1, *[segment] * 9], 4)
        assert_scores(ask(lm, ("<|im_start|>is it so?", " yes")), [want])


def test_half_precision_runs_under_autocast_as_in_hf():
    lm = harness_model(mixed_precision_dtype="bfloat16")
    kept = []
    lm.model.lm_head.register_forward_hook(lambda module, inputs, output: kept.append(output.dtype))
    ask(lm, (QUESTION, "yes"))
    assert kept == [torch.bfloat16]
