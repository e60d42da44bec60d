"""Layers of every kind that has a row in the table, small, with inputs that they take."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils import _pytree as pytree
from transformers.pytorch_utils import Conv1D


class Functional(nn.Module):
    """Calls functions on parameters of its own, and has one that is in no product."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(64, 32))
        self.columns = nn.Parameter(torch.randn(64, 32))
        self.table = nn.Parameter(torch.randn(40, 32))
        self.listed = nn.ParameterList([torch.randn(32, 32)])
        self.kernel = nn.Parameter(torch.randn(16, 32, 3))
        self.places = nn.Parameter(torch.randn(5, 32))

    def forward(self, x):
        x = functional.linear(x, self.rows) @ self.columns + self.places
        x = x + functional.embedding(torch.arange(5), self.table) @ self.listed[0]
        return functional.conv1d((x @ self.rows.T @ self.columns).mT, self.kernel)


class Calls(nn.Module):
    """One function, called with a parameter of its own."""

    def __init__(self, call, *shape):
        super().__init__()
        self.call, self.own = call, nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.call(x, self.own)


class Tied(nn.Module):
    """A table whose rows are the output layer's as well."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.norm(self.table(ids)))


def ids(high, *shape):
    return torch.arange(torch.Size(shape).numel()).mul(7).remainder(high).view(shape)


def rows(*shape):
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32)).view(shape)


LAYERS = {
    "Linear": (lambda: nn.Linear(64, 48), (rows(3, 64),)),
    "Linear, many rows": (lambda: nn.Linear(64, 48), (rows(2, 100, 64),)),
    "Linear, odd": (lambda: nn.Linear(37, 11), (rows(2, 37),)),
    "Bilinear": (lambda: nn.Bilinear(16, 8, 12), (rows(3, 16), rows(3, 8))),
    "Conv1d": (lambda: nn.Conv1d(8, 16, 3, padding=1), (rows(2, 8, 9),)),
    "Conv2d": (lambda: nn.Conv2d(8, 16, 3, groups=2, padding_mode="reflect", padding=1), (rows(2, 8, 9, 9),)),
    "Conv3d": (lambda: nn.Conv3d(4, 8, 3), (rows(1, 4, 5, 5, 5),)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(8, 16, 3), (rows(2, 8, 9),)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(8, 16, 3, groups=2, stride=2), (rows(2, 8, 5, 5),)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 8, 3), (rows(1, 4, 3, 3, 3),)),
    "Embedding": (lambda: nn.Embedding(50, 64, padding_idx=3), (ids(50, 3, 4),)),
    "Embedding, odd": (lambda: nn.Embedding(50, 33, max_norm=2.0), (ids(50, 7),)),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(50, 64, padding_idx=7), (ids(50, 3, 4),)),
    "EmbeddingBag, offsets": (
        lambda: nn.EmbeddingBag(50, 64, mode="sum", include_last_offset=True),
        (ids(50, 6), torch.tensor([0, 2, 6]), rows(6)),
    ),
    "LSTM": (lambda: nn.LSTM(32, 64, 2, bidirectional=True, batch_first=True), (rows(2, 5, 32),)),
    "LSTM, projected": (lambda: nn.LSTM(32, 64, proj_size=16), (rows(5, 2, 32),)),
    "GRU": (lambda: nn.GRU(32, 64, 2), (rows(5, 2, 32),)),
    "RNN": (lambda: nn.RNN(32, 64, 2, nonlinearity="relu"), (rows(5, 2, 32),)),
    "LSTMCell": (lambda: nn.LSTMCell(32, 64), (rows(2, 32),)),
    "GRUCell": (lambda: nn.GRUCell(32, 64), (rows(2, 32),)),
    "RNNCell": (lambda: nn.RNNCell(32, 64), (rows(2, 32),)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(64, 4, batch_first=True), (rows(2, 5, 64),) * 3),
    "MultiheadAttention, apart": (
        lambda: nn.MultiheadAttention(64, 4, kdim=32, vdim=16, add_bias_kv=True),
        (rows(5, 2, 64), rows(6, 2, 32), rows(6, 2, 16)),
    ),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2),
        (rows(2, 5, 64),),
    ),
    "Conv1D": (lambda: Conv1D(48, 64), (rows(2, 3, 64),)),
    "functional.linear": (lambda: Calls(functional.linear, 48, 64), (rows(3, 64),)),
    "functional.matmul": (lambda: Calls(torch.matmul, 64, 48), (rows(3, 64),)),
    "functional.embedding": (lambda: Calls(functional.embedding, 50, 64), (ids(50, 7),)),
    "functional.embedding_bag": (lambda: Calls(functional.embedding_bag, 50, 64), (ids(50, 3, 4),)),
    "functional.conv1d": (lambda: Calls(torch.conv1d, 16, 8, 3), (rows(2, 8, 9),)),
    "functional.conv2d": (lambda: Calls(torch.conv2d, 16, 8, 3, 3), (rows(2, 8, 9, 9),)),
    "functional.conv3d": (lambda: Calls(torch.conv3d, 8, 4, 3, 3, 3), (rows(1, 4, 5, 5, 5),)),
    "functional.conv_transpose1d": (lambda: Calls(torch.conv_transpose1d, 8, 16, 3), (rows(2, 8, 9),)),
    "functional.conv_transpose2d": (lambda: Calls(torch.conv_transpose2d, 8, 16, 3, 3), (rows(2, 8, 5, 5),)),
    "functional.conv_transpose3d": (
        lambda: Calls(torch.conv_transpose3d, 4, 8, 3, 3, 3),
        (rows(1, 4, 3, 3, 3),),
    ),
    "Functional": (Functional, (rows(2, 5, 32),)),
    "Tied": (Tied, (ids(64, 2, 3),)),
}


def made(name):
    """The layer of that name in eval mode, always the same, and its inputs."""
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    return make().eval(), inputs


def flat(outputs):
    """All tensors of a nest in one vector."""
    leaves = pytree.tree_leaves(outputs)
    return torch.cat([leaf.reshape(-1).double() for leaf in leaves if isinstance(leaf, torch.Tensor)])


def sqnr(expected, got):
    """How far one nest is from another, dB."""
    a, b = flat(expected), flat(got)
    return float(10 * torch.log10(a.square().sum() / (a - b).square().sum().clamp(min=1e-30)))
