"""The real SmolLM2-135M-Instruct with the adapter that comes with the package, loaded by vLLM over the base model."""

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving import hand_oracle
from serving.engines import engine, parameters

pytestmark = pytest.mark.vllm

COUNT = 12
SYSTEM = "You answer in one short sentence."
QUESTIONS = [
    "What is the capital of France?",
    "What is the capital of France, and what is the capital of Italy?",
    "Name three fruits that are red.",
    "Why is the sky blue?",
]


def by_hand(tokenizer, messages):
    """Ids of a ChatML conversation, written out, and its segments."""
    ids, spans = [], []
    for role, content in messages:
        new = tokenizer(f"<|im_start|>{role}\n{content}<|im_end|>\n", add_special_tokens=False).input_ids
        if role != "assistant":
            spans.append((len(ids), len(ids) + len(new)))
        ids += new
    return ids + tokenizer("<|im_start|>assistant\n", add_special_tokens=False).input_ids, spans


def test_answers_are_those_of_the_hand_made_mask(smollm2_path):
    from segattn.pretrained import resolve_model

    adapter = resolve_model("smollm2-segments")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    model = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype="float32")
    model = PeftModel.from_pretrained(model, adapter).eval()
    chats = [[("system", SYSTEM), ("user", question)] for question in QUESTIONS]
    wanted, causal = [], []
    for chat in chats:
        ids, spans = by_hand(tokenizer, chat)
        wanted.append(hand_oracle.greedy(model, ids, spans, COUNT)[0])
        causal.append(hand_oracle.greedy(model, ids, [], COUNT)[0])
    assert sum(a != b for a, b in zip(wanted, causal, strict=True)) >= 2
    options = {"dtype": "float32", "max_model_len": 512, "max_num_batched_tokens": 256, "max_num_seqs": 4}
    with engine("smollm2-segments", **options, kv_cache_memory_bytes=1 << 28) as llm:
        for _ in range(2):
            outputs = llm.chat(
                [[{"role": role, "content": content} for role, content in chat] for chat in chats],
                parameters(COUNT),
                use_tqdm=False,
            )
            assert [list(o.prompt_token_ids) for o in outputs] == [by_hand(tokenizer, chat)[0] for chat in chats]
            assert [list(o.outputs[0].token_ids) for o in outputs] == wanted
