"""Train small models for devices: recover what quantization lost, distill a smaller student. The only owner of torch.

    graph        the float graph of a decoder as a torch module, one segment a layer
    fake_quant   weights on the grids that ship: codes, scales and zero points as parameters, and their exact packing
    losses       divergences from the teacher's distribution, without keeping logits
    loop         steps, the best point, resuming; the same on one process and on several

Needs the extra ``learn``.
"""
