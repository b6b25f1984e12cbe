"""Seconds of a picture by variants of the U-Net, each faster than the one before, and the time of its components."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from time import monotonic
from typing import Any, TypeAlias

import torch
from diffusers.models import attention_processor as processors
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor

from benchmarks.gpu import networks
from benchmarks.gpu.timing import median_seconds, run_seconds
from stillhouse.backends.kernels.guided_step import guided_step
from stillhouse.backends.kernels.swap import swap_modules
from stillhouse.backends.torch_device import place_module
from stillhouse.backends.torch_graphs import CudaGraphModule, as_tuple
from stillhouse.backends.torch_quantize import quantize
from stillhouse.measure.clock import summarise
from stillhouse.pipelines.tiled_decode import decode_tiled

STEPS = 50
_STEPS_TIMED, _FEW, _WHOLE, _WARM = 20, 3, 3, 3
"""Steps that are timed one by one; the same of variants that take a second for each; whole pictures of the variants
that are measured first; and warm-up steps."""
Inputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Any]
"""See `networks.inputs`."""


@dataclass(frozen=True, slots=True)
class UNetVariant:
    """A way to run a U-Net.

    Args:
        name: in tables.
        attention: of diffusers' processors.
        channels_last: memory format.
        fused: with the fused kernels, the sampler's step included.
        fused_qkv: queries, keys and values of an attention by one product.
        compiled: by torch.compile.
        graphs: replayed as a CUDA graph.
        quantized: linear layers in fp8, by torchao.
        offloaded: weights stay in the processor's memory, and are copied layer by layer.
    """

    name: str
    attention: str = "sdpa"
    channels_last: bool = False
    fused: bool = False
    fused_qkv: bool = False
    compiled: bool = False
    graphs: bool = False
    quantized: bool = False
    offloaded: bool = False


UNET_VARIANTS = (
    UNetVariant("vanilla attention", "vanilla"),
    UNetVariant("sliced attention", "sliced"),
    UNetVariant("SDPA, weights from the processor's memory", offloaded=True),
    UNetVariant("SDPA"),
    UNetVariant("SDPA, channels last", channels_last=True),
    UNetVariant("+ fused kernels", channels_last=True, fused=True),
    UNetVariant("+ fused QKV", channels_last=True, fused=True, fused_qkv=True),
    UNetVariant("+ CUDA graphs", channels_last=True, fused=True, fused_qkv=True, graphs=True),
    UNetVariant("plain torch.compile", compiled=True),
    UNetVariant("torch.compile, channels last", channels_last=True, compiled=True),
    UNetVariant(
        "torch.compile, channels last, fused kernels and QKV, CUDA graphs",
        channels_last=True,
        fused=True,
        fused_qkv=True,
        compiled=True,
        graphs=True,
    ),
)
_PLAIN, _GRAPHS = UNET_VARIANTS[3], UNET_VARIANTS[7]
COMPILED, _LAST, _ALL = UNET_VARIANTS[8:]
SHORT_VARIANTS = (_PLAIN, _GRAPHS, _ALL)
"""Variants that are measured for every dtype and number of pictures."""
SDXL_VARIANTS = (_PLAIN, _GRAPHS, _LAST, _ALL)
"""Variants of XL, each of which takes as long as five of SD 1.5."""
FP8 = UNetVariant(
    "the same with linear layers in fp8", channels_last=True, fused=True, compiled=True, graphs=True, quantized=True
)
_ORDER = (_PLAIN, COMPILED, _ALL, _GRAPHS)
"""Variants that are measured first, and several times for one picture."""
_TILED_DECODER = "decoder, in tiles of half the side"
REGIONAL = ("SDXL",)
"""Models that are compiled block by block: as a whole they take minutes."""


class TextAndDecoder:
    """The text encoders and the decoder of a picture.

    Args:
        model: name of its shape.
        device, dtype: of all networks.
        images: pictures.
        fast: with kernels and graphs.
    """

    def __init__(self, model: str, device: str, dtype: torch.dtype, images: int, *, fast: bool) -> None:
        shape = networks.MODEL_SHAPES[model]
        self._ids = torch.zeros(2 * images, networks.TOKENS, dtype=torch.int64, device=device)
        self._encoders: list[Callable[..., Any]] = []
        for text in shape.texts:
            self._encoders.append(partial(_first_output, networks.text_encoder(text, device, dtype)))
        autoencoder = networks.decoder(shape, device, dtype)
        self._decoder: Callable[..., Any] = partial(_decode, autoencoder)
        if fast:
            swap_modules(autoencoder.to(memory_format=torch.channels_last))
        if fast and device != "cpu":
            self._encoders = [CudaGraphModule(encoder) for encoder in self._encoders]
            self._decoder = CudaGraphModule(self._decoder)

    def encode_text(self) -> None:
        """Encode the texts."""
        for encoder in self._encoders:
            encoder(self._ids)

    def decode(self, latents: Tensor) -> None:
        """Decode one picture at a time, as a server does."""
        for number in range(len(latents)):
            self._decoder(latents[number : number + 1])


def _first_output(network: Any, ids: Tensor) -> Any:
    return network(ids)[0]


def _decode(autoencoder: Any, latents: Tensor) -> Any:
    return autoencoder.decode(latents, return_dict=False)[0]


@dataclass(slots=True)
class GuidedLoop:
    """The denoising loop of a batch of guided pictures.

    Args:
        unet: of a variant.
        inputs: of its rows, unconditional and conditional ones alternating.
        images: pictures.
        fused: whether guidance and step are one kernel.
    """

    unet: Callable[..., Any]
    inputs: Inputs
    images: int
    fused: bool
    latents: Tensor = field(init=False)
    _weights: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.latents = self.inputs[0][: self.images].clone()
        device = self.latents.device
        # Guidance 7.5 and a DDIM step; these numbers keep latents finite for any output.
        weights = torch.tensor([0.99, 0.01, 0.0, 0.5, 0.49, 7.5], device=device)
        self._weights = weights.expand(self.images, -1).contiguous()

    def step(self) -> None:
        """Run one evaluation and one step."""
        _, timesteps, text, added = self.inputs
        rows = self.latents.repeat_interleave(2, dim=0)
        output = as_tuple(self.unet(rows, timesteps, text, *(added or {}).values()))[0]
        if self.fused:
            self.latents, _ = guided_step(self.latents, output, None, self._weights)
            return
        unconditional, conditional = output.view(self.images, 2, *output.shape[1:]).unbind(1)
        guided = unconditional + 7.5 * (conditional - unconditional)
        clean = 0.99 * self.latents + 0.01 * guided
        self.latents = 0.5 * self.latents + 0.49 * clean

    def run_steps(self, steps: int) -> None:
        """Run so many steps."""
        for _ in range(steps):
            self.step()


def measure_variants(
    model: str,
    device: str,
    dtype: torch.dtype,
    images: int,
    is_in_time: Callable[[], bool],
    steps: int = STEPS,
    variants: Sequence[UNetVariant] = UNET_VARIANTS,
) -> Iterator[dict[str, Any]]:
    """Return a row for each variant while there is time; a failure is a row with its reason.

    For one picture the row has the SQNR of an evaluation against the same weights in float32.
    """
    shape = networks.MODEL_SHAPES[model]
    network = networks.unet(shape, device, dtype)
    torch.manual_seed(0)
    inputs = networks.inputs(shape, 2 * images, device, dtype)
    exact = float32_output(network, inputs) if images == 1 else None
    for variant in sorted(variants, key=_measure_order):
        row = {"model": model, "rung": variant.name, "dtype": str(dtype).removeprefix("torch."), "images": images}
        row["place"] = UNET_VARIANTS.index(variant) if variant in UNET_VARIANTS else len(UNET_VARIANTS)
        if device == "cpu" and (variant.graphs or variant.compiled):
            continue
        if not is_in_time():
            yield {**row, "reason": "the time was up"}
            continue
        began = monotonic()
        try:
            with _borrow_network(network, variant, device) as borrowed:
                measured = _measure(model, borrowed, variant, inputs, exact, images, steps)
            yield {**row, **measured, "spent": monotonic() - began}
        except Exception as error:  # out of memory, or a compiler error: a row too
            yield {**row, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}
        borrowed = None  # frees the copy of a failed variant
        torch._dynamo.reset()
        if device != "cpu":
            with suppress(RuntimeError):  # of a broken capture
                torch.cuda.empty_cache()


def _measure_order(variant: UNetVariant) -> int:
    """Return the order of measuring, should time be short. Offloaded variants are last."""
    return _ORDER.index(variant) if variant in _ORDER else len(_ORDER) + variant.offloaded


@contextmanager
def _borrow_network(network: Any, variant: UNetVariant, device: str) -> Iterator[Any]:
    """Yield the network, or for variants that change its weights a copy, for which it leaves the GPU."""
    if not (variant.quantized or variant.offloaded):
        yield network
        return
    network.to("cpu")
    try:
        copy = deepcopy(network)
        yield copy if variant.offloaded else copy.to(device)
    finally:
        network.to(device)


def float32_output(network: Any, inputs: Inputs) -> Tensor:
    """Return the output of the same weights in float32 with plain attention."""
    latents, timesteps, text, added = inputs
    conditions = {name: tensor.float() for name, tensor in (added or {}).items()}
    module = deepcopy(network).float()
    _set_attention(module, "vanilla")
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact: Tensor = _run_unet(
            module, tuple(conditions), latents.float(), timesteps, text.float(), *conditions.values()
        )
    return exact


def _measure(
    model: str, network: Any, variant: UNetVariant, inputs: Inputs, exact: Tensor | None, images: int, steps: int
) -> Mapping[str, Any]:
    device = inputs[0].device.type
    stages = TextAndDecoder(model, device, inputs[0].dtype, images, fast=variant.fused)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    with _configured(network, variant, model in REGIONAL, inputs) as module, _without_gradients(variant):
        runs = _WHOLE if variant in _ORDER and images == 1 else int(device == "cpu" or not variant.offloaded)
        row = measure_picture(module, inputs, exact, stages, images, steps, fused=variant.fused, runs=runs)
    return {**row, "gpu_bytes": 0 if device == "cpu" else torch.cuda.max_memory_allocated()}


def measure_picture(
    module: Callable[..., Any],
    inputs: Inputs,
    exact: Tensor | None,
    stages: TextAndDecoder,
    images: int,
    steps: int,
    *,
    fused: bool,
    runs: int = 1,
) -> dict[str, Any]:
    """Measure the seconds of a step and of a picture from text to pixels, and the SQNR against `exact`.

    Args:
        module: takes latents, timesteps, text and XL's added conditions, and returns the U-Net's output.
        inputs: two rows for each picture.
        exact: expected output for these; None: it is not compared.
        stages: text encoders and decoder.
        images: pictures.
        steps: of a picture.
        fused: whether guidance and step are one kernel.
        runs: whole pictures that are timed; 0: the seconds are computed from the stages and a few steps.
    """
    device = inputs[0].device.type
    picture = GuidedLoop(module, inputs, images, fused)

    def run_picture(steps: int) -> None:
        stages.encode_text()
        picture.run_steps(steps)
        stages.decode(picture.latents)

    steady = run_seconds(picture.step, device, _STEPS_TIMED if runs else _FEW, _WARM if runs else 1)
    row: dict[str, Any] = {"steps": steps, "step_seconds": median(steady), "step": asdict(summarise(steady))}
    run_picture(0)
    if runs:
        row["picture"] = asdict(summarise(run_seconds(partial(run_picture, steps), device, runs, warm_up=0)))
        row["seconds"] = row["picture"]["median"]
    else:
        row["seconds"] = (
            median_seconds(partial(run_picture, 0), device, runs=1, warm_up=0) + steps * row["step_seconds"]
        )
    if exact is not None:
        latents, timesteps, text, added = inputs
        output = as_tuple(module(latents, timesteps, text, *(added or {}).values()))[0].float()
        row["sqnr"] = 10 * float(torch.log10(exact.square().mean() / (output - exact).square().mean()))
    return row


def compile_variant(model: str, device: str, dtype: torch.dtype, images: int, variant: UNetVariant) -> None:
    """Run one evaluation of a variant, so that its compiled code is on disk."""
    shape = networks.MODEL_SHAPES[model]
    network = networks.unet(shape, device, dtype)
    inputs = networks.inputs(shape, 2 * images, device, dtype)
    with _configured(network, variant, model in REGIONAL, inputs) as module, _without_gradients(variant):
        GuidedLoop(module, inputs, images, variant.fused).step()


def _without_gradients(variant: UNetVariant) -> Any:
    """Return a context without gradients. torchao's weights do not work in inference mode.

    Code that is compiled in inference mode is compiled again for tensors made outside of it, as those of the comparison
    are.
    """
    return torch.no_grad() if variant.quantized or variant.compiled else torch.inference_mode()


@contextmanager
def _configured(network: Any, variant: UNetVariant, regional: bool, inputs: Inputs) -> Iterator[Callable[..., Any]]:
    """Yield the network as a variant runs it, and restore it afterwards, except for weights in fp8."""
    swapped = None
    torch.backends.cudnn.benchmark = True
    module: Callable[..., Any] = partial(_run_unet, network, tuple((inputs[3] or {}).keys()))
    try:
        network.to(memory_format=torch.channels_last if variant.channels_last else torch.contiguous_format)
        _set_attention(network, variant.attention)
        if variant.fused_qkv:
            network.fuse_qkv_projections()
        if variant.quantized:
            quantize(network, "fp8", "cuda")
        swapped = swap_modules(network) if variant.fused else None
        if variant.offloaded:
            place_module(network.to("cpu"), inputs[0].device.type, "cpu" if inputs[0].is_cuda else "none")
        if variant.compiled and regional:
            for block in _transformer_blocks(network):
                block.compile(fullgraph=True, dynamic=False)
        elif variant.compiled:
            module = torch.compile(module, dynamic=False)
        yield CudaGraphModule(module) if variant.graphs else module
    finally:
        if swapped:
            swapped.undo()
        if variant.fused_qkv:
            _unfuse_projections(network)
        for block in _transformer_blocks(network):
            block._compiled_call_impl = None


def _transformer_blocks(network: Any) -> list[Any]:
    return [block for block in network.modules() if isinstance(block, BasicTransformerBlock)]


def _unfuse_projections(network: Any) -> None:
    network.unfuse_qkv_projections()
    for block in network.modules():
        for name in ("to_qkv", "to_kv"):
            if hasattr(block, name):
                delattr(block, name)
                block.fused_projections = False


def _run_unet(
    network: Any, names: tuple[str, ...], latents: Tensor, timesteps: Tensor, text: Tensor, *added: Tensor
) -> Any:
    conditions = dict(zip(names, added, strict=True)) or None
    return network(latents, timesteps, encoder_hidden_states=text, added_cond_kwargs=conditions, return_dict=False)[0]


def _set_attention(network: Any, attention: str) -> None:
    kinds: Mapping[str, Callable[[Any], Any]] = {
        "sdpa": lambda block: processors.AttnProcessor2_0(),
        "vanilla": lambda block: processors.AttnProcessor(),
        "sliced": lambda block: processors.SlicedAttnProcessor(max(1, block.heads // 2)),
    }
    for block in network.modules():
        if isinstance(block, processors.Attention):
            block.set_processor(kinds[attention](block))


def _decode_tiled(autoencoder: Any, latents: Tensor) -> Any:
    """Decode in tiles of half the side, as a pipeline decodes pictures above its tile size."""

    def decode(tile: Any) -> Any:
        signal: Any = _decode(autoencoder, torch.from_numpy(tile[None]).to(latents)).float().cpu().numpy()[0]
        return signal

    scale = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    return decode_tiled(decode, latents[0].float().cpu().numpy(), latents.shape[-1] // 2, scale)


def measure_components(
    model: str, device: str, dtype: torch.dtype, is_in_time: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Measure each network for one guided picture, plain and with kernels and graphs; one evaluation of the U-Net."""
    torch.backends.cudnn.benchmark = True
    shape = networks.MODEL_SHAPES[model]
    ids = torch.zeros(2, networks.TOKENS, dtype=torch.int64, device=device)
    latents, timesteps, text, added = networks.inputs(shape, 2, device, dtype)

    def encoding(number: int) -> tuple[Any, Callable[..., Any], tuple[Tensor, ...]]:
        encoder = networks.text_encoder(shape.texts[number], device, dtype)
        return encoder, lambda tokens: encoder(tokens)[0], (ids,)

    def denoising() -> tuple[Any, Callable[..., Any], tuple[Tensor, ...]]:
        unet = networks.unet(shape, device, dtype).to(memory_format=torch.channels_last)
        extra = added or {}
        return unet, partial(_run_unet, unet, tuple(extra)), (latents, timesteps, text, *extra.values())

    def decoding(tiles: bool = False) -> tuple[Any, Callable[..., Any], tuple[Tensor, ...]]:
        autoencoder = networks.decoder(shape, device, dtype).to(memory_format=torch.channels_last)
        return autoencoder, partial(_decode_tiled if tiles else _decode, autoencoder), (latents[:1],)

    names = ("text encoder", "text encoder 2")[: len(shape.texts)]
    makers: dict[str, Callable[[], tuple[Any, Callable[..., Any], tuple[Tensor, ...]]]]
    makers = {name: partial(encoding, number) for number, name in enumerate(names)}
    makers |= {"U-Net, an evaluation": denoising, "decoder": decoding, _TILED_DECODER: partial(decoding, tiles=True)}
    for name, maker in makers.items():
        if not is_in_time():
            return
        network, work, arguments = maker()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode():
            row = {"model": model, "component": name, "plain": median_seconds(partial(work, *arguments), device)}
            row["gpu_bytes"] = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
            if device != "cpu" and name != _TILED_DECODER:
                swap_modules(network)
                row["fused, graphs"] = median_seconds(partial(CudaGraphModule(work), *arguments), device)
        yield row
        del network, work


def measure_batch_curve(
    model: str, device: str, dtype: torch.dtype, rows: tuple[int, ...], is_in_time: Callable[[], bool]
) -> Iterator[tuple[str, float]]:
    """Yield the seconds of one evaluation by its rows, while there is time; on a GPU with kernels and graphs."""
    torch.backends.cudnn.benchmark = True
    shape = networks.MODEL_SHAPES[model]
    network = networks.unet(shape, device, dtype).to(memory_format=torch.channels_last)
    swap_modules(network)
    for number, count in enumerate(rows):
        if number and not is_in_time():
            return
        latents, timesteps, text, added = networks.inputs(shape, count, device, dtype)
        module: Callable[..., Any] = partial(_run_unet, network, tuple((added or {}).keys()))
        if device != "cpu":
            module = CudaGraphModule(module)
        with torch.inference_mode():
            work = partial(module, latents, timesteps, text, *(added or {}).values())
            yield str(count), median_seconds(work, device)
