"""Static int8 of a small convolutional net: ranges found on data, and what rounding to them costs."""

import torch
from torch import nn

import fewbits as fb


class Net(nn.Module):
    """Two convolutions and a linear layer, which reads what a sigmoid gives."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2)
        self.head = nn.Linear(32 * 13 * 13, 10)

    def forward(self, image):
        features = torch.sigmoid(self.second(torch.relu(self.first(image))))
        return self.head(features.flatten(1))


torch.manual_seed(0)
net, calibration, images = Net().eval(), torch.randn(64, 1, 28, 28), torch.randn(32, 1, 28, 28)

# In PyTorch, exactly what int8 kernels compute. For a file that runs fast: fb.quantize(net, "w8a8", calibration).
small = fb.simulate(net, calibration, "w8a8")
for name in ("first", "second", "head"):
    activations = getattr(small, name).weight.products
    scale, zero = float(activations.scale), int(activations.zero_point)
    low, high = -zero * scale, (255 - zero) * scale
    print(f"{name}: activations from {low:.3f} to {high:.3f}, scale {scale:.5f}, zero point {zero}")
print(fb.look(small, net))
print(fb.compare_modules(net, small, images))
