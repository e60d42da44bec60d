"""Small modules of the kinds people bring; a file of factories as well: ``tests.models.nets:Cnn``."""

import torch
from torch import nn


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout()
        self.head = nn.Linear(32, 10)

    def forward(self, image):
        return self.head(self.dropout(self.body(image)))


class Recurrent(nn.Module):
    """Gives the last step and the states of all layers, nested."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.cells = kind(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        steps, states = self.cells(x)
        return self.head(steps[:, -1]), states


class Encoder(nn.Module):
    """Two inputs and a dict out, whose keys are names that the exporter gives as well."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 5)

    def forward(self, ids, mask=None):
        tokens = self.embedding(ids)
        padding = None if mask is None else mask == 0
        hidden = self.encoder(tokens, src_key_padding_mask=padding)
        return {"linear": self.head(hidden.mean(1)), "ids": hidden, "none": None}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(4, 8)

    def forward(self, weight, bias):
        return torch.relu(self.left(weight) + self.right(bias))


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x.reshape(4, 8))


class Loop(nn.Module):
    """Takes any number of samples, and is another program for each."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return torch.stack([self.layer(row) for row in x])


class Lonely(Loop):
    """Another program for a single sample."""

    def forward(self, x):
        return self.layer(x) if x.shape[0] > 1 else 2 * self.layer(x)


class SmallBatches(Loop):
    """Another program for more than four samples."""

    def forward(self, x):
        return self.layer(x) if x.shape[0] < 5 else 2 * self.layer(x)
