"""Fused kernels in OpenAI Triton, each with its plain torch reference. None has been measured on a GPU yet.

    cast          another dtype                              reads and writes each element once
    silu          x * sigmoid(x)                             reads and writes each element once
    geglu         value * GELU(gate) of a projection         in one pass
    group_norm    GroupNorm over NHWC, and SiLU after it     in one pass where one multiprocessor holds a group
    layer_norm    LayerNorm, and the residual sum before it  in one pass
    guided_step   guidance, clean picture and sampler step   in one pass

Each module states the least number of bytes that its kernel must read and write, to which its speed is compared. Each
kernel is a `torch.library` custom op, which torch.compile does not change. On CPU tensors an op computes its reference,
unless TRITON_INTERPRET=1 was in the environment when the module was imported. `swap` puts the kernels into a loaded
network, and takes them out again. torch and Triton are imported here: import these modules inside functions only.
"""
