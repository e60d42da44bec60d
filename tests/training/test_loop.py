"""The loop: deterministic, resumable, in 16 bits, and clear about what is wrong."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections import UserDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from fewbits.errors import InputError
from fewbits.training import distillation, fit, loop, supervised
from fewbits.training.loop import moved


def test_one_seed_gives_one_result(digits):
    results = []
    for _ in range(2):
        net = copy.deepcopy(digits.net)
        results.append((fit(net, digits.batches, epochs=2, seed=3), net.last.weight.detach()))
    (first, a), (second, b) = results
    assert [one.loss for one in first] == [one.loss for one in second]
    assert torch.equal(a, b)


@pytest.mark.parametrize("precision", ["f32", "fp16"])
def test_an_interrupted_run_ends_where_it_would_have_ended(digits, tmp_path, monkeypatch, precision):
    # On a CPU fp16 brings nothing, and is refused; the loop scales its loss there in the same way.
    monkeypatch.setattr(loop, "check_precision", lambda precision, device: None)
    options = {"epochs": 3, "precision": precision, "objective": _large}
    whole = copy.deepcopy(digits.net)
    wanted = fit(whole, digits.batches, **options)
    path = tmp_path / "run.pt"
    broken = copy.deepcopy(digits.net)

    def interrupt(stage, done, total):
        if stage == "epoch 3 of 3" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(broken, digits.batches, checkpoint=path, progress=interrupt, **options)
    again = copy.deepcopy(digits.net)
    got = fit(again, digits.batches, checkpoint=path, **options)
    assert [one.loss for one in got] == [one.loss for one in wanted]
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), whole.state_dict().values(), strict=True)
    )
    assert fit(copy.deepcopy(digits.net), digits.batches, checkpoint=path, **options) == got
    assert got[-1].loss < got[0].loss
    scaler = torch.load(path)["scaler"]
    assert (
        (scaler["scale"] < 2**16) if precision == "fp16" else not scaler
    )  # its gradients overflowed at first


def _large(module, inputs, targets):
    return 1000 * supervised()(module, inputs, targets)


class Noisy(Dataset):
    """Rows and labels, with noise from all three generators."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        noise = np.random.rand() + random.random() + float(torch.rand(()))
        return X[index % 2] + noise, Y[index % 2]


@pytest.mark.parametrize("split", ["shuffle", "sampler", "batch_sampler"])
def test_a_loader_with_a_generator_of_its_own_is_resumed(split, tmp_path):
    def run(stop=99, **more):
        torch.manual_seed(0)
        net, own = Scaled(), torch.Generator().manual_seed(stop)
        sampler = RandomSampler(Noisy(), generator=own)
        options = {
            "shuffle": {"shuffle": True, "generator": own, "batch_size": 2},
            "sampler": {"sampler": sampler, "batch_size": 2},
            "batch_sampler": {"batch_sampler": BatchSampler(sampler, 2, False)},
        }
        np.random.seed(stop)
        random.seed(stop)

        def interrupt(stage, done, total):
            if stage.startswith(f"epoch {stop}"):
                raise KeyboardInterrupt

        fit(net, DataLoader(Noisy(), **options[split]), epochs=3, progress=interrupt, **more)
        return net.layer.weight

    wanted = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop=2, checkpoint=tmp_path / "run.pt")
    assert torch.equal(run(checkpoint=tmp_path / "run.pt"), wanted)


def test_sixteen_bits_train_nearly_as_well(digits):
    torch.manual_seed(0)
    net = type(digits.net)()
    fit(net, digits.batches, epochs=5, lr=0.01, precision="bf16")
    assert net.last.weight.dtype == torch.float32
    assert digits.accuracy(net) > digits.accuracy(digits.net) - 3


def test_a_student_learns_from_its_teacher_alone(digits):
    torch.manual_seed(1)
    student = type(digits.net)()
    unlabelled = [(x, None) for x, _ in digits.batches]
    before = digits.accuracy(student.eval())
    objective = distillation(digits.net, weight=1.0, features={"inner": "inner"}, feature_weight=0.1)
    fit(student, unlabelled, epochs=5, lr=0.01, objective=objective)
    assert digits.accuracy(student) > before + 50


def test_named_inputs_and_a_loss_of_ones_own(digits):
    batches = [({"image": x}, x) for x, _ in digits.batches][:4]
    net = copy.deepcopy(digits.net)

    def loss(logits, images):
        return logits.square().mean() + 0 * images.sum()

    done = fit(net, batches, epochs=3, objective=supervised(loss))
    assert done[-1].loss < done[0].loss


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Scaled(nn.Module):
    """Logits [n, 3] of x [n, 2] and of a scale [n], which may be left out."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x, scale=None):
        return self.layer(x if scale is None else x * scale[:, None])


X, S, Y = torch.eye(2), torch.ones(2), torch.tensor([0, 1])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


@pytest.mark.parametrize(
    "data",
    [
        [(X, Y)],
        [[X, S, Y]],
        [((X, S), Y)],
        [({"x": X, "scale": S}, Y)],
        [{"x": X, "labels": Y}],
        [UserDict(x=X, labels=Y)],
        [Pair(X, Y)],
        DataLoader(TensorDataset(X, S, Y)),
        DataLoader(Stream(), batch_size=2),
    ],
)
def test_batches_of_all_forms_are_taken(data):
    net = Scaled()
    before = net.layer.weight.detach().clone()
    seen = []
    fit(net, data, epochs=1, progress=lambda stage, done, total: seen.append(total))
    assert not torch.equal(net.layer.weight, before)
    assert seen[0] == (0 if isinstance(getattr(data, "dataset", None), Stream) else len(data))


@pytest.mark.parametrize("batch", [[X], X, {"x": X}, (UserDict(x=X), None)])
def test_batches_without_targets(batch):
    net = Scaled()
    fit(net, [batch], epochs=1, objective=distillation(Scaled(), weight=1.0))
    for objective in (None, distillation(Scaled())):
        with pytest.raises(InputError, match="the batches have no targets"):
            fit(net, [batch], epochs=1, objective=objective)


def test_the_tensors_of_all_mappings_and_tuples_are_moved():
    pair = moved(Pair(UserDict(x=X), [Y, "name"]), torch.device("meta"))
    assert pair[0]["x"].device == pair[1][0].device == torch.device("meta")
    assert pair[1][1] == "name"


def test_a_loss_that_is_no_number_names_the_step_and_the_layer(digits):
    with torch.no_grad():
        digits.net.inner.weight[0] = torch.inf
    with pytest.raises(InputError, match=r"the loss is nan at step 1 of epoch 1; .* 'inner'"):
        fit(digits.net, digits.batches, epochs=1)


def test_what_overflows_in_16_bits_alone_is_named():
    net = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.fill_(3.4e38)  # bf16 ends at 3.39e38
        net[1].weight.fill_(0)
    x, y = torch.ones(1, 1), torch.tensor([0])
    assert bool(torch.isfinite(net(x)).all())
    with pytest.raises(InputError, match=r"the loss is nan at step 1 of epoch 1; the first .* is '0'"):
        fit(net, [(x, y)], epochs=1, precision="bf16")


def test_a_layer_that_gives_several_tensors_is_named():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.last = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.last(self.lstm(x)[0][:, -1])

    net = Recurrent()
    with torch.no_grad():
        net.lstm.weight_ih_l0.fill_(torch.nan)
    with pytest.raises(InputError, match="'lstm'"):
        fit(net, [(torch.ones(1, 4, 2), torch.tensor([0]))], epochs=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["f32", "bf16", "fp16"])
def test_it_trains_on_cuda(digits, precision, tmp_path):
    before = digits.accuracy(digits.net)
    net, path = digits.net.cuda(), tmp_path / "run.pt"
    objective = distillation(copy.deepcopy(net))
    options = {"epochs": 2, "precision": precision, "checkpoint": path, "objective": objective}
    done = fit(net, digits.batches, **options)
    assert fit(net, digits.batches, **options) == done
    assert net.last.weight.is_cuda and net.last.weight.dtype == torch.float32
    assert digits.accuracy(net.cpu()) > before - 3


def test_the_rooms_of_the_package_come_when_they_are_used():
    code = "import sys, fewbits as fb; fb.training; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_refused(digits, tmp_path):
    def refused(said, **more):
        with pytest.raises(InputError, match=said):
            fit(more.pop("module", digits.net), more.pop("data", digits.batches), **{"epochs": 1, **more})

    refused("epochs is 0", epochs=0)
    refused("lr is -1; give a positive number", lr=-1)
    refused("lr is nan", lr=torch.nan)
    each = supervised(nn.CrossEntropyLoss(reduction="none"))
    refused(r"the loss is of shape \[64\]; give one number", objective=each)
    refused(
        "the loss is nan at step 1 .* the samples of that step hold NaN",
        data=[(X * torch.nan, Y)],
        module=Scaled(),
    )
    refused("on a CPU take 'bf16'", precision="fp16")
    refused("precision is 'int8'; allowed are f32, bf16, fp16", precision="int8")
    refused("there is no data", data=[])
    refused("a batch is a str; give .* 'labels'", data=["image"])
    refused("a batch is a dict without inputs", data=[{"labels": digits.y}])
    refused("a batch is a list without inputs", data=[[]])
    refused("nothing to train", module=nn.ReLU())
    mixed = copy.deepcopy(digits.net)
    mixed.last = nn.Linear(128, 10, device="meta")
    refused(r"several devices \(cpu, meta\)", module=mixed)
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"nothing of the kind")
    refused("damaged.pt: not a checkpoint", checkpoint=damaged)
    path = tmp_path / "run.pt"
    fit(digits.net, digits.batches, epochs=1, checkpoint=path)
    refused("is of a run with epochs 1, this one has epochs 2; remove it", checkpoint=path, epochs=2)
    refused(r"is of a run with rates \[0.001\], this one has rates \[0.1\]", checkpoint=path, lr=0.1)
    other = torch.optim.SGD(digits.net.parameters(), lr=1e-3)
    refused("with optimizer Adam, this one has optimizer SGD", checkpoint=path, optimizer=other)
    stale = torch.optim.SGD(copy.deepcopy(digits.net).parameters(), lr=1e-3)
    refused("the optimizer has none of the module's parameters", optimizer=stale)
    refused("there is no folder", checkpoint=tmp_path / "none" / "run.pt", data=map(pytest.fail, "x"))
    refused("of another module or optimizer", checkpoint=path, module=nn.Linear(3, 3))


def test_what_distillation_refuses(digits):
    with pytest.raises(InputError, match="weight is 2"):
        distillation(digits.net, weight=2)
    with pytest.raises(InputError, match="temperature is 0"):
        distillation(digits.net, temperature=0)
    with pytest.raises(InputError, match="feature_weight is nan"):
        distillation(digits.net, feature_weight=torch.nan)
    with pytest.raises(InputError, match="the teacher has no submodule 'middle'; it has first"):
        distillation(digits.net, features={"inner": "middle"})
    x, y = digits.x[:4], digits.y[:4]
    with pytest.raises(
        InputError, match=r"feature 'last' of the student is \[4, 10\], 'inner' of the teacher"
    ):
        distillation(digits.net, features={"last": "inner"})(digits.net, x, y)
    unused = copy.deepcopy(digits.net)
    unused.more = nn.Identity()
    with pytest.raises(InputError, match="submodule 'more' of the teacher is not called"):
        distillation(unused, features={"inner": "more"})(digits.net, x, y)
    with pytest.raises(InputError, match="submodule 'more' of the student is not called"):
        distillation(digits.net, features={"more": "inner"})(unused, x, y)
    with pytest.raises(InputError, match=r"the student gives \[4, 3\], the teacher \[4, 10\]"):
        distillation(digits.net)(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x, y)
    with pytest.raises(
        InputError, match=r"the teacher is on meta, the student on cpu; .* teacher.to\('cpu'\)"
    ):
        distillation(copy.deepcopy(digits.net).to("meta"))(digits.net, x, y)
