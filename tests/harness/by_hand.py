"""What the harness must find, from a stock model under a mask from a double loop: row by row, without a cache."""

import re

import torch

from chatml import conversation
from cli.tiny_chat import START, make_tokenizer
from modeling.tiny import hand_mask

TOKENIZER = make_tokenizer()
PREFIX = 256  # what a text without prompt begins with: the BOS of the tokenizer
MESSAGE = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL)


def tokens(text):
    return TOKENIZER(text, add_special_tokens=False).input_ids if text else []


def chat(text):
    """(ids, segment ids) of a rendered ChatML prompt: its messages and the answer that it begins."""
    found = [{"role": role, "content": content} for role, content in MESSAGE.findall(text)]
    rest = MESSAGE.sub("", text)
    opening = f"{START}assistant\n"
    assert rest.startswith(opening)
    ids, _, segments = conversation(TOKENIZER, found, generation_prompt=True)
    prefilled = tokens(rest.removeprefix(opening))
    return ids + prefilled, segments + [-1] * len(prefilled)


def prompt(text, attention="segments"):
    ids, segments = chat(text) if text else ([PREFIX], [-1])
    return ids, segments if attention == "segments" else [-1] * len(ids)


def log_probs(model, ids, segments):
    with torch.no_grad():
        mask = hand_mask(model, [segments], model.config._attn_implementation)
        return model(torch.tensor([ids]), attention_mask=mask).logits[0].log_softmax(-1)


def score(model, context, continuation, attention="segments", most=2048):
    """(log-likelihood, whether greedy) of a continuation: with the whitespace before it, as the harness has it."""
    ids, segments = prompt(context, attention)
    bare = len(context) - len(context.rstrip()) if context else 0
    answer = ids[len(ids) - bare :] + tokens(continuation)
    return score_row(model, ids[: len(ids) - bare] + answer, segments, len(answer), most)


def score_row(model, ids, segments, scored, most=2048):
    segments = [*segments, *[-1] * (len(ids) - len(segments))]
    segments[len(ids) - scored :] = [-1] * scored
    ids, segments = ids[-most - 1 :], segments[-most - 1 :]
    found = log_probs(model, ids[:-1], segments[:-1])[-scored:]
    answer = torch.tensor(ids[-scored:])
    return float(found.gather(1, answer[:, None]).sum()), bool((found.argmax(-1) == answer).all())


def generate(model, context, new, attention="segments", most=2048):
    """The tokens of a greedy answer, up to `new` of them and the end marker."""
    ids, segments = prompt(context, attention)
    ids, segments = ids[-most:], segments[-most:]
    answer = []
    while len(answer) < new and TOKENIZER.eos_token_id not in answer:
        row = ids + answer
        answer.append(int(log_probs(model, row, segments + [-1] * len(answer))[-1].argmax()))
    return answer
