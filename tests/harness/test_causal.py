"""Causally, `segattn` is the harness's own `hf`: the same number for every request."""

import pytest
from lm_eval.models.huggingface import HFLM

import segattn
from cli.tiny_chat import make_model, make_tokenizer
from harness.local_tasks import NAMES, requests_of, run_tasks
from segattn.harness import SegmentLM

SHAPES = [
    {},
    {"apply_chat_template": True},
    {"apply_chat_template": True, "num_fewshot": 2, "system_instruction": "be brief"},
    {"apply_chat_template": True, "num_fewshot": 1, "fewshot_as_multiturn": False},
]


@pytest.mark.parametrize(
    ("batch_size", "max_length"),
    [(1, 300), (4, 64), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 64), (4, 300)))],
)
def test_every_request_equals_hf(saved, local_tasks, batch_size, max_length):
    options = {"device": "cpu", "batch_size": batch_size, "max_length": max_length}
    ours = SegmentLM(str(saved / "turns"), attention="causal", **options)
    theirs = HFLM(str(saved / "turns"), **options)
    for shape in SHAPES:
        found, want = (requests_of(run_tasks(model, local_tasks, **shape)) for model in (ours, theirs))
        assert {task for task, *_ in want} == set(NAMES)
        assert found == want


@pytest.mark.parametrize("kind", ["base", "causal", "plain adapter"])
def test_a_checkpoint_that_was_tuned_causally_runs_so_by_default(saved, local_tasks, kind):
    options = {"device": "cpu", "batch_size": 2}
    where = {"pretrained": str(saved / kind)}
    if "adapter" in kind:
        where = {"pretrained": str(saved / "base"), "peft": str(saved / kind)}
    found, want = (
        requests_of(run_tasks(kind_of(**where, **options), local_tasks, apply_chat_template=True))
        for kind_of in (SegmentLM, HFLM)
    )
    assert found == want


def test_an_enabled_model_runs_causally_when_asked_to(local_tasks):
    tokenizer = make_tokenizer()
    enabled = segattn.enable(make_model(), segattn.Segmenter.from_tokenizer(tokenizer))
    ours = SegmentLM(enabled, attention="causal", tokenizer=tokenizer, batch_size=2)
    theirs = HFLM(make_model(), tokenizer=tokenizer, batch_size=2)
    found, want = (requests_of(run_tasks(m, local_tasks, apply_chat_template=True)) for m in (ours, theirs))
    assert found == want
