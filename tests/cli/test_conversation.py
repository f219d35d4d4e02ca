"""Answers on a kept cache against answers computed from nothing."""

import pytest
import torch

import segattn
from cli.tiny_chat import HandSegmenter, make_model, make_tokenizer
from segattn.cli.conversation import Conversation, GenerationOptions
from segattn.cli.loading import AnswerError, ChatModel
from segattn.cli.prefixes import open_prefixes, summary
from segattn.errors import TemplateError

LINES = ["Hi there", "And what is 12 + 3?", "é中🙂", "<|im_end|>", "x" * 40]


def make_conversation(attention="segments", seed=0, length=12, system=None, **options):
    tokenizer, model = make_tokenizer(), make_model(seed=seed, **options)
    segmenter = None
    if attention == "segments":
        segmenter = HandSegmenter(tokenizer)
        segattn.enable(model, segmenter)
    chat_model = ChatModel("tiny", model, tokenizer, segmenter, attention)
    return Conversation(chat_model, GenerationOptions(max_new_tokens=length), system, open_prefixes(chat_model, None))


def answer_from_nothing(conversation, messages):
    """Generate for a conversation without any cache of earlier turns, through the model's own generate."""
    model, tokenizer = conversation.chat_model.model, conversation.chat_model.tokenizer
    batch = dict(HandSegmenter(tokenizer).apply_chat_template(messages))
    if conversation.chat_model.attention == "causal":
        del batch["segment_ids"]
    out = model.generate(**batch, max_new_tokens=conversation.options.max_new_tokens, do_sample=False)
    return tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("attention", ["segments", "causal"])
@pytest.mark.parametrize("seed", range(2))
def test_every_turn_equals_an_answer_from_nothing(attention, seed):
    conversation = make_conversation(attention, seed, system="Be brief.")
    for line in LINES:
        messages = [*conversation.messages, {"role": "user", "content": line}]
        turn = conversation.ask(line)
        assert turn.text == answer_from_nothing(conversation, messages)
        prompt = HandSegmenter(conversation.chat_model.tokenizer).apply_chat_template(messages)["input_ids"]
        assert turn.prompt_tokens == prompt.shape[1]
    assert [message["role"] for message in conversation.messages] == ["system", *["user", "assistant"] * len(LINES)]


def test_the_segments_matter_for_these_answers():
    conversations = [make_conversation(attention) for attention in ("segments", "causal")]
    answers = [[conversation.ask(line).text for line in LINES[:2]] for conversation in conversations]
    assert answers[0] != answers[1]


def force(monkeypatch, conversation, text):
    """Make the model answer with a fixed text, whatever it is asked, through its logits."""
    wanted = [*conversation.chat_model.tokenizer(text).input_ids, 257]
    generate = conversation.chat_model.model.generate

    def forced(input_ids=None, **options):
        start = input_ids.shape[1]

        def only(ids, scores):
            return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([wanted[ids.shape[1] - start]]), 0.0)

        return generate(input_ids=input_ids, logits_processor=[only], **options)

    monkeypatch.setattr(conversation.chat_model.model, "generate", forced)


def test_a_faithfully_rendered_answer_lets_the_cache_be_extended(monkeypatch):
    conversation = make_conversation(length=30)
    force(monkeypatch, conversation, "plain answer")
    first, second = conversation.ask("one"), conversation.ask("two")
    assert (first.text, first.finish, first.cache, first.reused_tokens) == ("plain answer", "end", "empty", 0)
    # All of the first turn but the end marker, whose keys were never computed.
    assert second.reused_tokens == first.prompt_tokens + first.new_tokens - 1
    assert (second.text, second.cache) == ("plain answer", "extended")


def test_sliding_window_layers_go_on_from_their_cache(monkeypatch):
    conversation = make_conversation(length=30, family="gemma3")
    with monkeypatch.context() as patched:
        force(patched, conversation, "plain answer")
        conversation.ask("longer than the window of eight tokens")
    messages = [*conversation.messages, {"role": "user", "content": "so is this question"}]
    turn = conversation.ask("so is this question")
    assert turn.cache == "extended"
    assert turn.text == answer_from_nothing(conversation, messages)


def test_an_answer_that_renders_otherwise_is_reused_up_to_the_difference(monkeypatch):
    conversation = make_conversation(length=30)
    force(monkeypatch, conversation, "  with spaces")
    first, second = conversation.ask("one"), conversation.ask("two")
    assert first.text == "with spaces"
    assert (second.cache, second.reused_tokens) == ("part", first.prompt_tokens)


def test_keys_that_cannot_be_shared_are_computed_in_every_turn(monkeypatch):
    conversation = make_conversation()
    monkeypatch.setattr(type(conversation.chat_model.model), "_is_stateful", True)
    assert open_prefixes(conversation.chat_model, None) is None
    conversation.prefixes = None
    for line in LINES[:2]:
        messages = [*conversation.messages, {"role": "user", "content": line}]
        turn = conversation.ask(line)
        assert (turn.cache, turn.reused_tokens) == ("off", 0)
        assert turn.text == answer_from_nothing(conversation, messages)
    assert "off" in summary(conversation.prefixes)


def test_the_streamed_pieces_are_the_answer(monkeypatch):
    conversation, pieces = make_conversation(length=40), []
    force(monkeypatch, conversation, "several words of an answer, then more")
    turn = conversation.ask("one", pieces.append)
    assert "".join(pieces) == turn.text == "several words of an answer, then more"
    assert len(pieces) > 3


def test_stopping_ends_the_answer_and_the_conversation_goes_on(monkeypatch):
    conversation = make_conversation(length=40)
    force(monkeypatch, conversation, "several words of an answer, then more")
    turn = conversation.ask("one", lambda piece: conversation.stop())
    assert turn.finish == "stopped"
    assert "several words of an answer, then more".startswith(turn.text)
    assert 0 < turn.new_tokens < 30
    assert conversation.ask("two").text == "several words of an answer, then more"


def test_an_abandoned_turn_leaves_no_trace():
    conversation = make_conversation()
    conversation.ask("one")
    before = list(conversation.messages)

    def interrupt(piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask("two", interrupt)
    assert conversation.messages == before
    turn = conversation.ask("three")
    assert turn.cache == "part", "the first turn is still known"
    assert turn.text == answer_from_nothing(conversation, [*before, {"role": "user", "content": "three"}])


def test_reset_and_system_begin_anew():
    conversation = make_conversation(system="Be brief.")
    conversation.ask("one")
    conversation.reset()
    again = conversation.ask("two")
    assert again.cache == "part"
    assert again.reused_tokens >= again.segments[0][1], "the system prompt is known"
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    conversation.set_system(None)
    with pytest.raises(AnswerError, match="no messages yet"):
        conversation.encode()
    assert conversation.ask("one").cache == "empty"


def test_a_full_context_is_refused_and_a_nearly_full_one_cuts_the_answer():
    conversation = make_conversation(context=60, length=500)
    with pytest.raises(AnswerError, match="has 89 tokens and tiny holds 60"):
        conversation.ask("x" * 70)
    assert conversation.messages == []
    turn = conversation.ask("x" * 20)
    assert turn.prompt_tokens + turn.new_tokens <= 60


def test_a_template_that_refuses_is_an_error_that_names_the_model():
    conversation = make_conversation("causal")
    conversation.chat_model.tokenizer.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(TemplateError, match=r"chat template of tiny cannot render this conversation.*only one turn"):
        conversation.ask("one")


def test_sampling_follows_the_seed_and_greedy_does_not():
    def ask(options, seed):
        conversation = make_conversation()
        conversation.options = options
        torch.manual_seed(seed)
        return conversation.ask("one").text

    sampled = GenerationOptions(max_new_tokens=20, temperature=1.5)
    assert ask(sampled, 1) == ask(sampled, 1) != ask(sampled, 2)
    greedy = GenerationOptions(max_new_tokens=20, temperature=0.0)
    assert ask(greedy, 1) == ask(greedy, 2) == ask(GenerationOptions(max_new_tokens=20), 3)


def test_segments_of_a_turn_are_its_messages():
    conversation = make_conversation(system="Be brief.")
    turn = conversation.ask("Hi")
    size = len("system\nBe brief.\n") + 2  # bytes, and two markers of one token
    assert turn.segments == [(0, size), (size, size + len("user\nHi\n") + 2)]
