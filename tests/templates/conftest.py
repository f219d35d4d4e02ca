"""Every template to test: real tokenizers with their own, and templates written here on SmolLM2's tokenizer."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest

from segattn import Segmenter
from templates.chat_templates import CHATML_SEGMENTS, COVERAGE, Coverage
from templates.real_tokenizers import REAL, load

SMOLLM2 = Coverage("", CHATML_SEGMENTS, ("system", "user", "tool"))


@dataclass(frozen=True)
class Case:
    """A tokenizer with a template, the segmenter derived from it, and what the template takes."""

    name: str
    tokenizer: Any
    segmenter: Segmenter
    coverage: Coverage


def attach(tokenizer, coverage):
    """A copy of a tokenizer with another template and its special tokens."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": list(coverage.tokens)})
    if coverage.bos:
        own.bos_token = coverage.bos
    if coverage.template:
        own.chat_template = coverage.template
    return own


NAMES = {**REAL, "smollm2": SMOLLM2, **{f"written-{name}": coverage for name, coverage in COVERAGE.items()}}


def build(request):
    """The case that a fixture was asked for."""
    name = request.param
    tokenizer = load(name) if name in REAL else attach(request.getfixturevalue("smollm2_tokenizer"), NAMES[name])
    return Case(name, tokenizer, Segmenter.from_tokenizer(tokenizer), NAMES[name])


@pytest.fixture(scope="session", params=NAMES)
def case(request):
    return build(request)


@pytest.fixture(scope="session", params=[name for name, coverage in NAMES.items() if "tool" in coverage.roles])
def tool_case(request):
    return build(request)
