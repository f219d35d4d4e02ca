# ruff: noqa: RUF001 (full-width bars are DeepSeek's own)
"""Chat templates written for these tests, in the manner of well-known families.

Each is attached to a real tokenizer; `COVERAGE` says what each takes.
"""

from dataclasses import dataclass

# ChatML that puts in a system prompt of its own.
CHATML = """{%- if messages[0].role != 'system' -%}
<|im_start|>system
You answer briefly.<|im_end|>
{% endif -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

# ChatML without a line break after the last end marker, and an end-of-text token that closes the conversation.
CHATML_CLOSED = """{%- for m in messages -%}
{{ ('\\n' if not loop.first else '') + '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\n<|im_start|>assistant\\n' }}{%- endif -%}"""

# Generation prompt and last answer carry a thinking block; earlier answers lose theirs.
THINKING = """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{ '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' if loop.last else '') }}
{{- m.content.split('</think>')[-1].lstrip() + '<|im_end|>\\n' }}
{%- else -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>\\n' }}{%- endif -%}"""

# Phi: a marker per role; plain text for most tokenizers.
PHI = """{%- for m in messages -%}
{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"""

# Zephyr: markers of plain text, messages end with the end-of-sequence token.
ZEPHYR = """{%- for m in messages -%}
{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"""

# Mistral: the assistant has no header, the system text goes into the first user turn.
MISTRAL = """{%- set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}
{%- set rest = messages[1:] if system else messages -%}
{{- bos_token -}}
{%- for m in rest -%}
{%- if (m.role == 'user') != (loop.index0 is divisibleby 2) -%}{{ raise_exception('no turn') }}{%- endif -%}
{%- if m.role == 'user' -%}
{{ '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}
{%- else -%}
{{ ' ' + m.content + eos_token }}
{%- endif -%}
{%- endfor -%}"""

# Llama 2: as Mistral, with a BOS before every user turn and contents stripped.
LLAMA2 = """{%- set first = messages[0] -%}
{%- set system = '<<SYS>>\\n' + first.content + '\\n<</SYS>>\\n\\n' if first.role == 'system' else '' -%}
{%- set rest = messages[1:] if system else messages -%}
{%- for m in rest -%}
{%- if (m.role == 'user') != (loop.index0 is divisibleby 2) -%}{{ raise_exception('no turn') }}{%- endif -%}
{%- if m.role == 'user' -%}
{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content | trim + ' [/INST]' }}
{%- else -%}
{{ ' ' + m.content | trim + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}"""

# Alpaca: headings in plain text and an instruction of its own, or the caller's, without a heading.
ALPACA = """{%- set system = messages[0].content if messages[0].role == 'system' else 'Complete the task below.' -%}
{{- system + '\\n\\n' -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{{ '### Instruction:\\n' + m.content + '\\n\\n' }}
{%- elif m.role == 'assistant' -%}
{{ '### Response:\\n' + m.content + eos_token + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"""

# Vicuna: names in capitals, separated by spaces.
VICUNA = """{%- if messages[0].role == 'system' -%}{{ messages[0].content + ' ' }}{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{{ 'USER: ' + m.content + ' ' }}
{%- elif m.role == 'assistant' -%}
{{ 'ASSISTANT: ' + m.content + eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"""

# Command R: two special tokens make a header, no line break after it; the system turn begins with a preamble.
COMMAND_R = """{{- bos_token -}}
{%- for m in messages -%}
{%- set name = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[m.role] -%}
{{ '<|START|><|' + name + '|>' + ('# Preamble\\n' if name == 'SYSTEM' else '') + m.content + '<|END|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|START|><|CHATBOT|>' }}{%- endif -%}"""

# Llama 3.1: always a system turn, which begins with dates.
LLAMA31 = """{{- bos_token -}}
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{{ '<|start_header_id|>system<|end_header_id|>\\n\\nKnowledge until: 2023\\nDate: ' + (date or 'today') }}
{{- '\\n\\n' + system + '<|eot_id|>' }}
{%- for m in (messages[1:] if messages[0].role == 'system' else messages) -%}
{%- set role = 'ipython' if m.role == 'tool' else m.role -%}
{%- if m.tool_calls -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' + m.tool_calls[0].function | tojson + '<|eot_id|>' }}
{%- else -%}
{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""

# Harmony: a system turn of its own, the caller's system text as a developer turn, channels in the answers.
HARMONY = """{{- '<|start|>system<|message|>You are a language model.\\nDate: ' + (date or 'today') + '<|end|>' -}}
{%- for m in messages -%}
{%- if m.role in ('system', 'developer') -%}
{{ '<|start|>developer<|message|># Instructions\\n\\n' + m.content + '<|end|>' }}
{%- elif m.role == 'user' -%}
{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}
{%- elif m.role == 'tool' -%}
{{ '<|start|>functions.' + m.name + ' to=assistant<|channel|>commentary<|message|>' + m.content + '<|end|>' }}
{%- elif m.tool_calls -%}
{{ '<|start|>assistant to=functions.' + m.tool_calls[0].function.name + '<|channel|>commentary<|message|>' }}
{{- m.tool_calls[0].function.arguments | tojson + '<|call|>' }}
{%- else -%}
{%- if m.thinking -%}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif -%}
{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}"""

# Gemma: the assistant is called model, the system text goes into the first user turn.
GEMMA = """{{- bos_token -}}
{%- set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}
{%- for m in messages if m.role != 'system' -%}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{{- (system if loop.first else '') + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

# Nothing tells a user from an assistant.
UNMARKED = "{%- for m in messages -%}{{ m.content + eos_token }}{%- endfor -%}"

REFUSING = "{{ raise_exception('this template takes nothing') }}"


# How a reader finds the segments in rendered text of harmless messages: the oracle, written by hand.
CHATML_SEGMENTS = r"<\|im_start\|>(?!assistant).*?(?=<\|im_start\|>|\Z)"
BARRED_SEGMENTS = r"<\|(?!assistant|end|im_end)\w+\|>.*?(?=<\|(?:system|user|assistant|tool)\|>|\Z)"
INST_SEGMENTS = r"\[INST\].*?\[/INST\]"
HEADER_SEGMENTS = r"<\|start_header_id\|>(?!assistant).*?(?=<\|start_header_id\|>|\Z)"
HARMONY_SEGMENTS = r"<\|start\|>(?!assistant).*?(?=<\|start\|>|\Z)"
GEMMA_SEGMENTS = r"<start_of_turn>(?!model).*?(?=<start_of_turn>|\Z)"
DEEPSEEK_SEGMENTS = (
    r"(?<=\A<｜begin▁of▁sentence｜>)[^<].*?(?=<｜User｜>)|<｜User｜>.*?(?=<｜User｜>|<｜Assistant｜>|\Z)"
    r"|<｜tool▁outputs▁begin｜>.*?<｜tool▁outputs▁end｜>"
)
HEADER_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
HARMONY_TOKENS = ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|call|>")


@dataclass(frozen=True)
class Coverage:
    """A template, what it takes, and how the oracle finds its segments.

    `tokens` are special tokens to add to the tokenizer first. `stable`: a conversation cut after an answer
    renders to a prefix of the whole. `text_markers`: all markers are plain text.
    """

    template: str
    segments: str
    roles: tuple[str, ...] = ("system", "user")
    tokens: tuple[str, ...] = ()
    bos: str | None = None
    stable: bool = True
    text_markers: bool = False


COVERAGE = {
    "chatml": Coverage(CHATML, CHATML_SEGMENTS, ("system", "user", "tool")),
    "chatml-closed": Coverage(CHATML_CLOSED, CHATML_SEGMENTS, ("system", "user", "tool")),
    "thinking": Coverage(THINKING, CHATML_SEGMENTS, ("system", "user", "tool"), stable=False),
    "phi-plain": Coverage(PHI, BARRED_SEGMENTS, ("system", "user", "tool"), text_markers=True),
    "phi-special": Coverage(PHI, BARRED_SEGMENTS, tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "zephyr": Coverage(ZEPHYR, BARRED_SEGMENTS, text_markers=True),
    "mistral": Coverage(MISTRAL, INST_SEGMENTS, bos="<s>", tokens=("<s>",), text_markers=True),
    "mistral-special": Coverage(MISTRAL, INST_SEGMENTS, bos="<s>", tokens=("<s>", "[INST]", "[/INST]")),
    "llama2": Coverage(LLAMA2, INST_SEGMENTS, bos="<s>", tokens=("<s>",), text_markers=True),
    "alpaca": Coverage(
        ALPACA,
        r"\A.+?(?=### Instruction:)|### Instruction:.*?(?=### Instruction:|### Response:|\Z)",
        text_markers=True,
    ),
    "vicuna": Coverage(VICUNA, r"\A(?!USER:).+?(?=USER:)|USER:.*?(?=ASSISTANT:|\Z)", text_markers=True),
    "command-r": Coverage(
        COMMAND_R,
        r"<\|START\|><\|(?:USER|SYSTEM)\|>.*?(?=<\|START\|>|\Z)",
        bos="<BOS>",
        tokens=("<BOS>", "<|START|>", "<|END|>", "<|USER|>", "<|SYSTEM|>", "<|CHATBOT|>"),
    ),
    "llama-3.1": Coverage(
        LLAMA31, HEADER_SEGMENTS, ("system", "user", "tool"), bos="<|begin_of_text|>", tokens=HEADER_TOKENS
    ),
    "harmony": Coverage(HARMONY, HARMONY_SEGMENTS, ("system", "developer", "user", "tool"), tokens=HARMONY_TOKENS),
    "gemma": Coverage(GEMMA, GEMMA_SEGMENTS, bos="<bos>", tokens=("<bos>", "<start_of_turn>", "<end_of_turn>")),
}
