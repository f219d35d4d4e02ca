"""A LoRA adapter that was tuned with segments, loaded by vLLM over a base model that was not."""

import json

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from vllm import LLM

from segattn import SegmentAttentionError, Segmenter
from segattn.serving import llm as segment_llm
from serving import hand_oracle
from serving.engines import SMALL, answers, engine, parameters
from serving.tiny_served import Chats

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def adapted(ordinary, tmp_path_factory):
    """(folder of the adapter, the adapted model, the base model)."""
    folder = tmp_path_factory.mktemp("adapted") / "mine"
    torch.manual_seed(3)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(ordinary),
        LoraConfig(r=6, lora_alpha=12, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]),
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.save_pretrained(folder)
    entry = {"format": 1, "segmenter": Segmenter.from_tokenizer(Chats().tokenizer).to_dict()}
    (folder / "segment_attention.json").write_text(json.dumps(entry))
    return folder, model, AutoModelForCausalLM.from_pretrained(ordinary).eval()


def test_adapter_and_base_answer_each_in_its_own_way(adapted):
    folder, model, base = adapted
    chats = Chats(4)
    system = chats.text(70)
    prompts = [chats.prompt([("system", system), ("user", chats.text(40))]) for _ in range(6)]
    with engine(folder) as llm:
        for _ in range(2):  # cold, and from the cache
            wanted = [hand_oracle.greedy(model, ids, spans, 6)[0] for ids, spans in prompts]
            assert answers(llm, [(ids, None) for ids, _ in prompts], count=6)[0] == wanted
            # Without the adapter, the model was never tuned with segments.
            plain = LLM.generate(llm, [{"prompt_token_ids": ids} for ids, _ in prompts], parameters(6), use_tqdm=False)
            causal = [hand_oracle.greedy(base, ids, [], 6)[0] for ids, _ in prompts]
            assert [list(o.outputs[0].token_ids) for o in plain] == causal
        assert all(a != b for a, b in zip(wanted, causal, strict=True))


def test_an_adapter_without_segmentation_is_refused(adapted, tmp_path):
    for file in adapted[0].iterdir():
        if file.name != "segment_attention.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SegmentAttentionError, match="tuned causally"):
        segment_llm(str(tmp_path), **SMALL)
