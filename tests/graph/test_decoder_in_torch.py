"""The float graph as a torch module gives transformers' logits, for every family."""

import numpy as np
import pytest
import torch
from pairs import CONFIGS, distance, make_pair

from edgekit.graph import build_graph
from edgekit.learn.graph import Decoder, float_weights


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name, tmp_path):
    tiny = make_pair(CONFIGS[name](), tmp_path)
    ids = tiny.ids(60)
    weights = tiny.checkpoint.weights
    decoder = Decoder(
        build_graph(tiny.checkpoint.spec, weights, opset=21, name="m"), float_weights(weights, trained=False)
    )
    with torch.no_grad():
        logits = decoder(torch.from_numpy(np.asarray(ids, np.int64))) @ decoder.head().T
    assert distance(logits.numpy(), tiny.reference(ids)) < 1e-4
