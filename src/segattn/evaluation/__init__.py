"""Score models: rank answers, compare results, and draw and report them."""

from segattn.evaluation.choices import AnswerLoss, ChoiceResult, answer_loss, rank_choices
from segattn.evaluation.run import Evaluation, TaskSummary, evaluate
from segattn.evaluation.statistics import Comparison, Interval, compare, compare_means, mean_interval, wilson_interval

__all__ = [
    "AnswerLoss",
    "ChoiceResult",
    "Comparison",
    "Evaluation",
    "Interval",
    "TaskSummary",
    "answer_loss",
    "compare",
    "compare_means",
    "evaluate",
    "mean_interval",
    "rank_choices",
    "wilson_interval",
]
