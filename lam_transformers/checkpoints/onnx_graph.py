"""A small builder of ONNX graphs: values with arithmetic, named weights, a Scan, an If.

    graph = Graph()
    x = graph.input("x", np.float32, ["batch", 8])
    y = graph.op("Sigmoid", x * 2.0 + graph.weight("bias", bias))
    graph.output("y", y, np.float32, ["batch", 8])
    model = graph.model("name", {})

Operators of onnxruntime's own domain, `com.microsoft`, are asked for as `graph.op("microsoft:BiasGelu", ...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 23  # RMSNormalization is from there
IR_VERSION = 11
MICROSOFT = "com.microsoft"


class Value:
    """A tensor of a graph that is being built: its name, and the arithmetic of ONNX with numpy's broadcasting."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph = graph
        self.name = name

    def __add__(self, other: Value | float) -> Value:
        return self.graph.op("Add", self, other)

    def __sub__(self, other: Value | float) -> Value:
        return self.graph.op("Sub", self, other)

    def __rsub__(self, other: float) -> Value:
        return self.graph.op("Sub", other, self)

    def __mul__(self, other: Value | float) -> Value:
        return self.graph.op("Mul", self, other)

    def __matmul__(self, other: Value) -> Value:
        return self.graph.op("MatMul", self, other)

    def reshape(self, *shape: int | Value) -> Value:
        """This tensor in another shape: 0 keeps a dimension, -1 is what remains, a Value [1] is a computed size."""
        return self.graph.op("Reshape", self, self.graph.sizes(*shape))

    def transpose(self, *order: int) -> Value:
        """This tensor with its dimensions in the order `order`."""
        return self.graph.op("Transpose", self, perm=order)

    def at(self, index: int, axis: int) -> Value:
        """The part with that index of a dimension, which is then gone."""
        return self.graph.op("Gather", self, np.int64(index), axis=axis)

    def slice(self, start: int | Value, end: int | Value, axis: int) -> Value:
        """The part start..end of a dimension."""
        bounds = (self.graph.sizes(x) for x in (start, end))
        return self.graph.op("Slice", self, *bounds, self.graph.sizes(axis))

    def split(self, sizes: Sequence[int], axis: int = -1) -> list[Value]:
        """The parts of a dimension, of these sizes."""
        return self.graph.ops("Split", self, np.array(sizes), outputs=len(sizes), axis=axis)

    def add_axis(self, *axes: int) -> Value:
        """This tensor with new dimensions of size 1."""
        return self.graph.op("Unsqueeze", self, np.array(axes))

    def size(self, axis: int) -> Value:
        """[1] int64, the size of a dimension."""
        return self.graph.op("Shape", self, start=axis, end=axis + 1)

    def cast(self, dtype: Any) -> Value:
        """This tensor in another type."""
        return self.graph.op("Cast", self, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


class Graph:
    """A graph that is being built.

    Args:
        outer: the graph around it, for the body of a Scan or of a branch: its weights are used, names are counted
            together.
    """

    def __init__(self, outer: Graph | None = None) -> None:
        self.outer = outer
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.weights: list[onnx.TensorProto] = [] if outer is None else outer.weights
        self._known: dict[tuple[Any, ...], list[str]] = {}
        self._constants: dict[tuple[Any, ...], str] = {} if outer is None else outer._constants
        self._count: list[int] = [0] if outer is None else outer._count

    def input(self, name: str, dtype: Any, shape: Sequence[int | str] | None) -> Value:
        """An input of the graph; a dimension with a name has any size, without a shape all have."""
        self.inputs.append(_described(name, dtype, shape))
        return Value(self, name)

    def output(self, name: str, value: Value, dtype: Any, shape: Sequence[int | str]) -> None:
        """Make `value` an output of the graph under that name."""
        self.nodes.append(helper.make_node("Identity", [value.name], [name]))
        self.outputs.append(_described(name, dtype, shape))

    def weight(self, name: str, array: np.ndarray) -> Value:
        """A constant tensor with a name of its own."""
        self.weights.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return Value(self, name)

    def constant(self, value: Any) -> Value:
        """A small constant; numbers become float32. The same one is stored once."""
        array = np.asarray(value, np.float32) if isinstance(value, float) else np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant_{len(self._constants)}", array).name
        return Value(self, self._constants[key])

    def sizes(self, *parts: int | Value) -> Value:
        """[n] int64 of whole numbers and computed sizes."""
        if all(isinstance(part, int) for part in parts):
            return self.constant(np.array(parts, np.int64))
        return self.concat([self.sizes(part) if isinstance(part, int) else part for part in parts], 0)

    def ops(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> list[Value]:
        """Add an operator. Inputs are values, numbers and arrays, or None for one that is left out.

        What was computed before from the same inputs is not computed again.
        """
        domain, _, name = kind.rpartition(":")
        given = ["" if x is None else x.name if isinstance(x, Value) else self.constant(x).name for x in inputs]
        key = (kind, tuple(given), repr(sorted(attributes.items())))
        if key in self._known:
            return [Value(self, name) for name in self._known[key]]
        self._count[0] += outputs
        names = self._known[key] = [f"{name}_{self._count[0] - i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(name, given, names, names[0], domain=MICROSOFT if domain else None, **attributes)
        )
        return [Value(self, name) for name in names]

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> Value:
        """Add an operator with one output, see `ops`."""
        return self.ops(kind, *inputs, **attributes)[0]

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """The parts, one after the other along a dimension."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=axis)

    def sum(self, value: Value, axis: int, keep: bool = True) -> Value:
        """The sum over a dimension."""
        return self.op("ReduceSum", value, np.array([axis]), keepdims=int(keep))

    def scan(
        self,
        step: Callable[[Graph, list[Value], list[Value]], tuple[list[Value], list[Value]]],
        states: Sequence[Value],
        inputs: Sequence[Value],
        outputs: int,
    ) -> tuple[list[Value], list[Value]]:
        """Run `step` over the first dimension of `inputs`, each step with the states that the one before it gave.

        Args:
            step: called once, with the graph of a step, its states and its inputs; gives states and outputs.
            states: before the first step.
            inputs: [S, ...] each.
            outputs: how many a step gives.

        Returns:
            The states after the last step, and the outputs [S, ...].
        """
        body = Graph(self)
        self._count[0] += 1
        prefix = f"scan_{self._count[0]}"
        before = [body.input(f"{prefix}_state_{i}", np.float32, None) for i in range(len(states))]
        parts = [body.input(f"{prefix}_input_{i}", np.float32, None) for i in range(len(inputs))]
        after, given = step(body, before, parts)
        for value in [*after, *given]:
            # An input of the step has to be given another name to be an output.
            value = body.op("Identity", value) if value.name in {x.name for x in body.inputs} else value
            body.outputs.append(_described(value.name, np.float32, None))
        results = self.ops(
            "Scan",
            *states,
            *inputs,
            outputs=len(states) + outputs,
            body=helper.make_graph(body.nodes, prefix, body.inputs, body.outputs),
            num_scan_inputs=len(inputs),
        )
        return results[: len(states)], results[len(states) :]

    def choose(self, condition: Value, yes: Callable[[Graph], Value], no: Callable[[Graph], Value]) -> Value:
        """What `yes` gives where the condition holds, else what `no` gives; only that one is computed.

        Args:
            condition: [1] bool.
            yes, no: called once each, with the graph of the branch; give a new float32 value of it. Values of this
                graph are used there under their names.
        """
        branches = {}
        for name, branch in (("then_branch", yes), ("else_branch", no)):
            body = Graph(self)
            outputs = [_described(branch(body).name, np.float32, None)]
            self._count[0] += 1
            branches[name] = helper.make_graph(body.nodes, f"{name}_{self._count[0]}", [], outputs)
        return self.op("If", condition, **branches)

    def model(self, name: str, metadata: dict[str, str]) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="lam-transformers")
        model.ir_version = IR_VERSION
        helper.set_model_props(model, metadata)
        return model


def _described(name: str, dtype: Any, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    kind = TensorProto.FLOAT if dtype is np.float32 else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)
