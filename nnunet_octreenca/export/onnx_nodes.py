"""Nodes of an ONNX graph, written like calls."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_octreenca.libraries import import_optional

# A value of the graph by its name, or a constant.
Value = str | NDArray[Any] | np.generic
# Type and shape by name; text stands for a size that is not known.
Tensors = Mapping[str, tuple[str, Sequence[str | int]]]


class Nodes:
    """The nodes of a graph or of a loop's body, in the order in which they run.

    A call adds a node and returns its output's name: `nodes("Add", "image", np.float32(1))`.

    Args:
        outer: nodes of the graph that a body belongs to. A body sees its values.

    Attributes:
        nodes: NodeProto.
        constants: TensorProto, those of all bodies in the outermost graph.

    Raises:
        EnvironmentMismatchError: onnx is not installed.
    """

    def __init__(self, outer: "Nodes | None" = None) -> None:
        self._helper = import_optional("onnx.helper", "onnx")
        self._to_tensor = import_optional("onnx.numpy_helper", "onnx").from_array
        self._types = import_optional("onnx", "onnx").TensorProto
        self.nodes: list[Any] = []
        self.constants: list[Any] = [] if outer is None else outer.constants
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = (
            {} if outer is None else outer._known
        )
        # Names are unique in all bodies together.
        self._numbers: Iterator[int] = count() if outer is None else outer._numbers

    def __call__(self, operator: str, *inputs: Value, name: str = "", **attributes: object) -> str:
        """Add a node with one output.

        Args:
            operator: of ONNX, such as "Add".
            inputs: of the node.
            name: that a runtime's error message shows; a numbered one if left out.
        """
        output = f"{operator}_{next(self._numbers)}"
        names = [self.constant(value) for value in inputs]
        self.nodes.append(
            self._helper.make_node(operator, names, [output], name=name or output, **attributes)
        )
        return output

    def constant(self, value: Value) -> str:
        """The name of a constant, held once however often it is used; a name is its own."""
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{next(self._numbers)}"
            self.constants.append(self._to_tensor(array, self._known[key]))
        return self._known[key]

    def cast(self, value: Value, kind: str) -> str:
        """A value as another type, "INT32" or the like; whole numbers wrap."""
        return self("Cast", value, to=getattr(self._types, kind))

    def loop(self, times: Value, carried: Value, body: Callable[["Nodes", str, str], str]) -> str:
        """A float tensor after some rounds of a body.

        Args:
            times: int64 scalar, rounds.
            carried: the tensor before the first round.
            body: called once, with the body's nodes, the round's number and the tensor before it;
                returns the tensor after it.
        """
        inner = Nodes(self)
        here = next(self._numbers)
        number, going, before = (f"{what}_{here}" for what in ("round", "going", "carried"))
        after = body(inner, number, before)
        still = inner("Identity", going)
        info, types = self._helper.make_tensor_value_info, self._types
        graph = self._helper.make_graph(
            inner.nodes,
            f"body_{here}",
            [info(number, types.INT64, []), info(going, types.BOOL, []),
             info(before, types.FLOAT, None)],
            [info(still, types.BOOL, []), info(after, types.FLOAT, None)],
        )  # fmt: skip
        return self("Loop", times, np.bool_(True), carried, body=graph)

    def output(self, value: str, name: str) -> None:
        """Give a value the name of one of the graph's outputs."""
        self.nodes.append(self._helper.make_node("Identity", [value], [name]))

    def graph(self, name: str, inputs: Tensors, outputs: Tensors) -> Any:
        """The finished `onnx.GraphProto`; of inputs and outputs, type and shape by name."""
        given, made = (
            [
                self._helper.make_tensor_value_info(which, getattr(self._types, kind), shape)
                for which, (kind, shape) in tensors.items()
            ]
            for tensors in (inputs, outputs)
        )
        return self._helper.make_graph(self.nodes, name, given, made, self.constants)


def int64(*numbers: int) -> NDArray[np.int64]:
    """A vector of sizes, axes or indices.

    >>> int64(2, 3)
    array([2, 3])
    """
    return np.array(numbers, np.int64)
