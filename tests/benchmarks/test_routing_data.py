"""The router's data sets, made from a few lines of each source: edgekit reads them, and the splits share nothing."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.routing.evaluation.examples import read_answers, read_examples

PROGRAM = Path(__file__).parents[2] / "benchmarks/routing_data.py"
PROBLEMS = 210


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    reviews = [f"a film that is rather {'good' if i % 3 else 'bad'} {i}\t{int(i % 3 > 0)}\n" for i in range(30)]
    (data / "sst2-train.tsv").write_text("".join(reviews))
    (data / "sst2-dev.tsv").write_text("just dull\t0\nbright\t1\n")
    passages = [{"text": f"He went {i} times to the door of the old house"} for i in range(1510)]
    (data / "lambada-dev.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
    problems = [{"question": f"What’s {i} plus  1?", "answer": f"Easy.\n#### {i + 1}"} for i in range(PROBLEMS)]
    (data / "gsm8k-test.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    models = ("mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview")
    with (data / "routellm-gsm8k-responses.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", *models, *(f"{model}_response" for model in models)])
        for i in range(PROBLEMS):
            rows.writerow([f"What's {i} plus 1?", True, True, f"It is\n{i}.", f"It is ${i + 1}.00"])
    out = data / "out"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(data), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("name", "dev", "test"), [("sst2", 26, 2), ("lambada", 1500, 10), ("gsm8k", 200, PROBLEMS - 200)]
)
def test_edgekit_reads_what_was_written(out, name, dev, test):
    splits = [read_examples(out / f"{name}-{split}.jsonl") for split in ("dev", "test")]
    assert [len(split) for split in splits] == [dev, test]
    asked = {example.request.text for split in splits for example in split}
    assert len(asked) == dev + test


def test_the_reviews_that_show_how_are_not_asked(out):
    examples = read_examples(out / "sst2-dev.jsonl")
    shown = examples[0].request.prompt.rpartition("Review: ")[0]
    assert shown.count("Sentiment: negative\n") == shown.count("Sentiment: positive\n") == 2
    for example in examples:
        assert example.request.prompt.startswith(shown)
        sentence = example.request.prompt.rpartition("Review: ")[2].removesuffix("\nSentiment:")
        assert sentence not in shown
        assert example.answers == ("positive" if "good" in sentence else "negative",)


def test_a_passage_lacks_its_last_word(out):
    for example in read_examples(out / "lambada-test.jsonl"):
        assert example.request.prompt.endswith("the old")
        assert example.answers == ("house",)


def test_large_models_answers_are_graded_as_all_others(out):
    examples = read_examples(out / "gsm8k-test.jsonl")
    assert all(answer.right for answer in read_answers(out / "gsm8k-test-gpt-4.jsonl", examples))
    assert not any(answer.right for answer in read_answers(out / "gsm8k-test-mixtral.jsonl", examples))
