"""Tasks of every output type, written as files of the harness's own kind, and their documents."""

import json

import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

DOCUMENTS = [
    {"q": f"{'a longer question: ' * (n % 3)}is {n} even?", "a": ("yes", "no")[n % 2], "gold": n % 2} for n in range(3)
]
EXAMPLES = [{"q": "is 8 even?", "a": "yes", "gold": 0}, {"q": "is 9 even?", "a": "no", "gold": 1}]
CHOICES = ["yes", "no", "I cannot say"]

_OF_TYPE = {
    "multiple_choice": {"doc_to_choice": CHOICES, "doc_to_target": "gold", "metrics": ["acc", "acc_norm"]},
    "mutual": {
        "output_type": "multiple_choice",
        "doc_to_choice": CHOICES,
        "doc_to_target": "gold",
        "metrics": ["acc", "acc_mutual_info"],
    },
    "several_inputs": {
        "output_type": "multiple_choice",
        "doc_to_text": "gold",
        "doc_to_choice": "{{['it says ' + q, 'it asks ' + q]}}",
        "doc_to_target": "a",
        "metrics": ["acc"],
    },
    "loglikelihood": {"metrics": ["perplexity", "acc"]},
    "loglikelihood_rolling": {"doc_to_text": "", "doc_to_target": "q", "metrics": ["byte_perplexity"]},
    "generate_until": {
        "metrics": ["exact_match"],
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 6},
    },
    "prefilled": {
        "output_type": "generate_until",
        "gen_prefix": "It is",
        "metrics": ["exact_match"],
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 6},
    },
}
NAMES = [f"local_{name}" for name in _OF_TYPE]


def write_tasks(folder):
    """A folder for `--include_path`; the data lie beside the tasks, and datasets keeps its copies there."""
    for split, rows in (("test", DOCUMENTS), ("train", EXAMPLES)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, options in _OF_TYPE.items():
        metrics = [{"metric": metric} for metric in options["metrics"]]
        task = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {split: str(folder / f"{split}.jsonl") for split in ("test", "train")},
                "cache_dir": str(folder / "datasets"),
            },
            "test_split": "test",
            "fewshot_split": "train",
            "fewshot_config": {"sampler": "first_n"},
            "output_type": name,
            "doc_to_text": "q",
            "doc_to_target": "a",
            "metric_list": metrics,
            **{key: value for key, value in options.items() if key != "metrics"},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def run_tasks(model, folder, names=tuple(NAMES), **options):
    """The results of the harness, with samples; `model` is an object of the harness's kind."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(model, tasks=list(names), task_manager=manager, bootstrap_iters=0, **options)


def requests_of(results):
    """Every request with its response: (task, arguments, response), in order."""
    return [
        (task, arguments, response)
        for task, samples in results["samples"].items()
        for sample in samples
        for arguments, response in zip(_arguments(sample), _responses(sample), strict=True)
    ]


def _arguments(sample):
    return [tuple(instance) for instance in sample["arguments"]]


def _responses(sample):
    return [response[0] for response in sample["resps"]]
