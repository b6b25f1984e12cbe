"""Fused kernels in OpenAI Triton for what compilers leave in pieces, each beside its plain torch reference.

    cast          another dtype                               reads it once, writes it once
    silu          x * sigmoid(x)                              the same
    geglu         both halves of a projection, the GELU and the product in one pass
    group_norm    GroupNorm over NHWC, with SiLU behind it    a strip at once where one multiprocessor holds it
    layer_norm    LayerNorm, with the residual's sum before it
    guided_step   classifier-free guidance, the clean picture and the sampler's move in one pass

Each file tells the bytes that must move, which is what its speed is measured by. Each kernel is a `torch.library`
custom op, so torch.compile keeps it as it is; on tensors of a processor the op computes its reference, unless
TRITON_INTERPRET=1 stood in the environment before the file was imported. `swap` puts them into a loaded U-Net, and
takes them out again. torch and Triton are imported here, so these files are imported inside functions only.
"""
