"""The oracle of this room: segments found in rendered text by a pattern written by hand, mapped to tokens."""

import re


def segments_of(tokenizer, coverage, messages, **options):
    """(ids, segment ids) of a harmless conversation, from its text and the tokenizer's offsets alone."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [match.span() for match in re.finditer(coverage.segments, text, re.DOTALL)]
    segments = []
    for start, end in encoding["offset_mapping"]:
        piece = text[start:end]
        # A token such as " ASSISTANT" begins with white space of the message before it.
        at = start + len(piece) - len(piece.lstrip()) if piece.strip() else start
        segments.append(next((n for n, (a, b) in enumerate(spans) if a <= at < b), -1))
    return list(encoding["input_ids"]), segments
