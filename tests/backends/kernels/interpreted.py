"""Runs every case in Triton's interpreter and prints how far each is from float64, a line of JSON each.

A process of its own, because Triton decides once, when it is imported, whether it interprets:
`TRITON_INTERPRET=1 python -m tests.backends.kernels.interpreted`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from stillhouse.backends.kernels import cast, geglu, group_norm, guided_step, launch, layer_norm, silu
from stillhouse.backends.torch_arrays import TorchArrays
from stillhouse.diffusion import INITIAL_STEP, NUMPY, SamplingPlan, Schedule, Trajectory, advance, gaussian, make_grid
from tests.backends.kernels.cases import CASES, GROUPS, TAILS, TRAJECTORIES, Case

EPS = 1e-5


def main() -> None:
    """Run them all."""
    assert launch.INTERPRETED
    for case in CASES:
        ours, wanted = run_case(case)
        told = {
            "name": case.name,
            "error": max(map(relative_error, ours, wanted)),
            "finite": all(bool(torch.isfinite(one).all()) for one in ours),
            "dtypes": [str(one.dtype).removeprefix("torch.") for one in ours],
            "shapes": [list(one.shape) for one in ours],
            "channels_last": all(one.is_contiguous(memory_format=torch.channels_last) for one in ours if one.ndim == 4),
        }
        print(json.dumps(told), flush=True)
    print(json.dumps({"name": TRAJECTORIES, "error": trajectory_error()}), flush=True)
    for dtype in (torch.float16, torch.bfloat16):
        name = f"{TAILS} {str(dtype).removeprefix('torch.')}"
        print(json.dumps({"name": name, "error": rounding_excess(dtype)}), flush=True)


def rounding_excess(dtype: torch.dtype) -> float:
    """By how much GELU errs more than it may where it is rounded to this dtype, and its share is 7.5e-8 off."""
    gates = torch.linspace(-6, 6, 4001).to(dtype)
    ours = geglu.geglu(torch.stack([torch.ones_like(gates), gates], dim=-1), False)[:, 0].double()
    wanted = torch.nn.functional.gelu(gates.double())
    places = 1.0 if dtype == torch.bfloat16 else 0.5
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    rounding = places * (wanted.abs() * torch.finfo(dtype).eps).clamp(min=least)
    return float(((ours - wanted).abs() - rounding - 7.6e-8 * gates.double().abs()).max())


def trajectory_error() -> float:
    """How far pictures of all kinds end, moved together by the kernel, from where NumPy's arithmetic moves them."""
    walk = make_grid(Schedule(), 5, sigmas="karras")
    kinds = [
        ("ddim", 7.5),
        ("dpmpp_2m", 5.0),
        ("dpmpp_2m", 1.0),
        ("unipc", 3.0),
        ("euler_ancestral", 1.0),
        ("heun", 4.0),
    ]
    ends = []
    arrays: Any
    for arrays in (TorchArrays("cpu", guided_step.guided_step), NUMPY):
        made = [
            Trajectory(
                SamplingPlan(walk, sampler, "v_prediction", guidance=scale, guidance_interval=(0.0, 0.7), seed=seed),
                arrays.placed(gaussian(seed, INITIAL_STEP, (4, 6, 7))),
                {"text": arrays.placed(gaussian(seed, 1, (1,)))},
                {"text": arrays.placed(gaussian(seed, 2, (1,)))},
            )
            for seed, (sampler, scale) in enumerate(kinds)
        ]
        while waiting := [one for one in made if not one.is_done]:
            advance(waiting, _linear, arrays)
        ends.append([torch.from_numpy(arrays.read(one.latents)) for one in made])
    return max(relative_error(ours, theirs.double()) for ours, theirs in zip(*ends, strict=True))


def _linear(rows: Any, timesteps: Any, conditioning: Mapping[str, Any]) -> Any:
    """A made-up network of sums and products."""
    return rows * 0.375 + conditioning["text"][:, :, None, None] + timesteps[:, None, None, None] * (1 / 4096)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """The largest error, beside the largest value."""
    return float((ours.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def run_case(case: Case) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What the kernel says, and what its reference says in float64 of the very same numbers."""
    generator = torch.Generator().manual_seed(crc32(case.name.encode()))
    dtype = getattr(torch, case.dtype)

    def random_tensor(*shape: int, mean: float = 0.0) -> Tensor:
        return (mean + torch.randn(*shape, generator=generator)).to(dtype)

    x = random_tensor(*case.shape, mean=case.options.get("mean", 0.0))
    if case.kernel == "cast":
        target = getattr(torch, case.options["to"])
        return [cast.cast(x, target)], [cast.reference(x, torch.float64)]
    if case.kernel == "silu":
        return [silu.silu(x)], [silu.reference(x.double())]
    if case.kernel == "geglu":
        tanh = case.options["tanh"]
        return [geglu.geglu(x, tanh)], [geglu.reference(x.double(), tanh)]
    if case.kernel == "guided_step":
        return _guided_step(case, x, random_tensor)
    channels = case.shape[1 if case.kernel == "group_norm" else -1]
    weight, bias = random_tensor(channels, mean=1.0), random_tensor(channels)
    exact = (weight.double(), bias.double())
    if case.kernel == "layer_norm":
        return [layer_norm.layer_norm(x, weight, bias, EPS)], [layer_norm.reference(x.double(), *exact, EPS)]
    if case.kernel == "add_layer_norm":
        residual = random_tensor(*case.shape)
        wanted = layer_norm.add_reference(x.double(), residual.double(), *exact, EPS)
        return layer_norm.add_layer_norm(x, residual, weight, bias, EPS), wanted
    groups, is_silu = GROUPS[channels], case.options["silu"]
    if way := case.options.get("way"):
        x = x.contiguous(memory_format=torch.channels_last)
        ours = group_norm.launch_group_norm(x, weight, bias, groups, EPS, is_silu, way)
    else:
        ours = group_norm.group_norm(x, weight, bias, groups, EPS, is_silu)
    return [ours], [group_norm.reference(x.double(), *exact, groups, EPS, is_silu)]


def _guided_step(case: Case, z: Tensor, random_tensor: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """All pictures guided; or the first, the third, and so on."""
    pictures, are_pairs = len(z), case.options.get("pairs", False)
    rows, count = [], 0
    for picture in range(pictures):
        rows.append([count, count + (are_pairs or picture % 2 == 0)])
        count = rows[-1][1] + 1
    output = random_tensor(count, *case.shape[1:])
    past = random_tensor(*case.shape) if case.options["past"] else None
    weights = torch.randn(pictures, 6, generator=torch.Generator().manual_seed(1))
    told = None if are_pairs else torch.tensor(rows, dtype=torch.int32)
    exact = None if past is None else past.double()
    wanted = guided_step.reference(z.double(), output.double(), told, weights, exact)
    return guided_step.guided_step(z, output, told, weights, past), wanted


if __name__ == "__main__":
    main()
