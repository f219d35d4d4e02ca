"""What a demo run is told. Its defaults were chosen by measurement (docs/demo.md)."""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path

from segattn.data import DataError, Sample, load_samples
from segattn.demo.stories import DIFFICULTIES, stories

__all__ = ["DemoSettings", "demo_samples"]


@dataclass(frozen=True)
class DemoSettings:
    """One experiment: two arms, tuned alike but for the mask.

    Attributes:
        model: "smollm2", a folder or a hub id.
        data: a file, folder or hub data set of samples with choices; None for story worlds.
        difficulty: of the stories: "easy", "medium" or "hard".
        steps: optimizer steps of each arm.
        batch_size: samples a step.
        opening_steps: the segment arm opens its segments gradually over this many steps; 0 for at once.
        learning_rate: at its peak; it falls linearly to 0.
        warmup_steps: steps until the peak.
        lora_rank: LoRA's r, on all linear layers; alpha is twice as much.
        curve_samples: held-out samples of the learning curves.
        matrix_samples: held-out samples of the mismatch matrix.
        curve_points: how often the curves are measured, step 0 not counted.
        seed: of the stories, the order of samples and the adapters' first weights.
        dtype: of the model's weights; bfloat16 except on processors that would only emulate it.
    """

    model: str = "smollm2"
    data: str | None = None
    difficulty: str = "easy"
    steps: int = 80
    batch_size: int = 8
    opening_steps: int = 40
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    lora_rank: int = 32
    curve_samples: int = 72
    matrix_samples: int = 120
    curve_points: int = 8
    seed: int = 0
    dtype: str = field(default_factory=lambda: "bfloat16" if _computes_bfloat16() else "float32")

    def __post_init__(self) -> None:
        smallest = {
            "steps": 1, "batch_size": 1, "opening_steps": 0, "warmup_steps": 0, "lora_rank": 1, "curve_samples": 1,
            "matrix_samples": 2, "curve_points": 1,
        }  # fmt: skip
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.learning_rate <= 0:
            raise DataError(f"learning_rate is {self.learning_rate}; expected a positive number")
        if self.dtype not in ("bfloat16", "float32"):
            raise DataError(f"dtype is {self.dtype!r}; expected bfloat16 or float32")
        if self.data is None and self.difficulty not in DIFFICULTIES:
            raise DataError(f"difficulty is {self.difficulty!r}; expected one of {', '.join(DIFFICULTIES)}")
        if self.opening_steps > self.steps:
            raise DataError(
                f"opening_steps is {self.opening_steps} and steps {self.steps}; expected the segments to be open "
                "before training ends"
            )

    def to_dict(self) -> dict[str, str | int | float | None]:
        """Return the settings as JSON types."""
        return asdict(self)


def _computes_bfloat16() -> bool:
    import torch

    from segattn.pretrained.environment import cpu_computes_bfloat16

    return torch.accelerator.is_available() or cpu_computes_bfloat16()


def demo_samples(settings: DemoSettings) -> tuple[list[Sample], list[Sample]]:
    """Return (training samples, held-out samples); the held-out ones serve the matrix, the first of them the curves.

    Raises:
        DataError: too few samples, or some without choices to rank.
    """
    train_count = settings.steps * settings.batch_size
    held_out_count = max(settings.curve_samples, settings.matrix_samples)
    if settings.data is None:
        return (
            _story_samples(train_count, settings, "train"),
            _story_samples(held_out_count, settings, "held-out"),
        )
    train = load_samples(settings.data, "train")
    held_out = _shuffled(load_samples(settings.data, "dev"), settings.seed)[:held_out_count]
    for name, samples in (("training", train), ("held-out", held_out)):
        if not samples:
            raise DataError(f"{Path(settings.data)} has no {name} samples")
    if any(sample.choices is None for sample in held_out):
        raise DataError(
            f"{Path(settings.data)} has held-out samples without choices, but the demo ranks answers; expected a row's "
            "candidate answers in `choices`"
        )
    return _shuffled(train, settings.seed)[:train_count], held_out


def _story_samples(count: int, settings: DemoSettings, split: str) -> list[Sample]:
    told = stories(count, settings.seed, settings.difficulty, split)  # type: ignore[arg-type]
    return [
        Sample(story.messages, story.answer, story.choices, task=f"stories, {settings.difficulty}", id=str(number))
        for number, story in enumerate(told)
    ]


def _shuffled(samples: list[Sample], seed: int) -> list[Sample]:
    mixed = list(samples)
    random.Random(seed).shuffle(mixed)
    return mixed
