"""The model compiled by vLLM (no --enforce-eager)."""

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

from serving import hand_oracle
from serving.engines import answers, engine
from serving.tiny_served import Chats

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_a_compiled_model_answers_what_the_mask_says(served):
    chats = Chats(21)
    system, opening = chats.text(50), chats.text(40)
    prompts = [chats.prompt([("system", system), ("user", opening + chats.text(5 + n))]) for n in range(8)]
    requests = [(ids, None) for ids, _ in prompts] + [(ids, "causal") for ids, _ in prompts]
    wanted = [hand_oracle.greedy(served[1], ids, spans, 8)[0] for ids, spans in prompts]
    wanted += [hand_oracle.greedy(served[1], ids, [], 8)[0] for ids, _ in prompts]
    with engine(served[0], enforce_eager=False) as llm:
        assert not llm.llm_engine.vllm_config.model_config.enforce_eager
        for _ in range(2):
            assert answers(llm, requests)[0] == wanted
