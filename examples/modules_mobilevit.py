"""MobileViT in bf16 against fp32: bytes, and logits, probabilities and the top class of an image.

The weights are random; with those of the hub, MobileViTForImageClassification.from_pretrained("apple/mobilevit-small").
"""

import torch
from transformers import MobileViTConfig, MobileViTForImageClassification

import fewbits as fb

torch.manual_seed(0)
model = MobileViTForImageClassification(MobileViTConfig(num_labels=1000)).eval()
image = torch.rand(1, 3, 256, 256)
for norm in model.modules():  # without training, batch norms know nothing of what they get
    if isinstance(norm, torch.nn.BatchNorm2d):
        norm.reset_parameters()
        norm.momentum = 1.0
        norm.train()
with torch.no_grad():
    model(image)
model.eval()

small = fb.quantize(model, "bf16")
found = fb.compare_modules(model, small, {"pixel_values": image})
print(found)
before, after = found.a.nbytes, found.b.nbytes
print(f"{before / 1e6:.2f} MB in fp32, {after / 1e6:.2f} MB in bf16")
