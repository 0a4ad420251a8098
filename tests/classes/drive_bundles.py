"""A program: opens bundles with edgekit itself on whatever processor it is shown, and keeps their logits.

``python drive_bundles.py OUT.npz TOKENS BUNDLE ...``: TOKENS is a JSON list of ids, the last of them single steps.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit import open_bundle
from edgekit.host.processor import processor_class
from edgekit.run import default_settings, load_runner

STEPS = 4


def main(out: str, tokens: str, *bundles: str) -> None:
    ids = json.loads(tokens)
    arrays = {"processor_class": np.array(processor_class())}
    for path in map(Path, bundles):
        bundle = open_bundle(path)
        settings = replace(default_settings(bundle.manifest), threads=1)
        runner = load_runner(bundle, settings=settings)
        arrays[f"{path.name}/arithmetic"] = np.array(runner.arithmetic)
        if runner.settings.prompt_graph == "own":
            arrays[f"{path.name}/prompts"] = runner.logits(ids).copy()
            runner.close()
            runner = load_runner(bundle, settings=replace(settings, prompt_graph="decoder"))
        arrays[f"{path.name}/decoder"] = runner.logits(ids).copy()
        runner.reset()
        runner.prefill(ids[:-STEPS])
        arrays[f"{path.name}/decoder, step by step"] = np.stack([runner.step(i).copy() for i in ids[-STEPS:]])
        runner.close()
    np.savez(out, **arrays)


main(*sys.argv[1:])
