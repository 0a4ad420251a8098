"""Open bundles in onnxruntime-genai and continue prompts greedily. Argument: the cases as JSON.

A process of its own: onnxruntime-genai may bring another ONNX Runtime than edgekit's.
"""

import json
import sys

import onnxruntime_genai as og


def answer(case: dict) -> dict:
    model = og.Model(case["bundle"])
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(case["prompt"]) + case["tokens"], do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(case["prompt"])
    while not generator.is_done():
        generator.generate_next_token()
    ids = [int(t) for t in generator.get_sequence(0)][len(case["prompt"]) :]
    return {"ids": ids, "text": [int(t) for t in og.Tokenizer(model).encode(case["text"])]}


json.dump([answer(case) for case in json.loads(sys.argv[1])], sys.stdout)
