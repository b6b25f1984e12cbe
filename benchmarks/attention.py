"""Attention of long sequences by several engines, in turns: `python -m benchmarks.attention`.

Each subject computes softmax(scale * Q K^T) V of normally distributed tensors in a process of its own. Errors are
against float64.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.generator_process import GeneratorFactory, GeneratorProcess, run_child
from benchmarks.grid import markdown_table
from benchmarks.record import write_results
from stillhouse.backends.int8_attention import INT8_ATTENTION, int8_attention
from stillhouse.cpu import processor_flags
from stillhouse.measure.clock import paired_ratio, run_interleaved, summarise
from stillhouse.measure.fidelity import compare_tensors

NAME = "attention"
ROUNDS, THREADS = 15, 2
REFERENCE = "OpenVINO, int8"
"""The subject that ratios refer to: what OpenVINO does in a graph that NNCF has quantised. Queries and keys are rounded
to int8, and the product with the values is in bf16."""
OURS = "int8_attention"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the tensors, [rows, tokens, heads * channels], and where they occur."""

    rows: int
    tokens: int
    heads: int
    channels: int
    place: str

    @property
    def operations(self) -> float:
        """Multiplications and additions of both products."""
        return 4.0 * self.rows * self.heads * self.tokens**2 * self.channels


SHAPES = (
    Shape(2, 4096, 8, 40, "Stable Diffusion 1.5, 512x512, first level"),
    Shape(2, 1024, 8, 80, "Stable Diffusion 1.5, 512x512, second level"),
    Shape(2, 4096, 10, 64, "Stable Diffusion XL, 1024x1024, second level"),
    Shape(1, 4096, 24, 128, "a transformer of 24 heads, 1024x1024"),
)


def main() -> None:
    """Time all subjects for each shape, and write the results."""
    rows = []
    for place, shape in enumerate(SHAPES):
        with ExitStack() as stack:
            names = [name for name in _SUBJECTS if name != OURS or not INT8_ATTENTION.missing_reason(processor_flags())]
            timers = {
                name: stack.enter_context(GeneratorProcess(f"{place} {name}", THREADS, "benchmarks.attention"))
                for name in names
            }
            seconds = run_interleaved(timers, ROUNDS)
        for name in names:
            ratio = asdict(paired_ratio(seconds[REFERENCE], seconds[name]))
            measured = {"seconds": asdict(summarise(seconds[name])), "ratio": ratio, "sqnr": _sqnr(name, shape)}
            rows.append({"shape": asdict(shape), "operations": shape.operations, "subject": name, **measured})
            print(f"{shape.place}: {name}: {ratio['value']:.2f}", flush=True)
    write_results(NAME, {"rows": rows})


def table(results: Mapping[str, Any]) -> str:
    """Return one row for each shape and subject."""
    rows, last = [], ""
    for row in results["rows"]:
        shape, seconds, ratio = row["shape"], row["seconds"]["median"], row["ratio"]
        sizes = f"{shape['place']}: {shape['rows']} x {shape['heads']} x {shape['tokens']:,} x {shape['channels']}"
        rows.append(
            [
                sizes if sizes != last else "",
                row["subject"],
                f"{1000 * seconds:.0f}",
                f"{row['operations'] / seconds / 1e9:.0f}",
                f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})",
                f"{row['sqnr']:.0f} dB",
            ]
        )
        last = sizes
    head = ["rows x heads x tokens x channels", "", "ms, median", "GOP/s", f"against {REFERENCE}", "SQNR"]
    return markdown_table(head, rows)


def _inputs(shape: Shape) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(0)
    size = (shape.rows, shape.tokens, shape.heads * shape.channels)
    return [random.standard_normal(size, np.float32) for _ in range(3)]


def _sqnr(name: str, shape: Shape) -> float:
    """Return the SQNR in dB of the first 64 tokens of the first head, against float64."""
    small = Shape(1, shape.tokens, 1, shape.channels, shape.place)
    q, k, v = (array[0].astype(np.float64) for array in _inputs(small))
    scores = q[:64] @ k.T * shape.channels**-0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = weights / weights.sum(-1, keepdims=True) @ v
    return compare_tensors(exact, _SUBJECTS[name](small, 1)()[0, :64]).sqnr


Compute = Callable[[], NDArray[Any]]


def _openvino(precision: str, *, is_quantised: bool = False) -> Callable[[Shape, int], Compute]:
    def prepare(shape: Shape, threads: int) -> Compute:
        import openvino
        from openvino import opset13 as ops

        inputs = _inputs(shape)
        split = ops.constant(np.array([shape.rows, shape.tokens, shape.heads, shape.channels]))

        def heads(number: int, scale: float, order: list[int], *, is_rounded: bool = False) -> Any:
            parameters.append(ops.parameter(list(inputs[number].shape), np.float32))
            tensor = ops.transpose(ops.reshape(parameters[-1], split, False), np.array(order))
            tensor = ops.multiply(tensor, np.float32(scale)) if scale != 1 else tensor
            end = np.float32(np.abs(inputs[number]).max() * scale)
            return ops.fake_quantize(tensor, -end, end, -end, end, 256) if is_rounded else tensor

        parameters: list[Any] = []
        root = shape.channels**-0.25
        queries = heads(0, root, [0, 2, 1, 3], is_rounded=is_quantised)
        scores = ops.matmul(queries, heads(1, root, [0, 2, 3, 1], is_rounded=is_quantised), False, False)
        weighted = ops.matmul(ops.softmax(scores, 3), heads(2, 1.0, [0, 2, 1, 3]), False, False)
        joined = ops.reshape(ops.transpose(weighted, np.array([0, 2, 1, 3])), np.array(inputs[0].shape), False)
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        compiled = openvino.Core().compile_model(openvino.Model([joined], parameters), "CPU", settings)
        request = compiled.create_infer_request()
        return lambda: np.asarray(request.infer(inputs, share_inputs=True)[0])

    return prepare


def _torch(precision: str) -> Callable[[Shape, int], Compute]:
    def prepare(shape: Shape, threads: int) -> Compute:
        import torch

        torch.set_num_threads(threads)
        dtype = torch.float32 if precision == "f32" else torch.bfloat16
        q, k, v = (
            torch.from_numpy(array).to(dtype).reshape(*array.shape[:2], shape.heads, shape.channels).transpose(1, 2)
            for array in _inputs(shape)
        )

        def attend() -> NDArray[Any]:
            with torch.inference_mode():
                joined = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return np.asarray(joined.float().numpy())

        return attend

    return prepare


def _ours(shape: Shape, threads: int) -> Compute:
    q, k, v = _inputs(shape)
    return lambda: int8_attention(q, k, v, shape.heads, shape.channels**-0.5, threads=threads)


_SUBJECTS: Mapping[str, Callable[[Shape, int], Compute]] = {
    "torch, f32": _torch("f32"),
    "torch, bf16": _torch("bf16"),
    "OpenVINO, f32": _openvino("f32"),
    "OpenVINO, bf16": _openvino("bf16"),
    REFERENCE: _openvino("bf16", is_quantised=True),
    OURS: _ours,
}


def _factory(place: int, name: str) -> GeneratorFactory:
    return lambda threads: _SUBJECTS[name](SHAPES[place], threads)


if __name__ == "__main__":
    import sys

    if len(sys.argv) > 1:
        run_child({f"{place} {name}": _factory(place, name) for place in range(len(SHAPES)) for name in _SUBJECTS})
    else:
        main()
