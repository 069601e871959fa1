"""How the large matrices of an ONNX graph are stored and multiplied: float32, float16 or int8.

Small tables and the inside of the memory rule are float32 in every case.
"""

from __future__ import annotations

import numpy as np

from .onnx_graph import Graph, Value

ZERO = 64  # the level of an activation of zero; levels are 1 to 127


class Float32:
    """Products in float32, as the model's."""

    rounds = False

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def linear(self, x: Value, name: str, weight: np.ndarray) -> Value:
        """x [..., in] times the transposed weight [out, in]."""
        return x @ self.graph.weight(name, weight.T)

    def lookup(self, ids: Value, name: str, table: np.ndarray) -> Value:
        """The rows `ids` of a table, float32."""
        return self.graph.op("Gather", self.graph.weight(name, table), ids)


class Float16:
    """Weights stored in float16 and computed with in float32, so that every processor can."""

    rounds = False

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def linear(self, x: Value, name: str, weight: np.ndarray) -> Value:
        """x [..., in] times the transposed weight [out, in]."""
        return x @ self.graph.weight(name, _half(name, weight.T)).cast(np.float32)

    def lookup(self, ids: Value, name: str, table: np.ndarray) -> Value:
        """The rows `ids` of a table, float32."""
        return self.graph.op("Gather", self.graph.weight(name, _half(name, table)), ids).cast(np.float32)


class Int8:
    """Weights in 8 bits with a scale for each output; activations in 7 bits with a scale for each token.

    A token's numbers so do not depend on its batch. Activations leave one bit free, because processors without VNNI
    add two products of 8 x 8 bits in 16, where 7 x 8 bits always fit.
    """

    rounds = True

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def linear(self, x: Value, name: str, weight: np.ndarray) -> Value:
        """x [B, T, in] times the transposed weight [out, in]."""
        sizes = x.size(0), x.size(1)
        levels, token_scale = self._quantised(x, weight.shape[1])
        scale, matrix = _levels(weight)
        y = self.graph.op(
            "microsoft:MatMulIntegerToFloat",
            levels,
            self.graph.weight(name, matrix.T),
            1.0,
            self.graph.weight(f"{name}_scale", scale[:, 0]),
            np.uint8(ZERO),
        )
        return (y * token_scale).reshape(*sizes, len(weight))

    def lookup(self, ids: Value, name: str, table: np.ndarray) -> Value:
        """The rows `ids` of a table, float32."""
        scale, levels = _levels(table)
        rows = self.graph.op("Gather", self.graph.weight(name, levels), ids).cast(np.float32)
        return rows * self.graph.op("Gather", self.graph.weight(f"{name}_scale", scale), ids)

    def _quantised(self, x: Value, inputs: int) -> tuple[Value, Value]:
        """Levels [B T, in] uint8 around ZERO and scales [B T, 1] of x [B, T, in]."""
        rows = x.reshape(-1, inputs)
        largest = self.graph.op("ReduceMax", rows, np.array([-1]), keepdims=0)
        smallest = self.graph.op("ReduceMin", rows, np.array([-1]), keepdims=0)
        largest = self.graph.op("Max", largest, self.graph.op("Neg", smallest), 1e-12)
        scale = largest * (1.0 / (ZERO - 1))
        zero = self.graph.op("Expand", np.uint8(ZERO), rows.size(0))
        return self.graph.op("QuantizeLinear", rows, scale, zero, axis=0), scale.add_axis(1)


def _half(name: str, array: np.ndarray) -> np.ndarray:
    if not np.abs(array).max() < np.finfo(np.float16).max:
        raise ValueError(f"A weight of {name} is too large for float16; export with float32.")
    return array.astype(np.float16)


def _levels(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales [..., 1] float32 and levels [..., n] int8 of the last dimension: array is about scale times level."""
    scale = np.maximum(np.abs(array).max(-1, keepdims=True) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return scale, np.rint(array / scale).astype(np.int8)


def products(precision: str, graph: Graph) -> Float32 | Float16 | Int8:
    """The products of that precision. Raises ValueError for another one."""
    kinds: dict[str, type[Float32] | type[Float16] | type[Int8]] = {
        "float32": Float32,
        "float16": Float16,
        "int8": Int8,
    }
    if precision not in kinds:
        raise ValueError(f"precision must be one of {', '.join(kinds)}, got {precision!r}.")
    return kinds[precision](graph)
