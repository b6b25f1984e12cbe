"""The ladder: one picture by one way after the other, each a rung faster, and where its time goes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers.models import attention_processor as processors
from torch import Tensor

from benchmarks.gpu import networks
from benchmarks.gpu.timing import long
from stillhouse.backends.kernels.guided_step import guided_step
from stillhouse.backends.kernels.swap import swap
from stillhouse.backends.torch_graphs import Replayed, together

STEPS = 50


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to run a U-Net.

    Args:
        name: as tables call it.
        attention: of diffusers' processors.
        last: channels last.
        fused: with the fused kernels, the sampler's step included.
        compiled: by torch.compile: full, regional, or not.
        graphs: replayed as a CUDA graph.
    """

    name: str
    attention: str = "sdpa"
    last: bool = False
    fused: bool = False
    compiled: str = ""
    graphs: bool = False


RUNGS = (
    Rung("vanilla attention", "vanilla"),
    Rung("sliced attention", "sliced"),
    Rung("SDPA"),
    Rung("SDPA, channels last", last=True),
    Rung("+ fused kernels", last=True, fused=True),
    Rung("+ fused kernels, CUDA graphs", last=True, fused=True, graphs=True),
    Rung("plain torch.compile", compiled="full"),
    Rung("torch.compile, channels last", last=True, compiled="full"),
    Rung(
        "torch.compile, channels last, fused kernels, CUDA graphs", last=True, fused=True, compiled="full", graphs=True
    ),
)
REGIONAL = ("SDXL",)
"""Models that are compiled block by block: as a whole they take minutes."""


@dataclass(slots=True)
class Picture:
    """A batch of guided pictures in the making, on one rung.

    Args:
        unet: as the rung runs it.
        inputs: of its rows, the unconditional ones and the others in turns.
        images: pictures.
        fused: whether guidance and step are one kernel.
    """

    unet: Callable[..., Any]
    inputs: tuple[Tensor, Tensor, Tensor, Any]
    images: int
    fused: bool
    latents: Tensor = field(init=False)
    _rows: Tensor = field(init=False)
    _weights: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.latents = self.inputs[0][: self.images].clone()
        device = self.latents.device
        self._rows = torch.arange(2 * self.images, dtype=torch.int32, device=device).view(-1, 2)
        # Guidance 7.5 and a step of DDIM; the numbers keep latents finite, whatever the random network says.
        told = torch.tensor([7.5, 0.99, 0.01, 0.0, 0.5, 0.49], device=device)
        self._weights = told.expand(self.images, -1).contiguous()

    def step(self) -> None:
        """One evaluation and one step."""
        _, timesteps, text, added = self.inputs
        rows = self.latents.repeat_interleave(2, dim=0)
        output = together(self.unet(rows, timesteps, text, *(added or {}).values()))[0]
        if self.fused:
            self.latents, _ = guided_step(self.latents, output, self._rows, self._weights)
            return
        without, prompted = output.view(self.images, 2, *output.shape[1:]).unbind(1)
        guided = without + 7.5 * (prompted - without)
        clean = 0.99 * self.latents + 0.01 * guided
        self.latents = 0.5 * self.latents + 0.49 * clean

    def walk(self, steps: int) -> None:
        """So many steps."""
        for _ in range(steps):
            self.step()


def rows(
    model: str,
    device: str,
    dtype: torch.dtype,
    images: int,
    is_in_time: Callable[[], bool],
    steps: int = STEPS,
) -> Iterator[dict[str, Any]]:
    """A row for each rung, as long as there is time; what fails is a row with its reason."""
    shape = networks.SHAPES[model]
    network = networks.unet(shape, device, dtype)
    for rung in RUNGS:
        told = {"model": model, "rung": rung.name, "dtype": str(dtype).removeprefix("torch."), "images": images}
        if (rung.graphs or rung.compiled) and device == "cpu":
            continue
        if not is_in_time():
            yield {**told, "reason": "the time was up"}
            continue
        try:
            yield {**told, **_measured(network, shape, rung, model in REGIONAL, device, dtype, images, steps)}
        except Exception as error:  # out of memory, or a compiler that gives up: a row all the same
            yield {**told, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}
        finally:
            torch._dynamo.reset()
            if device != "cpu":
                torch.cuda.empty_cache()


def _measured(
    network: Any,
    shape: networks.Shape,
    rung: Rung,
    regional: bool,
    device: str,
    dtype: torch.dtype,
    images: int,
    steps: int,
) -> Mapping[str, Any]:
    torch.manual_seed(0)
    given = networks.inputs(shape, 2 * images, device, dtype)
    network.to(memory_format=torch.channels_last if rung.last else torch.contiguous_format)
    _attend(network, rung.attention)
    swapped = swap(network) if rung.fused else None
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    names = tuple((given[3] or {}).keys())
    module: Callable[..., Any] = partial(_said, network, names)
    try:
        with torch.inference_mode():
            if rung.compiled and regional:
                network.compile_repeated_blocks(fullgraph=True)
            elif rung.compiled:
                module = torch.compile(module, dynamic=False)
            if rung.graphs:
                module = Replayed(module)
            picture = Picture(module, given, images, rung.fused)
            walked = long(lambda: picture.walk(steps), device, runs=3)
            step = long(picture.step, device, runs=10)
    finally:
        if swapped:
            swapped.undo()
    peak = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
    return {"seconds": walked, "step_seconds": step, "steps": steps, "gpu_bytes": peak}


def _said(
    network: Any, names: tuple[str, ...], latents: Tensor, timesteps: Tensor, text: Tensor, *added: Tensor
) -> Any:
    told = dict(zip(names, added, strict=True)) or None
    return network(latents, timesteps, encoder_hidden_states=text, added_cond_kwargs=told, return_dict=False)[0]


def _attend(network: Any, attention: str) -> None:
    kinds: Mapping[str, Callable[[Any], Any]] = {
        "sdpa": lambda block: processors.AttnProcessor2_0(),
        "vanilla": lambda block: processors.AttnProcessor(),
        "sliced": lambda block: processors.SlicedAttnProcessor(max(1, block.heads // 2)),
    }
    for block in network.modules():
        if isinstance(block, processors.Attention):
            block.set_processor(kinds[attention](block))


def components(model: str, device: str, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """What text encoder and decoder take for one picture, plain and with kernels and graphs."""
    shape = networks.SHAPES[model]
    ids = torch.zeros(2, networks.TOKENS, dtype=torch.int64, device=device)
    latents = torch.randn(1, 4, shape.side, shape.side, device=device, dtype=dtype)
    encoder = networks.text_encoder(shape, device, dtype)
    autoencoder = networks.decoder(shape, device, dtype).to(memory_format=torch.channels_last)
    works: Mapping[str, tuple[Callable[..., Any], Tensor]] = {
        "text encoder": (lambda given: encoder(given)[0], ids),
        "decoder": (lambda given: autoencoder.decode(given, return_dict=False)[0], latents),
    }
    for name, (work, given) in works.items():
        with torch.inference_mode():
            row = {"model": model, "component": name, "plain": long(partial(work, given), device)}
            if device != "cpu":
                swapped = swap(autoencoder) if name == "decoder" else None
                row["fused, graphs"] = long(partial(Replayed(work), given), device)
                if swapped:
                    swapped.undo()
        yield row


def curve(model: str, device: str, dtype: torch.dtype, rows: tuple[int, ...]) -> dict[str, float]:
    """Seconds of one evaluation by its rows, with kernels and graphs where there is a GPU."""
    shape = networks.SHAPES[model]
    network = networks.unet(shape, device, dtype).to(memory_format=torch.channels_last)
    swap(network)
    taken = {}
    for count in rows:
        latents, timesteps, text, added = networks.inputs(shape, count, device, dtype)
        module: Callable[..., Any] = partial(_said, network, tuple((added or {}).keys()))
        if device != "cpu":
            module = Replayed(module)
        with torch.inference_mode():
            work = partial(module, latents, timesteps, text, *(added or {}).values())
            taken[str(count)] = long(work, device)
    return taken
