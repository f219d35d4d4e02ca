"""What a sweep runs, read from YAML: models, data sets, arms, seeds, and the settings of `segattn train` for each.

Settings are flat: a name belongs to `TrainSettings`, `SFTSettings` or `ModelSettings`, as on the command line. What an
arm says goes before what its data set says, and that before what is said for all.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segattn.data import DataError
from segattn.reproduction.adapting import check_adapt

__all__ = ["PRESETS", "UNTUNED", "DataSettings", "SweepSettings", "load_sweep", "preset_names"]

PRESETS = Path(__file__).parent / "presets"
UNTUNED = "untuned"
"""The name of the arm that is the model as it is."""


@dataclass(frozen=True)
class DataSettings:
    """One data set of a sweep: what is trained on it and how it is scored.

    Attributes:
        path: a file, a folder or a hub id (see `segattn.data.load_samples`); a relative path is looked up in the data
            folder that the sweep is given.
        train_path, test_path: where the splits do not lie together; None: `path`.
        tasks: of a folder of tasks, those that are scored; None: all. What is trained on is the whole folder.
        train: settings of `segattn train` for this data set.
        test_items: scored per task: a fixed random choice; None: all.
        curve_items: held-out items of the learning curves.
        scoring: "likelihood" ranks the choices, "generation" reads the greedy answer; items without choices are always
            answered.
        max_new_tokens: of an answer.
        question_first: move the last paragraph of the prompt, the question about a passage, before it.
        system: a system message before every prompt.
        strata: borders between prompt lengths in tokens, for the report.
    """

    path: str
    train_path: str | None = None
    test_path: str | None = None
    tasks: tuple[str, ...] | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    test_items: int | None = 200
    curve_items: int = 48
    scoring: tuple[Literal["likelihood", "generation"], ...] = ("likelihood",)
    max_new_tokens: int = 32
    question_first: bool = False
    system: str | None = None
    strata: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("test_items", "curve_items", "max_new_tokens"):
            value = getattr(self, name)
            if not (value is None and name == "test_items") and (not isinstance(value, int) or value < 1):
                raise DataError(f"{name} of the data set {self.path} is {value!r}; expected a number, at least 1")
        if not self.scoring or not set(self.scoring) <= {"likelihood", "generation"}:
            raise DataError(
                f"scoring of the data set {self.path} is {list(self.scoring)}; expected likelihood, generation, or both"
            )


@dataclass(frozen=True)
class SweepSettings:
    """A sweep: every model, data set, arm and seed is one cell.

    Attributes:
        models: name -> folder, hub id, or smollm2.
        data: name -> data set.
        arms: name -> settings of `segattn train` that this arm differs in; the arm `untuned` is the model as it is. An
            arm with "adapt" (settings of `segattn adapt`) is tuned causally, then learns from its own causal answers.
        seeds: of the order of the samples, the adapter's first weights and the dropout; the same ones for each arm.
        train: settings of `segattn train` for all.
        curve_points: held-out loss and accuracy are measured this many times during training, and before it.
        pattern_items: prompts whose attention is looked at; 0: none.
        batch_size: answers that are scored at once.
        masks: "both" scores every arm under both masks; "own" only as it was tuned, in half of the time.
        keep_models: whether the tuned models stay in the sweep's folder.
    """

    models: Mapping[str, str]
    data: Mapping[str, DataSettings]
    arms: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    train: Mapping[str, Any] = field(default_factory=dict)
    curve_points: int = 8
    pattern_items: int = 16
    batch_size: int = 32
    masks: Literal["both", "own"] = "both"
    keep_models: bool = False

    def __post_init__(self) -> None:
        for name in ("models", "data", "arms", "seeds"):
            if not getattr(self, name):
                raise DataError(f"the sweep has no {name}; expected at least one")
        for name, least in (("curve_points", 1), ("pattern_items", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise DataError(f"{name} of the sweep is {value!r}; expected a number, at least {least}")
        if self.masks not in ("both", "own"):
            raise DataError(f"masks of the sweep is {self.masks!r}; expected both or own")
        for name in (*self.models, *self.data, *self.arms):
            if not name or "/" in name or name.startswith("."):
                raise DataError(
                    f"{name!r} names files of the sweep; expected a name without '/' and no '.' at its start"
                )
        for settings in (self.train, *(one.train for one in self.data.values())):
            _check_names(settings)
        for name, arm in self.arms.items():
            _check_names({key: value for key, value in arm.items() if key != "adapt"})
            check_adapt(name, arm)

    def for_cell(self, data: str, arm: str) -> dict[str, Any]:
        """Return the settings of `segattn train` for an arm on a data set, as given; none for `untuned`."""
        if arm == UNTUNED:
            return {}
        return {**self.train, **self.data[data].train, **self.arms[arm]}

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as JSON types."""
        return dataclasses.asdict(self)


def _check_names(settings: Mapping[str, Any]) -> None:
    from segattn.training import ModelSettings, SFTSettings, TrainSettings

    known = {one.name for kind in (TrainSettings, SFTSettings, ModelSettings) for one in dataclasses.fields(kind)}
    reserved = {"data", "held_out", "held_out_samples", "output_dir", "seed", "model_name_or_path"}
    for name in settings:
        if name not in known or name in reserved:
            why = "is set by the sweep itself" if name in reserved else "is no setting of `segattn train`"
            raise DataError(f"{name} {why}; see `segattn train --all-flags`")


def preset_names() -> list[str]:
    """Return the names of the sweeps that are shipped."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load_sweep(source: str, chosen: Mapping[str, list[Any] | None] | None = None) -> SweepSettings:
    """Read a sweep from a YAML file, or one that is shipped, by its name.

    Args:
        source: a path, or a name of `preset_names()`.
        chosen: "models", "data", "arms", "seeds" -> those to run; None or missing: all of the file. Models may also be
            paths or hub ids that the file does not name.

    Raises:
        DataError: no such file, no sweep, an unknown setting, or a choice that the file does not have.
    """
    import yaml

    file = Path(source) if Path(source).is_file() else PRESETS / f"{source}.yaml"
    if not file.is_file():
        raise DataError(f"there is no sweep {source}; expected a YAML file, or one of {', '.join(preset_names())}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no YAML ({error})") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{file} holds a {type(content).__name__}; expected models, data, arms and seeds")
    content = _choose(dict(content), dict(chosen or {}), file)
    try:
        data = {name: _data_settings(one) for name, one in content.pop("data").items()}
        arms = {name: dict(arm or {}) for name, arm in content.pop("arms").items()}
        return SweepSettings(data=data, arms=arms, seeds=tuple(int(seed) for seed in content.pop("seeds")), **content)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file} is no sweep ({type(error).__name__}: {error}); see `segattn reproduce --help`"
        ) from error


def _data_settings(content: Mapping[str, Any]) -> DataSettings:
    given: dict[str, Any] = dict(content)
    for name in ("tasks", "scoring", "strata"):
        if given.get(name) is not None:
            given[name] = tuple(given[name])
    return DataSettings(**given)


def _choose(content: dict[str, Any], chosen: dict[str, list[Any] | None], file: Path) -> dict[str, Any]:
    """Keep what was chosen of each group; models that the file does not name are paths or hub ids."""
    for group, names in chosen.items():
        if not names:
            continue
        if group == "seeds":
            content["seeds"] = names
            continue
        there = dict(content.get(group) or {})
        if group == "models":
            named = {Path(name).name if name not in there else name: there.get(name, name) for name in names}
            content["models"] = named
            continue
        unknown = [name for name in names if name not in there]
        if unknown:
            raise DataError(f"{file} has no {group} {', '.join(unknown)}; it has {', '.join(there)}")
        content[group] = {name: there[name] for name in names}
    return content
