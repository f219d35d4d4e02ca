"""vLLM's OpenAI server, started by `segattn serve`, and clients that know nothing of segments."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

from serving import hand_oracle
from serving.http_server import Client, running, tokens_of

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def server(served, tmp_path_factory):
    with running(served[0], tmp_path_factory.mktemp("server") / "log") as made:
        yield made


def test_concurrent_clients_get_what_the_mask_says(server, served):
    client = Client(served, 1)
    system = client.message("system", 50)
    opening = client.message("user", 70)["content"]
    chats = []
    for number in range(20):
        question = {"role": "user", "content": opening + client.message("user", 5 + number)["content"]}
        chats.append([system, question] if number % 2 else [question, client.message("user", 20)])
    with ThreadPoolExecutor(10) as pool:
        for _ in range(2):
            got = list(pool.map(lambda messages: tokens_of(server.chat(messages)), chats))
            assert got == [[client.wanted(messages)] for messages in chats]


def test_a_request_can_be_causal_or_give_its_own_spans(server, served):
    client = Client(served, 2)
    messages = [client.message("system", 40), client.message("user", 60)]
    assert tokens_of(server.chat(messages, vllm_xargs={"segment_attention": "causal"})) == [client.wanted(messages, [])]
    spans = [(3, 30), (30, 80)]
    flat = [bound for span in spans for bound in span]
    assert tokens_of(server.chat(messages, vllm_xargs={"segment_attention": flat})) == [client.wanted(messages, spans)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"vllm_xargs": {"segment_attention": "prefix"}}, "flat list"),
        ({"vllm_xargs": {"segment_attention": [1]}}, "odd"),
        ({"vllm_xargs": {"segment_attention": [0, 10**9]}}, "row of"),
        ({"vllm_xargs": {"segment_attention": [0, 0.5]}}, "0.5"),
        ({"vllm_xargs": {"segment_spans": [0, 5]}}, "segment_spans"),
        ({"vllm_xargs": {"segment_attention": [[0, 5]]}}, "segment_attention"),
    ],
)
def test_a_bad_override_is_a_400_with_the_reason_and_the_server_goes_on(server, served, options, expected):
    client = Client(served, 3)
    messages = [client.message("user", 40)]
    status, content = server.chat(messages, **options)
    assert status == 400
    assert expected in content
    assert tokens_of(server.chat(messages)) == [client.wanted(messages)]


def test_a_segment_that_is_too_long_is_a_400_with_the_number_to_set(server, served):
    client = Client(served, 4)
    status, content = server.chat([client.message("user", 300)])
    length = client.prompt([{"role": "user", "content": "x" * 300}])[1][0][1]
    assert status == 400
    assert f"--max-num-batched-tokens {length + 7}" in content


def test_a_prompt_that_is_cut_from_the_left_is_a_400(server, served):
    client = Client(served, 9)
    messages = [client.message("user", 40)]
    for cut in ({"truncate_prompt_tokens": 20}, {"truncate_prompt_tokens": -1, "truncation_side": "left"}):
        status, content = server.chat(messages, **cut)
        assert status == 400
        assert "cut from the left" in content
    ids, ((start, _),) = client.prompt(messages)
    cut = {"truncate_prompt_tokens": 20, "truncation_side": "right"}
    wanted, _ = hand_oracle.greedy(client.model, ids[:20], [(start, 20)], 6)
    assert tokens_of(server.chat(messages, **cut)) == [wanted]


def test_malformed_and_oversized_bodies_do_not_end_the_server(server, served):
    assert server.post("/v1/chat/completions", b"{")[0] == 400
    assert server.post("/v1/chat/completions", {"model": "tiny"})[0] == 400
    assert server.chat([{"role": "user", "content": "x" * 5000}])[0] == 400
    client = Client(served, 5)
    messages = [client.message("user", 30)]
    assert tokens_of(server.chat(messages)) == [client.wanted(messages)]


def test_streaming(server, served):
    client = Client(served, 6)
    messages = [client.message("system", 30), client.message("user", 50)]
    status, content = server.chat(messages, stream=True)
    assert status == 200
    events = [json.loads(line[6:]) for line in content.splitlines() if line.startswith("data: {")]
    tokens = [token for e in events for c in e["choices"] for token in c.get("token_ids") or []]
    assert tokens == client.wanted(messages)
    assert len(events) > 3


def test_several_answers_and_log_probabilities(server, served):
    client = Client(served, 7)
    messages = [client.message("user", 50)]
    drawn = tokens_of(server.chat(messages, n=3, temperature=1.3, seed=1))
    assert len({tuple(tokens) for tokens in drawn}) > 1
    assert tokens_of(server.chat(messages, n=3, temperature=1.3, seed=1)) == drawn
    status, content = server.chat(messages, logprobs=True)
    ids, spans = client.prompt(messages)
    row = hand_oracle.logits(client.model, ids, spans)[-1].log_softmax(-1)
    first = json.loads(content)["choices"][0]
    assert status == 200
    assert first["logprobs"]["content"][0]["logprob"] == pytest.approx(float(row[first["token_ids"][0]]), abs=2e-3)


def test_clients_that_leave_free_their_blocks(server, served):
    client = Client(served, 8)
    for number in range(8):
        messages = [client.message("system", 100), client.message("user", 90 + number)]
        body = {"model": "tiny", "messages": messages, "max_tokens": 300, "ignore_eos": True, "stream": True}
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        if number % 2:
            connection.getresponse().read(10)
        connection.close()
    until = time.monotonic() + 60
    while server.blocks_in_use() > 0 and time.monotonic() < until:
        time.sleep(0.5)
    assert server.blocks_in_use() == 0
    messages = [client.message("user", 30)]
    assert tokens_of(server.chat(messages)) == [client.wanted(messages)]
