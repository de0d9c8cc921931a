"""The original latent-diffusion UNet in plain functions and float64, from its architecture; nothing of diffusers.

One network in three versions: MVDream (cameras, self-attention over the views of a rig), Zero-1-to-3 (eight heads
everywhere), Wonder3D (both, and an attention between the two halves of the rows).
"""

import math

import torch
from torch.nn.functional import conv2d, gelu, group_norm, interpolate, layer_norm, linear, silu


def ldm_forward(state, x, t, context, labels=None, *, widths, blocks, attends, heads=None, views=1):
    """x (N, C, h, w), t (N,), context (N, L, D), labels (N, K) or None -> (N, 4, h, w).

    heads: of every attention; None means 64 channels a head. views: how many consecutive rows see each other.
    """
    w = {k.removeprefix("model.diffusion_model."): v.double() for k, v in state.items()}
    x, context = x.double(), context.double()

    def lin(name, x):
        return linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def conv(name, x, stride=1):
        weight = w[f"{name}.weight"]
        return conv2d(x, weight, w[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    def gn(name, x, eps):
        return group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def ln(name, x):
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def resnet(name, x):
        h = conv(f"{name}.in_layers.2", silu(gn(f"{name}.in_layers.0", x, 1e-5)))
        h = h + lin(f"{name}.emb_layers.1", silu(emb))[:, :, None, None]
        h = conv(f"{name}.out_layers.3", silu(gn(f"{name}.out_layers.0", h, 1e-5)))
        return h + (conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in w else x)

    def attention(name, x, context):
        q, k, v = (lin(f"{name}.to_{p}", y) for p, y in (("q", x), ("k", context), ("v", context)))
        n, length, c = q.shape
        each = c // heads if heads else 64
        q, k, v = (y.view(n, y.shape[1], c // each, each).transpose(1, 2) for y in (q, k, v))
        p = (q @ k.transpose(-1, -2) / each**0.5).softmax(-1)
        return lin(f"{name}.to_out.0", (p @ v).transpose(1, 2).reshape(n, length, c))

    def project(name, x):
        """1x1 convolution or matrix, on tokens."""
        weight = w[f"{name}.weight"]
        return linear(x, weight.flatten(1), w[f"{name}.bias"])

    def transformer(name, x):
        n, c, height, width = x.shape
        h = project(f"{name}.proj_in", gn(f"{name}.norm", x, 1e-6).flatten(2).transpose(1, 2))
        block = f"{name}.transformer_blocks.0"
        together = h.reshape(n // views, views * height * width, c)
        y = ln(f"{block}.norm1", together)
        h = (together + attention(f"{block}.attn1", y, y)).reshape(n, height * width, c)
        if f"{block}.norm_joint_mid.weight" in w:
            joined = []
            for i in range(n):  # a row, and the same row of the other half
                both = torch.cat([h[i], h[(i + n // 2) % n]])[None]
                y = ln(f"{block}.norm_joint_mid", both)
                joined.append((both + attention(f"{block}.attn_joint_mid", y, y))[0, : height * width])
            h = torch.stack(joined)
        h = h + attention(f"{block}.attn2", ln(f"{block}.norm2", h), context)
        value, gate = lin(f"{block}.ff.net.0.proj", ln(f"{block}.norm3", h)).chunk(2, -1)
        h = h + lin(f"{block}.ff.net.2", value * gelu(gate))
        return x + project(f"{name}.proj_out", h).transpose(1, 2).reshape(n, c, height, width)

    half = widths[0] // 2
    angles = t[:, None].double() * torch.exp(-math.log(10000) * torch.arange(half).double() / half)
    emb = lin("time_embed.2", silu(lin("time_embed.0", torch.cat([angles.cos(), angles.sin()], -1))))
    if labels is not None:
        emb = emb + lin("camera_embed.2", silu(lin("camera_embed.0", labels.double())))

    h = conv("input_blocks.0.0", x)
    skips, i = [h], 1
    for level in range(len(widths)):
        for _ in range(blocks):
            h = resnet(f"input_blocks.{i}.0", h)
            h = transformer(f"input_blocks.{i}.1", h) if attends[level] else h
            skips.append(h)
            i += 1
        if level < len(widths) - 1:
            h = conv(f"input_blocks.{i}.0.op", h, stride=2)
            skips.append(h)
            i += 1
    h = resnet("middle_block.2", transformer("middle_block.1", resnet("middle_block.0", h)))
    i = 0
    for level in reversed(range(len(widths))):
        for position in range(blocks + 1):
            h = resnet(f"output_blocks.{i}.0", torch.cat([h, skips.pop()], 1))
            h = transformer(f"output_blocks.{i}.1", h) if attends[level] else h
            if level and position == blocks:
                up = interpolate(h, scale_factor=2.0, mode="nearest")
                h = conv(f"output_blocks.{i}.{2 if attends[level] else 1}.conv", up)
            i += 1
    return conv("out.2", silu(gn("out.0", h, 1e-5)))
