"""Results of samples in a file that survives a crash: one JSON line each, under a header that says what was run."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segattn.errors import SegmentAttentionError
from segattn.evaluation.choices import ChoiceResult

__all__ = ["RowFile"]


class RowFile:
    """Results that are there already, and a place for more.

    Args:
        path: created if missing.
        settings: what was run, as JSON types; a file with other settings is refused.

    Raises:
        SegmentAttentionError: the file was written with other settings, or is no results file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self.results: dict[str, ChoiceResult] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            self._read()
        else:
            self._append({"settings": self.settings})

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole, newline, torn = content.rpartition(b"\n")
        if torn:
            # A crash cut the last line off in the middle: that sample runs again.
            os.truncate(self.path, len(whole) + len(newline))
        lines = whole.decode("utf-8").splitlines()
        if not lines:
            self._append({"settings": self.settings})
            return
        try:
            rows = [json.loads(line) for line in lines]
            header = rows[0]["settings"]
            results = [_from_row(row) for row in rows[1:]]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise SegmentAttentionError(
                f"{self.path} is no results file ({type(error).__name__}: {error}); name another output, or remove it"
            ) from error
        if header != self.settings:
            keys = sorted(set(header) | set(self.settings))
            differing = [
                f"{key}: {header.get(key)!r} there, {self.settings.get(key)!r} now"
                for key in keys
                if header.get(key) != self.settings.get(key)
            ]
            raise SegmentAttentionError(
                f"{self.path} holds results of another run ({'; '.join(differing)}); name another output, or start "
                "afresh with --fresh"
            )
        self.results = {result.fingerprint: result for result in results}

    def add(self, result: ChoiceResult) -> None:
        """Keep a result, on disk before this returns."""
        self._append(asdict(result))
        self.results[result.fingerprint] = result

    def _append(self, row: Mapping[str, Any]) -> None:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
        # One write of one whole line: a reader or a crash sees all of it, or a tail without a line end.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _from_row(row: Mapping[str, Any]) -> ChoiceResult:
    lists = ("choices", "log_likelihoods", "tokens")
    values: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in row.items()}
    return ChoiceResult(**values)
