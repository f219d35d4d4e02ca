"""Rows of the eight commonsense data sets as their hub versions hold them, in the prompt format of LLM-Adapters.

The format (Hu et al., LLM-Adapters, arXiv 2304.01933; github.com/AGI-Edgerunners/LLM-Adapters, folder dataset): an
instruction that lists the options and ends with "Answer format: a/b/...", and the answer "the correct answer is X".

| data set on the hub | fields |
|---|---|
| google/boolq | question, answer (bool), passage (not shown, as there) |
| ybisk/piqa | goal, sol1, sol2, label |
| allenai/social_i_qa | context, question, answerA, answerB, answerC, label ("1" to "3") |
| Rowan/hellaswag | activity_label, ctx, endings, label |
| allenai/winogrande | sentence, option1, option2, answer ("1" or "2") |
| allenai/ai2_arc, allenai/openbookqa | question or question_stem, choices {text, label}, answerKey |
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segattn.data.samples import DataError

__all__ = ["COMMONSENSE_ROWS"]

Row = Mapping[str, Any]


def _instruction(question: str, answer: str) -> dict[str, Any]:
    return {"instruction": question, "output": f"the correct answer is {answer}", "answer": answer}


def _chosen(row: Row, question: str, noun: str, options: Sequence[str], right: int, between: str = " ") -> Row:
    """A question with numbered options.

    Args:
        row: for the error message.
        question: what stands before the options.
        noun: "answer", "solution", "ending" or "option".
        options: their texts.
        right: the place of the right one, from 0.
        between: the text between options.
    """
    if not 0 <= right < len(options):
        raise DataError(f"the right option of {str(dict(row))[:120]} is number {right + 1} of {len(options)}")
    listed = between.join(f"{noun.capitalize()}{number}: {text}" for number, text in enumerate(options, 1))
    names = "/".join(f"{noun}{number}" for number in range(1, len(options) + 1))
    # LLM-Adapters writes the options and the format of winogrande in one line.
    end = " " if noun == "option" else "\n\n"
    return _instruction(f"{question}\n\n{listed}{end}Answer format: {names}", f"{noun}{right + 1}")


def _boolq(row: Row) -> Row:
    question = str(row["question"]).rstrip("?")
    return _instruction(
        f"Please answer the following question with true or false, question: {question}?\n\nAnswer format: true/false",
        "true" if row["answer"] else "false",
    )


def _piqa(row: Row) -> Row:
    question = f"Please choose the correct solution to the question: {row['goal']}"
    return _chosen(row, question, "solution", [row["sol1"], row["sol2"]], int(row["label"]), between="\n\n")


def _social_iqa(row: Row) -> Row:
    question = f"Please choose the correct answer to the question: {row['context']} {row['question']}"
    return _chosen(row, question, "answer", [row[f"answer{name}"] for name in "ABC"], int(row["label"]) - 1)


def _hellaswag(row: Row) -> Row:
    beginning = f"{row['activity_label']}: {row['ctx']}"
    question = f"Please choose the correct ending to complete the given sentence: {beginning}"
    return _chosen(row, question, "ending", row["endings"], int(row["label"]))


def _winogrande(row: Row) -> Row:
    question = (
        f"Please choose the correct answer to fill in the blank to complete the given sentence: {row['sentence']}"
    )
    return _chosen(row, question, "option", [row["option1"], row["option2"]], int(row["answer"]) - 1)


def _multiple_choice(row: Row) -> Row:
    labels, texts = list(row["choices"]["label"]), list(row["choices"]["text"])
    if row["answerKey"] not in labels:
        raise DataError(f"answerKey is {row['answerKey']!r}; expected one of {labels}")
    question = row["question"] if "question" in row else row["question_stem"]
    text = f"Please choose the correct answer to the question: {question}"
    return _chosen(row, text, "answer", texts, labels.index(row["answerKey"]))


COMMONSENSE_ROWS: tuple[tuple[str, tuple[str, ...], Callable[[Row], Row]], ...] = (
    ("BoolQ", ("question", "answer", "passage"), _boolq),
    ("PIQA", ("goal", "sol1", "sol2", "label"), _piqa),
    ("Social IQa", ("context", "question", "answerA", "answerB", "answerC", "label"), _social_iqa),
    ("HellaSwag", ("activity_label", "ctx", "endings", "label"), _hellaswag),
    ("WinoGrande", ("sentence", "option1", "option2", "answer"), _winogrande),
    ("ARC", ("question", "choices", "answerKey"), _multiple_choice),
    ("OpenBookQA", ("question_stem", "choices", "answerKey"), _multiple_choice),
)
"""(name, the fields that tell it, from a row to one of the instruction format)."""
