"""A small frozen UNet on a CPU: diffusers' arithmetic in a third of the operations.

A UNet of a few million weights on 16 x 16 latents does not keep the matrix units busy: most of the time goes into what
surrounds them. Here weights are reordered once instead of at every call, everything stays in channels-last layout,
normalisation and activation are one pass, residuals are added by the products that make them, and what has one input
is one product: queries, keys and values; all layers' keys and values of the text; all layers' time embeddings. Text is
padded to a multiple of 32 tokens, masked, because torch's attention is twice as slow between two. Guided calls ask the
same images twice, with a text and with none: what comes before the first attention to text is computed once for both.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jointdreamer.kernels import norm_numba as norm_kernels
from jointdreamer.kernels.channels_last import group_norm, parameters, rows
from jointdreamer.kernels.norm_numba import DTYPES, numbers

MAX_PARAMETERS = 100_000_000  # a larger one is limited by its products, and would be in memory twice
TOKENS = 32  # text is padded to multiples of this

PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "MultiViewAttnProcessor")

pointwise: Any = torch.ops.mkldnn  # oneDNN with weights in its own layout, as torch.compile calls it
PLAIN = ("none", [], "")  # name, numbers and algorithm of the activation that follows: none


def speed_up(unet: Any) -> bool:
    """Let a UNet2DConditionModel without a graph, in one of DTYPES on the CPU, run through `FastUNet`; whether it does.

    Left as it is: a UNet of another kind, with parts that `FastUNet` does not know, or large.
    """
    if unet.dtype not in DTYPES or unet.device.type != "cpu" or not knows(unet):
        return False
    unet.forward = FastUNet(unet)  # instead of the class's; the modules and their weights stay
    return True


def knows(unet: Any) -> bool:
    """Whether `FastUNet` computes what this UNet does."""
    if not (torch.backends.mkldnn.is_available() and hasattr(pointwise, "_reorder_linear_weight")):
        return False
    if unet.dtype == torch.bfloat16 and not pointwise._is_mkldnn_bf16_supported():
        return False
    blocks = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"}
    config = unet.config
    plain = {
        "center_input_sample": False, "only_cross_attention": False, "mid_block_scale_factor": 1, "act_fn": "silu",
        "dual_cross_attention": False, "addition_embed_type": None, "encoder_hid_dim": None, "time_embedding_act_fn":
        None, "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
        "cross_attention_norm": None, "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
        "attention_type": "default", "timestep_post_act": None, "time_cond_proj_dim": None, "upcast_attention": False,
        "downsample_padding": 1, "dropout": 0.0,
    }  # fmt: skip
    transformers = [block for m in unet.modules() for block in getattr(m, "transformer_blocks", ())]
    return (
        type(unet).__name__ == "UNet2DConditionModel"
        and {type(block).__name__ for block in transformers} == {"BasicTransformerBlock"}  # Wonder3D has its own
        and all(config.get(key, value) in (value, None) for key, value in plain.items())
        and {config.mid_block_type, *config.down_block_types, *config.up_block_types} <= blocks
        and config.class_embed_type in (None, "projection")
        and config.norm_num_groups is not None
        and sum(p.numel() for p in unet.parameters()) <= MAX_PARAMETERS
    )


class FastUNet:
    """The forward of a frozen UNet; called with a graph, or with what only the original takes, it hands on to that."""

    def __init__(self, unet: Any):
        self.unet = unet
        self.original = unet.forward
        self.attentions = [module for module in unet.modules() if type(module).__name__ == "Attention"]
        self.ready = False

    def __call__(
        self,
        sample: Tensor,  # (N, C, h, w)
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,  # (N, L, D)
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        size = 2 ** (len(self.unet.down_blocks) - 1)
        fits = sample.dtype == encoder_hidden_states.dtype == self.unet.dtype
        fits = fits and not sample.is_cuda and not (sample.shape[-1] % size or sample.shape[-2] % size)
        fits = fits and all(type(a.processor).__name__ in PROCESSORS for a in self.attentions)  # they can be exchanged
        if not fits or torch.is_grad_enabled() or any(value is not None for value in others.values()):
            return self.original(
                sample, timestep, encoder_hidden_states, class_labels=class_labels, return_dict=return_dict, **others
            )
        if not self.ready:
            self.prepare()
        out = self.run(sample, timestep, encoder_hidden_states, class_labels)
        if not return_dict:
            return (out,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=out)  # pyright: ignore[reportArgumentType]

    def prepare(self) -> None:
        """Reorder and join the weights."""
        unet = self.unet
        resnets = [m for m in unet.modules() if type(m).__name__ == "ResnetBlock2D"]
        attentions = [m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
        self.time = Linear(*(resnet.time_emb_proj for resnet in resnets))
        self.text = Linear(*(part for block in attentions for part in (block.attn2.to_k, block.attn2.to_v)))
        self.parts: dict[nn.Module, Any] = {}
        first = 0
        for resnet in resnets:
            self.parts[resnet] = Resnet(resnet, first)
            first += resnet.time_emb_proj.out_features
        first = 0
        for module in unet.modules():
            if type(module).__name__ == "Transformer2DModel":
                self.parts[module] = Transformer(module, first)
                first += 2 * sum(block.attn2.to_k.out_features for block in module.transformer_blocks)
            elif type(module).__name__ in ("Downsample2D", "Upsample2D"):
                self.parts[module] = Conv(module.conv)
        self.conv_in, self.conv_out = Conv(unet.conv_in), Conv(unet.conv_out)
        self.norm_out = Norm(unet.conv_norm_out)
        self.ready = True

    def run(self, sample: Tensor, timestep: Any, words: Tensor, class_labels: Tensor | None) -> Tensor:
        unet, parts = self.unet, self.parts
        embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
        of_class = unet.get_class_embed(sample=sample, class_labels=class_labels)
        time = self.time(F.silu(embedding if of_class is None else embedding + of_class))
        text = Text(self.text, words)

        # While one half of x stands for both, the second half of `time` is not looked at; it is the same
        rigs = len(sample) // max(views_of(attention) for attention in self.attentions)
        guided = rigs % 2 == 0 and halves_are_equal(sample, time)
        x = self.conv_in(
            (sample[: len(sample) // 2] if guided else sample).contiguous(memory_format=torch.channels_last)
        )
        skips = [x]
        for block in unet.down_blocks:
            for i, resnet in enumerate(block.resnets):
                x = parts[resnet](x, time)
                if hasattr(block, "attentions"):
                    x = parts[block.attentions[i]](x, text)
                skips.append(x)
            for down in block.downsamplers or ():
                x = parts[down](x)
                skips.append(x)
        middle = unet.mid_block
        x = parts[middle.resnets[0]](x, time)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = parts[resnet](parts[attention](x, text), time)
        for block in unet.up_blocks:
            for i, resnet in enumerate(block.resnets):
                skip = skips.pop()
                x = parts[resnet](torch.cat([x, twice(skip) if len(skip) < len(x) else skip], dim=1), time)
                if hasattr(block, "attentions"):
                    x = parts[block.attentions[i]](x, text)
            for up in block.upsamplers or ():
                x = parts[up](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(self.norm_out(x, silu=True))


def views_of(attention: Any) -> int:
    """How many rows attend to each other: a MultiViewAttnProcessor joins all views of a rig."""
    return getattr(attention.processor, "n_views", 1)


def halves_are_equal(*inputs: Tensor) -> bool:
    """Whether each of the inputs has the same rows twice."""
    return all(torch.equal(*x.chunk(2)) for x in inputs)


def twice(x: Tensor) -> Tensor:
    """The rows of x twice, in its memory format."""
    return torch.cat([x, x])


class Linear:
    """Linear layers (or 1 x 1 convolutions) that have one input, as one product over rows (M, n_in).

    Forward hooks of theirs are called; they may add to what comes out.
    """

    def __init__(self, *layers: Any):
        self.layers, self.sizes = layers, [len(layer.weight) for layer in layers]
        weight = torch.cat([layer.weight.flatten(1) for layer in layers])
        self.bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        self.weight = pointwise._reorder_linear_weight(weight.contiguous(), None)

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        if plus is None:
            out = pointwise._linear_pointwise(x, self.weight, self.bias, *PLAIN)
        else:
            out = pointwise._linear_pointwise.binary(x, plus, self.weight, self.bias, "add")
        if any(layer._forward_hooks for layer in self.layers):
            self.call_hooks(x, out)
        return out

    def call_hooks(self, x: Tensor, out: Tensor) -> None:
        for layer, part in zip(self.layers, out.split(self.sizes, dim=-1), strict=True):
            for hook in layer._forward_hooks.values():
                if (more := hook(layer, (x,), part)) is not None:
                    part.copy_(more)


class Conv:
    """A convolution of channels-last images; its weight is reordered for the size that comes first."""

    def __init__(self, conv: nn.Conv2d):
        self.conv, self.weight = conv, None
        self.geometry = [list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups]

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        if self.weight is None:
            self.weight = pointwise._reorder_convolution_weight(self.conv.weight, *self.geometry, list(x.shape))
        bias = self.conv.bias
        if plus is None:
            return pointwise._convolution_pointwise(x, self.weight, bias, *self.geometry, *PLAIN)
        rest = ("add", None, None, [], None)
        return pointwise._convolution_pointwise.binary(x, plus, self.weight, bias, *self.geometry, *rest)


class Norm:
    """Group normalisation of channels-last images, perhaps with a shift per channel before and silu after."""

    def __init__(self, norm: nn.GroupNorm):
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = parameters(norm)

    def __call__(self, x: Tensor, silu: bool, shift: Tensor | None = None, first: int = 0) -> Tensor:
        return group_norm(x, self.weight, self.bias, self.groups, self.eps, silu, shift, first)[0]


class Resnet:
    """A residual block; its columns in the joint time embedding begin at `first`."""

    def __init__(self, block: Any, first: int):
        self.norm1, self.norm2, self.first = Norm(block.norm1), Norm(block.norm2), first
        self.conv1, self.conv2 = Conv(block.conv1), Conv(block.conv2)
        self.shortcut = None if block.conv_shortcut is None else Linear(block.conv_shortcut)

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(self.norm1(x, silu=True))
        hidden = self.norm2(hidden, silu=True, shift=time, first=self.first)
        if self.shortcut is not None:
            seen = rows(x)
            x = self.shortcut(seen.flatten(0, 1)).view(*seen.shape[:2], -1).movedim(-1, 1).unflatten(2, x.shape[2:])
        return self.conv2(hidden, plus=x)


class Text:
    """What every layer's attention to text needs of it: keys and values side by side, and the mask of the padding."""

    def __init__(self, project: Linear, words: Tensor):
        self.n, length, _ = words.shape
        self.length = -(-length // TOKENS) * TOKENS
        padded = F.pad(words, (0, 0, 0, self.length - length))
        self.keys_values = project(padded.flatten(0, 1)).view(self.n, self.length, -1)
        self.mask = None
        if self.length > length:
            self.mask = words.new_zeros(1, 1, 1, self.length)
            self.mask[..., length:] = -torch.inf


class Transformer:
    """Transformer2DModel: attention among pixels, attention to text, a gated network; `first` column in the text.

    Half as many images as texts are taken twice: images (N, ...) and texts (2 N, ...) give (2 N, ...).
    """

    def __init__(self, module: Any, first: int):
        self.norm = Norm(module.norm)
        self.proj_in, self.proj_out = Linear(module.proj_in), Linear(module.proj_out)
        self.blocks = []
        for block in module.transformer_blocks:
            self.blocks.append(TransformerBlock(block, first))
            first += 2 * block.attn2.to_k.out_features

    def __call__(self, x: Tensor, text: Text) -> Tensor:
        n, _, height, width = x.shape
        hidden = self.proj_in(rows(self.norm(x, silu=False)).flatten(0, 1))
        for block in self.blocks:
            hidden = block(hidden, len(hidden) // (height * width), text)
        x = twice(x) if n < text.n else x
        out = self.proj_out(hidden, plus=rows(x).flatten(0, 1))
        return out.view(text.n, height, width, -1).movedim(-1, 1)


class TransformerBlock:
    """BasicTransformerBlock on rows (N tokens, C)."""

    def __init__(self, block: Any, first: int):
        self.norms = [LayerNorm(norm) for norm in (block.norm1, block.norm2, block.norm3)]
        own, other = block.attn1, block.attn2
        self.own, self.heads, self.columns = own, own.heads, slice(first, first + 2 * other.to_k.out_features)
        self.queries_keys_values = Linear(own.to_q, own.to_k, own.to_v)
        self.queries = Linear(other.to_q)
        self.own_out, self.other_out = Linear(own.to_out[0]), Linear(other.to_out[0])
        self.wide, self.narrow = Linear(block.ff.net[0].proj), Linear(block.ff.net[2])

    def __call__(self, x: Tensor, n: int, text: Text) -> Tensor:
        heads, width = self.heads, x.shape[1]
        joint = views_of(self.own)
        seen = self.queries_keys_values(self.norms[0](x)).view(n // joint, -1, 3, heads, width // heads)
        q, k, v = (part.transpose(1, 2) for part in seen.unbind(2))
        x = self.own_out(merged(F.scaled_dot_product_attention(q, k, v)), plus=x)

        x, n = (twice(x) if n < text.n else x), text.n
        q = self.queries(self.norms[1](x)).view(n, -1, heads, width // heads).transpose(1, 2)
        of_text = text.keys_values[..., self.columns].unflatten(-1, (2, heads, width // heads))
        k, v = (part.transpose(1, 2) for part in of_text.unbind(2))
        x = self.other_out(merged(F.scaled_dot_product_attention(q, k, v, attn_mask=text.mask)), plus=x)

        wide = self.wide(self.norms[2](x))
        gated = wide.new_empty(len(wide), wide.shape[1] // 2)
        norm_kernels.compiled(norm_kernels.gated_gelu)(numbers(wide), numbers(gated))
        return self.narrow(gated, plus=x)


def merged(heads: Tensor) -> Tensor:
    """(N, heads, tokens, C / heads) -> rows (N tokens, C)."""
    return heads.transpose(1, 2).flatten(2).flatten(0, 1)


class LayerNorm:
    def __init__(self, norm: nn.LayerNorm):
        self.eps = norm.eps
        self.weight, self.bias = (p.detach().float().numpy() for p in (norm.weight, norm.bias))

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        norm_kernels.compiled(norm_kernels.layer_norm)(numbers(x), self.weight, self.bias, self.eps, numbers(out))
        return out
