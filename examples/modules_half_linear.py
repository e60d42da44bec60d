"""Half precision of one linear layer: its numbers, bytes and results in fp32, fp16 and bf16."""

import torch

import fewbits as fb

torch.manual_seed(0)
layer = torch.nn.Linear(64, 32).eval()
rows = torch.randn(100, 64)

print(f"fp32: {fb.look(layer).nbytes} bytes, first weights {layer.weight[0, :3].tolist()}")
for recipe in ("fp16", "bf16"):
    half = fb.quantize(layer, recipe)
    print(f"\n{recipe}: {fb.look(half).nbytes} bytes, first weights {half.weight[0, :3].tolist()}")
    print(fb.compare_modules(layer, half, rows))
