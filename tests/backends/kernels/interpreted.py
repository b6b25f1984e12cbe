"""Runs every case in Triton's interpreter and prints how far each is from float64, a line of JSON each.

A process of its own, because Triton decides once, when it is imported, whether it interprets:
`TRITON_INTERPRET=1 python -m tests.backends.kernels.interpreted`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from stillhouse.backends.kernels import cast, geglu, group_norm, guided_step, launch, layer_norm, silu
from stillhouse.backends.torch_arrays import TorchArrays
from stillhouse.diffusion import (
    INITIAL_STEP,
    NUMPY,
    Arrays,
    Branch,
    Guidance,
    SamplingPlan,
    Schedule,
    Trajectory,
    advance,
    classifier_free,
    gaussian,
    make_grid,
)
from tests.backends.kernels.cases import ALONE, CASES, GROUPS, TAILS, TRAJECTORIES, Case
from tests.diffusion.plans import PIX2PIX

EPS = 1e-5
FUSED: Arrays = TorchArrays("cpu", guided_step.guided_step)
KINDS: list[tuple[str, Guidance]] = [
    ("ddim", classifier_free(7.5)),
    ("dpmpp_2m", classifier_free(5.0)),
    ("dpmpp_2m", Guidance()),
    ("dpmpp_2m", PIX2PIX),
    ("unipc", classifier_free(3.0)),
    ("euler_ancestral", Guidance()),
    ("euler", PIX2PIX),
    ("heun", classifier_free(4.0)),
]
"""Sampler and guidance of pictures of one, two and three rows."""


def main() -> None:
    """Run them all."""
    assert launch.INTERPRETED
    for case in CASES:
        ours, expected = run_case(case)
        line = {
            "name": case.name,
            "error": max(map(relative_error, ours, expected)),
            "finite": all(bool(torch.isfinite(tensor).all()) for tensor in ours),
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in ours],
            "shapes": [list(tensor.shape) for tensor in ours],
            "channels_last": all(
                tensor.is_contiguous(memory_format=torch.channels_last) for tensor in ours if tensor.ndim == 4
            ),
        }
        print(json.dumps(line), flush=True)
    print(json.dumps({"name": TRAJECTORIES, "error": trajectory_error()}), flush=True)
    print(json.dumps({"name": ALONE, "different": differences_from_alone()}), flush=True)
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
    """Return how far the kernel moves pictures of all kinds from where NumPy's arithmetic moves them."""
    ends = []
    for arrays in (FUSED, NUMPY):
        trajectories = [_trajectory(seed, arrays) for seed in range(len(KINDS))]
        while waiting := [trajectory for trajectory in trajectories if not trajectory.is_done]:
            advance(waiting, _linear, arrays)
        ends.append([torch.from_numpy(arrays.to_numpy(trajectory.latents)) for trajectory in trajectories])
    return max(relative_error(ours, theirs.double()) for ours, theirs in zip(*ends, strict=True))


def differences_from_alone() -> list[int]:
    """Return which pictures the kernel moves to other bits in a batch of one, two and three rows than alone."""
    together, alone = ([_trajectory(seed, FUSED) for seed in range(len(KINDS))] for _ in range(2))
    different = set()
    while waiting := [seed for seed, trajectory in enumerate(together) if not trajectory.is_done]:
        advance([together[seed] for seed in waiting], _linear, FUSED)
        for seed in waiting:
            advance([alone[seed]], _linear, FUSED)
            latents: Any = (together[seed].latents, alone[seed].latents)
            if not torch.equal(*latents):
                different.add(seed)
    return sorted(different)


def _trajectory(seed: int, arrays: Arrays) -> Trajectory:
    sampler, guidance = KINDS[seed]
    plan = SamplingPlan(
        make_grid(Schedule(), 5, sigmas="karras"),
        sampler,
        "v_prediction",
        replace(guidance, interval=(0.0, 0.7)),
        seed=seed,
    )
    branches = {
        name: Branch({"text": arrays.to_device(gaussian(seed, step, (1,)))})
        for step, name in enumerate(("conditional", "unconditional", "image"), 1)
    }
    return Trajectory(plan, arrays.to_device(gaussian(seed, INITIAL_STEP, (4, 6, 7))), branches)


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
    """All pictures with two rows; or the first with all branches, the second with one row less, and so on in turns."""
    pictures, are_pairs, terms = len(z), case.options.get("pairs", False), case.options.get("terms", 1)
    weights = torch.randn(pictures, 5 + terms, generator=torch.Generator().manual_seed(1))
    table, count = [], 0
    for picture in range(pictures):
        differences = terms if are_pairs else terms - picture % (terms + 1)
        table.append([count + branch if branch <= differences else count for branch in range(terms + 1)])
        weights[picture, 5 + differences :] = 0
        count += differences + 1
    output = random_tensor(count, *case.shape[1:])
    previous = random_tensor(*case.shape) if case.options["previous"] else None
    rows = None if are_pairs else torch.tensor(table, dtype=torch.int32)
    exact = None if previous is None else previous.double()
    expected = guided_step.reference(z.double(), output.double(), rows, weights, exact)
    return guided_step.guided_step(z, output, rows, weights, previous), expected


if __name__ == "__main__":
    main()
