"""LoRA adapters over HTTP, also such as are loaded while the server runs."""

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

from transformers import AutoModelForCausalLM

from serving.http_server import Client, running, tokens_of
from serving.tiny_served import save_adapter

pytestmark = pytest.mark.vllm


def test_adapters_that_are_loaded_while_the_server_runs(ordinary, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
    models = {"tiny": AutoModelForCausalLM.from_pretrained(ordinary).eval()}
    for seed, name in enumerate(("mine", "tuned", "causal", "damaged"), 3):
        models[name] = save_adapter(tmp_path / name, ordinary, seed, name != "causal")
    (tmp_path / "damaged" / "segment_attention.json").write_text("{")
    base = Client((ordinary, models["tiny"]), 1)
    messages = [base.message("system", 40), base.message("user", 60)]
    long = [base.message("user", 300)]

    def wanted(name, spans=None):
        return [Client((ordinary, models[name])).wanted(messages, spans)]

    with running(tmp_path / "mine", tmp_path / "log", "--max-loras", "2", "--max-cpu-loras", "4") as server:

        def load(name, **options):
            body = {"lora_name": name, "lora_path": str(tmp_path / name), **options}
            return server.post("/v1/load_lora_adapter", body)

        assert load("tuned")[0] == load("causal")[0] == 200
        status, content = load("damaged")
        assert status == 500  # as for any adapter that vLLM cannot load
        assert "the checkpoint is damaged" in content
        for _ in range(2):
            assert tokens_of(server.chat(messages, model="mine")) == wanted("mine")
            assert tokens_of(server.chat(messages, model="tuned")) == wanted("tuned")
            assert tokens_of(server.chat(messages, model="causal")) == wanted("causal", [])
            assert tokens_of(server.chat(messages)) == wanted("tiny", [])
        assert wanted("tuned") != wanted("tuned", [])
        assert wanted("causal") != wanted("causal", [])
        # Each adapter is checked for itself.
        assert server.chat(long, model="tuned")[0] == 400
        assert server.chat(long, model="causal")[0] == server.chat(long)[0] == 200
        # Another adapter under the name, of which the settings said that it follows segments.
        assert load("mine", lora_path=str(tmp_path / "tuned"), load_inplace=True)[0] == 200
        assert tokens_of(server.chat(messages, model="mine", cache_salt="2")) == wanted("tuned")
        status, content = load("mine", lora_path=str(tmp_path / "causal"), load_inplace=True)
        assert status == 500
        assert "under another name" in content
        assert tokens_of(server.chat(messages, model="mine", cache_salt="3")) == wanted("tuned")
        # A folder that is damaged after it was loaded: refused at the request, and the engine goes on.
        (tmp_path / "causal" / "segment_attention.json").write_text("[]")
        status, content = server.chat(messages, model="causal")
        assert status == 400
        assert "cannot read" in content
        assert tokens_of(server.chat(messages, model="mine", cache_salt="3")) == wanted("tuned")
