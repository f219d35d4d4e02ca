"""ChatML conversations written out by hand, byte by byte: an oracle for tokens, labels and segments."""

START, END = 256, 257  # of the tokenizer in cli.tiny_chat, whose other tokens are one byte each


def conversation(tokenizer, messages, learn="last", generation_prompt=False):
    """Lists (ids, labels, segment ids) of a chat; `learn` "all" labels every answer, "last" the last message."""
    ids, labels, segments, number = [], [], [], 0
    for place, message in enumerate(messages):
        role, content = message["role"], message["content"]
        head = [START, *_bytes(tokenizer, f"{role}\n")]
        body, tail = [*_bytes(tokenizer, content), END], _bytes(tokenizer, "\n")
        learned = role == "assistant" and (learn == "all" or place == len(messages) - 1)
        ids += head + body + tail
        labels += [-100] * len(head) + (body if learned else [-100] * len(body)) + [-100] * len(tail)
        if role == "assistant":
            segments += [-1] * len(head + body + tail)
        else:
            segments += [number] * len(head + body + tail)
            number += 1
    if generation_prompt:
        prompt = [START, *_bytes(tokenizer, "assistant\n")]
        ids, labels, segments = ids + prompt, labels + [-100] * len(prompt), segments + [-1] * len(prompt)
    return ids, labels, segments


def _bytes(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids if text else []
