"""Make data sets for the router: questions with answers, for `edgekit route calibrate` and `route bench`.

    python benchmarks/routing_data.py DATA OUT

DATA holds sst2-train.tsv, sst2-dev.tsv (sentence, tab, 1 for positive), lambada-dev.jsonl (``text``), gsm8k-test.jsonl
(``question``, ``answer``) and routellm-gsm8k-responses.csv. OUT gets NAME-dev.jsonl to calibrate on and NAME-test.jsonl
to measure on, for sst2, lambada and gsm8k, and the answers of two large models to GSM8K, gsm8k-SPLIT-gpt-4.jsonl and
gsm8k-SPLIT-mixtral.jsonl. edgekit grades these like all other answers; RouteLLM's grading counts "$2.00" as wrong if
the answer is 2.

Prompts:

sst2     four reviews with their sentiment, then the review to continue with one of two words. The four are the first
         short sentences of the training file, alternately negative and positive. dev is from the training file, test is
         all of SST-2's dev file. (Through its chat template, SmolLM2-135M-Instruct does not answer with one word.)
lambada  a passage without its last word, to continue; right if the word comes first.
gsm8k    the problem, through the chat template; graded by the last number. A model of 135 M parameters solves few.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

SIZES = {"sst2": (1400, None), "lambada": (1500, 1000), "gsm8k": (200, 200)}
"""Lines of dev and test; None: all."""

SHOTS, WORDS = 4, range(6, 15)
"""Number of example reviews, and of words in each."""

SENTIMENT = {"0": "negative", "1": "positive"}
CLOUDS = {"gpt-4": "gpt-4-1106-preview", "mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1"}

Line = dict[str, Any]


def reviews(path: Path) -> list[tuple[str, str]]:
    """(sentence, sentiment) of every line."""
    rows = (line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return [(sentence, SENTIMENT[label]) for sentence, label in rows]


def sst2(data: Path) -> tuple[list[Line], list[Line]]:
    train = reviews(data / "sst2-train.tsv")
    shots: list[tuple[str, str]] = []
    for sentence, sentiment in train:
        wanted = SENTIMENT[str(len(shots) % 2)]
        if len(shots) < SHOTS and sentiment == wanted and len(sentence.split()) in WORDS:
            shots.append((sentence, sentiment))
    shown = "".join(f"Review: {sentence}\nSentiment: {sentiment}\n\n" for sentence, sentiment in shots)

    def lines(rows: list[tuple[str, str]]) -> list[Line]:
        return [
            {
                "prompt": f"{shown}Review: {sentence}\nSentiment:",
                "raw": True,
                "answer": sentiment,
                "grading": "choice",
                "choices": list(SENTIMENT.values()),
                "max_tokens": 4,
                "stop": "\n",
            }
            for sentence, sentiment in rows
        ]

    return lines(mixed([row for row in train if row not in shots])), lines(mixed(reviews(data / "sst2-dev.tsv")))


def lambada(data: Path) -> tuple[list[Line], list[Line]]:
    lines = []
    for passage in mixed(json_lines(data / "lambada-dev.jsonl")):
        beginning, word = passage["text"].strip().rsplit(None, 1)
        lines.append({"prompt": beginning, "raw": True, "answer": word, "grading": "prefix", "max_tokens": 5})
    return lines[: SIZES["lambada"][0]], lines[SIZES["lambada"][0] :]


def gsm8k(data: Path) -> tuple[list[Line], list[Line]]:
    lines = [
        {
            "prompt": problem["question"],
            "answer": problem["answer"].rpartition("#### ")[2],
            "grading": "number",
            "max_tokens": 200,
        }
        for problem in mixed(json_lines(data / "gsm8k-test.jsonl"))
    ]
    return lines[: SIZES["gsm8k"][0]], lines[SIZES["gsm8k"][0] :]


def cloud_answers(data: Path, lines: list[Line], model: str) -> list[Line]:
    """The answers of ``model`` to these problems of GSM8K."""
    with (data / "routellm-gsm8k-responses.csv").open(encoding="utf-8", newline="") as file:
        rows = {straight(row["prompt"]): row for row in csv.DictReader(file)}
    return [{"id": line["id"], "answer": rows[straight(line["prompt"])][f"{model}_response"]} for line in lines]


def straight(text: str) -> str:
    """Normalize quotes and white space, in which the two files differ."""
    return " ".join(text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}).split())


def mixed(rows: Iterable[Any]) -> list[Any]:
    """Shuffle rows, always in the same order."""
    rows = list(rows)
    random.Random(0).shuffle(rows)
    return rows


def json_lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, lines: list[Line]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    print(f"{path}: {len(lines)} lines")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, make in (("sst2", sst2), ("lambada", lambada), ("gsm8k", gsm8k)):
        for split, lines, size in zip(("dev", "test"), make(options.data), SIZES[name], strict=True):
            numbered = [{"id": f"{name}-{split}-{at}", **line} for at, line in enumerate(lines[:size], 1)]
            write(options.out / f"{name}-{split}.jsonl", numbered)
            if name == "gsm8k":
                for cloud, model in CLOUDS.items():
                    answers = cloud_answers(options.data, numbered, model)
                    write(options.out / f"{name}-{split}-{cloud}.jsonl", answers)


if __name__ == "__main__":
    main()
