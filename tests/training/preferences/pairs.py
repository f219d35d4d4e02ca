"""Pairs of answers to learn from, and what a stock model makes of them under a mask from a double loop."""

from itertools import pairwise

import torch
from torch.nn.functional import logsigmoid

import segattn
from chatml import START, conversation
from cli.tiny_chat import make_model, make_tokenizer
from oracle import loop_mask

TOKENIZER = make_tokenizer()
SEGMENTER = segattn.Segmenter.from_tokenizer(TOKENIZER)


def enabled(seed=0, policy="turns", **options):
    return segattn.enable(make_model(seed), SEGMENTER.with_policy(policy), **options)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def make_pairs(count):
    """Rows of TRL's format: prompts of different length; every second with a system message and an earlier answer."""
    rows = []
    for number in range(count):
        prompt = [user(f"question {number} " + "x" * (number % 5))]
        if number % 2:
            prompt = [{"role": "system", "content": "be brief"}, *prompt, assistant("so"), user("and?")]
        chosen, rejected = [assistant(f"good {number}")], [assistant(f"bad answer {number}")]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def written_out(prompt, answer):
    """Ids and segment ids of prompt and answer, and how long the prompt is."""
    ids, _, segments = conversation(TOKENIZER, [*prompt, *answer])
    start = len(conversation(TOKENIZER, prompt, generation_prompt=True)[0])
    return ids, segments, start


def answer_log_prob(model, prompt, answer, rule="segments"):
    """The summed log-probability of an answer, one row alone, as a differentiable number."""
    ids, segments, start = written_out(prompt, answer)
    allowed = loop_mask([segments if rule == "segments" else [-1] * len(ids)])
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    logits = model(torch.tensor([ids]), attention_mask=mask).logits[0]
    log_probs = logits[:-1].log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]] for place in range(start, len(ids)))


def dpo_loss(rows, policy=None, reference=None, *, rule="segments", reference_rule=None, beta=0.1):
    """DPO's loss as the paper writes it: -log sigmoid(beta (policy's log-ratio - reference's))."""
    policy, reference = policy or make_model(), reference or make_model()
    losses = []
    for row in rows:
        ratios = []
        for name in ("chosen", "rejected"):
            own = answer_log_prob(policy, row["prompt"], row[name], rule)
            with torch.no_grad():
                theirs = answer_log_prob(reference, row["prompt"], row[name], reference_rule or rule)
            ratios.append(own - theirs)
        losses.append(-logsigmoid(beta * (ratios[0] - ratios[1])))
    return torch.stack(losses).mean()


def segments_by_markers(ids):
    """Segment ids of a row of the tiny chat tokenizer, read off its start markers by a plain loop."""
    starts = [place for place, token in enumerate(ids) if token == START] + [len(ids)]
    segments, number = [-1] * starts[0], 0
    answer = TOKENIZER("assistant\n").input_ids
    for start, end in pairwise(starts):
        causal = ids[start + 1 : start + 1 + len(answer)] == answer
        segments += [-1 if causal else number] * (end - start)
        number += not causal
    return segments
