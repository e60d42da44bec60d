"""A two-layer net on MNIST: its size, each layer's weights as codes, their error, and what it still gets right.

python examples/modules_mnist.py FOLDER, which holds the 10,000 test images and labels as published (idx, gzipped).
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import fewbits as fb

TRAINED = 8000  # of the images; the others are scored


def read(name, skip):
    """The bytes of an idx file behind its header."""
    (path,) = Path(sys.argv[1]).glob(f"*{name}*ubyte.gz")
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=skip).copy()


images = torch.from_numpy(read("t10k*images", 16)).view(-1, 784) / 255
labels = torch.from_numpy(read("t10k*labels", 8)).long()

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for _ in range(5):
    for batch in torch.randperm(TRAINED).split(64):
        optimizer.zero_grad()
        functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
net.eval()


def right(model):
    """Percent of the images that did not train it."""
    with torch.no_grad():
        return 100 * float((model(images[TRAINED:]).argmax(1) == labels[TRAINED:]).float().mean())


print(f"fp32: {right(net):.2f} % right, {fb.look(net).nbytes} bytes")
for recipe in ("w8", "w8a8_dynamic", "w4_g28", "w_ternary"):
    # groups of 28 do not divide the second layer's 100 inputs
    small = fb.quantize(net, recipe, exclude=["2"] if recipe == "w4_g28" else [])
    print(f"\n{recipe}: {right(small):.2f} % right")
    print(fb.look(small, net))
first = fb.look(fb.quantize(net, "w8"), net)["0"]
print(
    f"first layer: codes {first.codes[0, 400:406].tolist()}, scale {float(first.scale[0]):.5f}, {first.scheme}"
)
print(f"mean error {first.error.mean:.2e}, largest {first.error.max:.2e}, SQNR {first.error.sqnr_db:.1f} dB")
