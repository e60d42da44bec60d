"""How the user's arrays become a model's inputs: along which axis samples lie, what is given whole, what is state."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fewbits.errors import InputError
from fewbits.planning.model_info import Dim, ModelInfo, TensorInfo

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Feeding:
    """What the user says of inputs that do not take one sample after the other along their first axis.

    Attributes:
        batch_axis: of inputs that the data has one of for each sample: the axis along which they take them.
        state: by output, the input of the next step that it feeds.
    """

    batch_axis: Mapping[str, int] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)

    def check(self, info: ModelInfo) -> None:
        """Hold it against a model.

        Raises:
            InputError: a name that the model does not have; an axis that an input does not have; a state whose
                dtypes or shapes do not match.
        """
        inputs = {one.name: one for one in info.inputs}
        outputs = {one.name: one for one in info.outputs}
        for name, axis in self.batch_axis.items():
            rank = len(_named(name, inputs, "batch axis", "input").shape)
            if not 0 <= axis < rank:
                raise InputError(
                    f"batch axis: {inputs[name]} has {f'the axes 0 to {rank - 1}' if rank else 'no axis'}, "
                    f"but {axis} is given for it"
                )
        for output, name in self.state.items():
            source = _named(output, outputs, "state", "output")
            target = _named(name, inputs, "state", "input")
            if source.dtype != target.dtype or not _same_shape(source.shape, target.shape):
                raise InputError(
                    f"state: the output {source} cannot feed the input {target}; dtypes and sizes must be the same"
                )
        fed = list(self.state.values())
        if twice := {name for name in fed if fed.count(name) > 1}:
            raise InputError(f"state: the input {min(twice)!r} is fed by two outputs; name one")
        if self.state and set(fed) >= set(inputs):
            raise InputError(
                "state: every input is fed by the step before; one must be left that data is for"
            )


PLAIN = Feeding()
"""Samples along the first axis of every input, and no state."""


def pairs(given: Iterable[str], option: str, form: str) -> dict[str, str]:
    """``NAME=VALUE`` as written on the command line, in order.

    Raises:
        InputError: one that is not of that form, or a name given twice.
    """
    found: dict[str, str] = {}
    for one in given:
        name, sign, value = one.rpartition("=")
        if not (sign and name and value):
            raise InputError(f"{option} {one!r}: write it as {form}")
        if name in found:
            raise InputError(f"{option}: {name!r} is given twice")
        found[name] = value
    return found


def axes(given: Iterable[str], option: str) -> dict[str, int]:
    """``NAME=AXIS`` as written on the command line. Raises InputError as :func:`pairs`."""
    found = {}
    for name, axis in pairs(given, option, "NAME=AXIS, such as x=1").items():
        if not axis.isdecimal():
            raise InputError(f"{option} '{name}={axis}': {axis!r} is no axis; axes count from 0")
        found[name] = int(axis)
    return found


def _named(name: str, tensors: Mapping[str, TensorInfo], what: str, kind: str) -> TensorInfo:
    if name not in tensors:
        near = difflib.get_close_matches(name, tensors, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{what}: the model has no {kind} {name!r}; it has {', '.join(tensors)}{hint}")
    return tensors[name]


def _same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether one tensor may have both shapes; an output of unknown shape has none."""
    if not a or not b:
        return True
    return len(a) == len(b) and all(
        isinstance(x, str) or isinstance(y, str) or x == y for x, y in zip(a, b, strict=True)
    )


@dataclass(frozen=True)
class Port:
    """One input of the model, and how data is given for it.

    Attributes:
        axis: along which it takes one sample after the other; None where it has no such axis.
        per_sample: whether the data has one of it for each sample, or one for all; None where the array's shape tells.
        state: it is fed by the step before, and what is given for it is where a sequence starts.
    """

    info: TensorInfo
    axis: int | None
    per_sample: bool | None
    state: bool = False

    @property
    def of_one(self) -> tuple[Dim, ...]:
        """The shape of one sample."""
        return tuple(dim for i, dim in enumerate(self.info.shape) if i != self.axis)

    def has_rows(self, shape: Sequence[int]) -> bool:
        """Whether an array of that shape is one for each sample, along its first axis."""
        if self.per_sample is not None:
            return self.per_sample
        whole = _fits(shape, self.info.shape)
        if self.state:
            single = whole and (self.axis is None or shape[self.axis] == 1)
            return not single and _fits(shape[1:], self.of_one)
        return not whole

    def check(self, shape: Sequence[int]) -> str | None:
        """What is wrong with an array of that shape, in words; None where nothing is."""
        if self.has_rows(shape):
            if len(shape) and _fits(shape[1:], self.of_one):
                return None
            rest = "".join(f", {dim}" for dim in self.of_one)
            return "first axis: samples" if not self.axis else f"given per sample: [samples{rest}]"
        if self.state:
            single = [1 if i == self.axis else dim for i, dim in enumerate(self.info.shape)]
            if _fits(shape, single):
                return None
            rest = "".join(f", {dim}" for dim in self.of_one)
            return f"where every sequence starts: [{', '.join(map(str, single))}], or for each step: [steps{rest}]"
        if not _fits(shape, self.info.shape):
            return (
                f"{self.info.name} is given whole, since its first axis is not its batch; or per sample, with its "
                f"batch axis named: --batch-axis {self.info.name}=AXIS"
            )
        return None


def _fits(shape: Sequence[int], dims: Sequence[Dim]) -> bool:
    return len(shape) == len(dims) and all(
        isinstance(want, str) or got == want for got, want in zip(shape, dims, strict=True)
    )


@dataclass(frozen=True)
class Intake:
    """A model's inputs with all that is known of how they are fed."""

    ports: tuple[Port, ...]
    state: Mapping[str, str]

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """All inputs."""
        return tuple(port.info for port in self.ports)

    @property
    def asked(self) -> tuple[TensorInfo, ...]:
        """The inputs that the data must have."""
        return tuple(port.info for port in self.ports if not port.state)

    @property
    def plain(self) -> bool:
        """Every input has the samples along its first axis, and none is fed by the step before."""
        return not self.state and all(port.per_sample and port.axis == 0 for port in self.ports)

    @property
    def fixed_batch(self) -> int | None:
        """The number of samples that the model takes at a time, where its inputs fix it."""
        for port in self.ports:
            if (
                port.axis is not None
                and port.per_sample
                and isinstance(size := port.info.shape[port.axis], int)
            ):
                return size
        return None

    def port(self, name: str) -> Port | None:
        """The input of that name."""
        return next((port for port in self.ports if port.info.name == name), None)

    def count(self, feeds: Mapping[str, np.ndarray]) -> int:
        """The number of samples in feeds."""
        sizes = [
            feeds[port.info.name].shape[port.axis]
            for port in self.ports
            if port.per_sample and port.axis is not None
        ]
        return sizes[0] if sizes else 1

    def feeds(self, rows: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray]) -> Feeds:
        """What the model takes, from arrays with samples along their first axis and from those given whole."""
        found = dict(whole)
        for port in self.ports:
            name = port.info.name
            if name in rows:
                found[name] = rows[name][0] if port.axis is None else np.moveaxis(rows[name], 0, port.axis)
        return {
            port.info.name: np.asarray(found[port.info.name], order="C")
            for port in self.ports
            if port.info.name in found
        }

    def start(self, name: str) -> np.ndarray:
        """Zeros for a sequence to start with.

        Raises:
            InputError: the state has an open axis that is not its batch.
        """
        port = self.port(name)
        assert port is not None
        open_axes = [i for i, dim in enumerate(port.info.shape) if isinstance(dim, str) and i != port.axis]
        if open_axes:
            raise InputError(
                f"state: the size of axis {open_axes[0]} of {port.info} is open, so no zeros can be made for the first "
                f"step; give {name!r} in the data, or where that axis is the batch, say so: --batch-axis "
                f"{name}={open_axes[0]}"
            )
        shape = [1 if i == port.axis else dim for i, dim in enumerate(port.info.shape)]
        return np.zeros(shape, np.dtype(port.info.dtype))  # type: ignore[arg-type]


def intake(inputs: tuple[TensorInfo, ...], feeding: Feeding = PLAIN) -> Intake:
    """How each input is fed: as the user says, or as its shape tells.

    The batch is the first axis, by default. It is not where another input has that axis open and this one has not
    (which the data may decide), or where the name of its first axis stands elsewhere in another input.
    """
    fed = set(feeding.state.values())
    plain = [
        one for one in inputs if one.shape and one.name not in feeding.batch_axis and one.name not in fed
    ]
    named = [
        one.shape[feeding.batch_axis[one.name]]
        for one in inputs
        if one.name in feeding.batch_axis and one.name not in fed
    ]
    leading = [*named, *(one.shape[0] for one in plain)]
    opened = [dim for dim in leading if isinstance(dim, str)]
    later = {dim for one in plain for dim in one.shape[1:]}
    batch = next((dim for dim in opened if dim not in later), opened[0] if opened else None)
    fixed = next(iter(leading), None)
    ports = []
    for one in inputs:
        state, axis = one.name in fed, feeding.batch_axis.get(one.name)
        if axis is not None:
            ports.append(Port(one, axis, None if state else True, state))
        elif not one.shape:
            ports.append(Port(one, None, None, state))
        elif state:
            ports.append(Port(one, _batch_axis_of_state(one, batch), None, state))
        else:
            ports.append(_plain_port(one, inputs, batch, fixed))
    return Intake(tuple(ports), dict(feeding.state))


def _plain_port(
    one: TensorInfo, inputs: tuple[TensorInfo, ...], batch: str | None, fixed: Dim | None
) -> Port:
    first = one.shape[0]
    if batch is None:
        return Port(one, 0, True) if first == fixed else Port(one, None, False)
    if isinstance(first, str):
        elsewhere = any(first in other.shape[1:] for other in inputs if other.name != one.name)
        leads = any(other.shape[:1] == (first,) for other in inputs if other.name != one.name)
        if first == batch or leads or not elsewhere:
            return Port(one, 0, True)
        return Port(one, _place(one, batch), False)
    if (place := _place(one, batch)) is not None:
        return Port(one, place, False)
    return Port(one, 0, None)


def _place(one: TensorInfo, batch: str | None) -> int | None:
    return one.shape.index(batch) if batch in one.shape else None


def _batch_axis_of_state(one: TensorInfo, batch: str | None) -> int | None:
    """Its axis of the batch's name; or its first, where that is open or one."""
    if batch is not None and batch in one.shape:
        return one.shape.index(batch)
    return 0 if one.shape[0] == 1 or isinstance(one.shape[0], str) else None
