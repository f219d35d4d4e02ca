"""What vLLM must answer: stock Hugging Face models, without cache, with a mask written by hand; nothing of segattn."""

import torch


def hand_mask(spans, length):
    """True = may attend, shape (1, 1, length, length): the row is the query."""
    allowed = [[key <= query for key in range(length)] for query in range(length)]
    for start, end in spans:
        for query in range(start, end):
            for key in range(start, end):
                allowed[query][key] = True
    return torch.tensor(allowed)[None, None]


@torch.no_grad()
def logits(model, ids, spans):
    """float32, shape (length, vocabulary)."""
    return model(input_ids=torch.tensor([ids]), attention_mask=hand_mask(spans, len(ids)), use_cache=False).logits[0]


def greedy(model, ids, spans, count):
    """The next `count` token ids, and by how much each won."""
    row, margins = list(ids), []
    for _ in range(count):
        best = logits(model, row, spans)[-1].float().topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        row.append(int(best.indices[0]))
    return row[len(ids) :], margins


def log_probability(model, ids, spans):
    """What each token of the prompt but the first gets from the tokens that its predecessor sees."""
    all_logits = logits(model, ids, spans).float().log_softmax(-1)
    return [float(all_logits[i - 1, ids[i]]) for i in range(1, len(ids))]
