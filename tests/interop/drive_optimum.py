"""Open bundles in optimum's ORTModelForCausalLM and continue prompts greedily. Argument: the cases as JSON.

Runs in optimum's own environment, with transformers 4.
"""

import json
import sys
from pathlib import PurePosixPath

import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer


def answer(case: dict) -> dict:
    graph = PurePosixPath(case["graph"])
    model = ORTModelForCausalLM.from_pretrained(case["bundle"], subfolder=str(graph.parent), file_name=graph.name)
    ids = torch.tensor([case["prompt"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=case["tokens"], do_sample=False)
    tokenizer = AutoTokenizer.from_pretrained(case["bundle"])
    text = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
    return {"ids": out[0, ids.shape[1] :].tolist(), "text": text}


json.dump([answer(case) for case in json.loads(sys.argv[1])], sys.stdout)
