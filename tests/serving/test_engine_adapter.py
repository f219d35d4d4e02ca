"""A LoRA adapter that was tuned with segments, loaded by vLLM over a base model that was not."""

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

from transformers import AutoModelForCausalLM
from vllm import LLM
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest

from segattn import SegmentAttentionError
from segattn.serving import llm as segment_llm
from serving import hand_oracle
from serving.engines import SMALL, answers, engine, parameters
from serving.tiny_served import Chats, save_adapter

pytestmark = pytest.mark.vllm

LATER = {"tuned": 4, "causal": 5}
"""Name of an adapter that the settings do not name -> seed."""


@pytest.fixture(scope="module")
def adapted(ordinary, tmp_path_factory):
    """(folder of the adapter, the adapted model, the base model)."""
    folder = tmp_path_factory.mktemp("adapted") / "mine"
    model = save_adapter(folder, ordinary)
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


def test_adapters_that_are_loaded_later_are_each_read_by_their_own_folder(adapted, ordinary, tmp_path):
    chats = Chats(5)
    system = chats.text(70)
    prompts = [chats.prompt([("system", system), ("user", chats.text(40))]) for _ in range(4)]
    later = {name: save_adapter(tmp_path / name, ordinary, seed, name == "tuned") for name, seed in LATER.items()}
    save_adapter(tmp_path / "damaged", ordinary, 6)
    (tmp_path / "damaged" / "segment_attention.json").write_text('{"format": 99}')

    def ask(llm, name, number):
        request = LoRARequest(name, number, str(tmp_path / name))
        prompts_of_ids = [{"prompt_token_ids": ids} for ids, _ in prompts]
        outputs = llm.generate(prompts_of_ids, parameters(6), use_tqdm=False, lora_request=request)
        return [list(o.outputs[0].token_ids) for o in outputs]

    with engine(adapted[0], max_loras=3) as llm:
        with pytest.raises(VLLMValidationError, match="cannot read"):
            ask(llm, "damaged", 4)
        with pytest.raises(VLLMValidationError, match=r"holds no adapter_config\.json"):
            ask(llm, "missing", 5)
        for _ in range(2):
            for number, (name, model) in enumerate(later.items(), 2):
                wanted = [hand_oracle.greedy(model, ids, s if name == "tuned" else [], 6)[0] for ids, s in prompts]
                other = [hand_oracle.greedy(model, ids, [] if name == "tuned" else s, 6)[0] for ids, s in prompts]
                assert ask(llm, name, number) == wanted
                assert all(a != b for a, b in zip(wanted, other, strict=True))


def test_a_prompt_that_streams_in_or_is_cut_from_the_left_is_refused(adapted):
    text = "\n".join(["abcdefgh"] * 8)
    with engine(adapted[0]) as llm:
        for side in ({}, {"truncation_side": "left"}):
            with pytest.raises(VLLMValidationError, match="cut from the left"):
                llm.generate(text, parameters(4), tokenization_kwargs={"truncate_prompt_tokens": 9, **side})
        cut = {"truncate_prompt_tokens": 9, "truncation_side": "right"}
        (made,) = llm.generate(text, parameters(4), use_tqdm=False, tokenization_kwargs=cut)
        assert len(made.prompt_token_ids) == 9
        with pytest.raises(VLLMValidationError, match="sent whole"):
            llm.llm_engine.input_processor.process_inputs(
                "x", {"type": "token", "prompt_token_ids": [1, 2]}, parameters(4), ("generate",), resumable=True
            )


def test_an_adapter_without_segmentation_is_refused(adapted, tmp_path):
    for file in adapted[0].iterdir():
        if file.name != "segment_attention.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SegmentAttentionError, match="tuned causally"):
        segment_llm(str(tmp_path), **SMALL)
