"""One training step written from the paper: render -> latents -> Eq. 5 -> gradients of the scene -> AdamW, in float64.

The slow twin of train.py's loop, and nothing of the package is used here. The equations are the paper's (Eq. 2 to 8);
what it leaves open is docs/algorithm.md and docs/conventions.md. The frozen networks are the stock classes of diffusers
and transformers in float64 and, for M_CLS, its layers written out from the names in its file.

Letters: B rigs, V views, R pixels, S samples along a ray, C h w latents. Random numbers are drawn in float32, in the
order in which a step of a run draws them, so that both start from the same ones.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

F64 = torch.float64


# Time


def value_at(spec: Any, step: int) -> Any:
    """A constant, or knots [step, value] that hold and [step, value, "linear"] that are reached in a straight line."""
    if not isinstance(spec, list):
        return spec
    knot = max(i for i, (start, *_) in enumerate(spec) if start <= step)
    start, value = spec[knot][:2]
    if knot + 1 < len(spec) and len(spec[knot + 1]) == 3:
        end, target = spec[knot + 1][:2]
        return value + (target - value) * ((step - start) / (end - start))
    return value


def plan_at(schedule: Mapping[str, Any], step: int) -> SimpleNamespace:
    """Every value of the schedule at this step; `lr` and `loss` are dicts."""
    return SimpleNamespace(**{
        name: {key: value_at(spec, step) for key, spec in value.items()} if isinstance(value, Mapping)
        else value_at(value, step)
        for name, value in schedule.items()
    })  # fmt: skip


class Draws:
    """Random numbers from the state of a run's generator."""

    def __init__(self, state: Tensor):
        self.generator = torch.Generator()
        self.generator.set_state(state)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(F64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(F64)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Both ends included."""
        return torch.randint(low, high + 1, shape, generator=self.generator)


class Active:
    """How much each part of a step changed what it was given: a part that does nothing is not tested by the step."""

    def __init__(self):
        self.sizes: dict[str, float] = {}

    def changed(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """`after`, with the size of the change noted."""
        self.sizes[name] = ((after - before).norm() / after.norm()).item()
        return after

    def clamp(self, name: str, x: Tensor, limit: float | None) -> Tensor:
        return x if limit is None else self.changed(name, x, x.clamp(-limit, limit))

    def rescale(self, name: str, x: Tensor, like: Tensor, share: float, dims: tuple[int, ...]) -> Tensor:
        """`share` of x brought to the standard deviation of `like`, the rest as it is."""
        if not share:
            return x
        ratio = like.std(dims, keepdim=True) / x.std(dims, keepdim=True)
        return self.changed(name, x, share * ratio * x + (1 - share) * x)


# What a run is told


@dataclass(frozen=True)
class Settings:
    """A run, as its command describes it. `schedule` is what plan_at reads."""

    schedule: Mapping[str, Any]
    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    energy: str = "none"  # none | random | mvs | cls | i2i
    prior: str = "text_to_image"  # what is distilled; multi_view is MVDream's way
    # Eq. 5
    weighting: str = "sds"
    mask: str = "gradient"
    mask_floor: float = 0.0
    energy_x0: str = "uncond"
    energy_limit: float | None = None
    x0_limit: float | None = None
    # scene
    encoding: Mapping[str, Any] = field(default_factory=dict)
    encoding_lr: float = 1.0  # rate of the encoding, as a multiple of the geometry's
    n_samples: int = 16
    grid_resolution: int = 8
    update_every: int = 16
    random_probability: float = 1.0
    random_grey_range: tuple[float, float] | None = (0.6, 1.0)
    # rig
    n_rigs: int = 1
    n_views: int = 4
    elevation_deg: tuple[float, float] = (0.0, 30.0)
    fovy_deg: tuple[float, float] = (30.0, 50.0)
    relative_distance: tuple[float, float] = (0.9, 1.0)
    light_distance: tuple[float, float] = (0.8, 1.5)
    first_azimuth_deg: tuple[float, float] | None = None
    # priors and energies: folders, and their options
    image_size: int = 16
    text_to_image: Mapping[str, Any] = field(default_factory=dict)
    multi_view: Mapping[str, Any] = field(default_factory=dict)
    novel_view: Mapping[str, Any] = field(default_factory=dict)
    classifier: Mapping[str, Any] = field(default_factory=dict)
    energy_scale: float = 1.0


@dataclass
class State:
    """What a step starts from and leaves: parameters by role, AdamW's moments of each, and the occupancy grid."""

    parameters: dict[str, list[Tensor]]  # encoding, density (2), albedo (2), background (3)
    first: dict[str, list[Tensor]]  # AdamW's moments
    second: dict[str, list[Tensor]]
    count: dict[str, list[int]]  # AdamW's updates so far
    occupancy: Tensor  # (G, G, G)
    occupied: Tensor  # (G, G, G) bool


@dataclass(frozen=True)
class Step:
    """One step: its losses, its gradients and the state after it."""

    loss: float
    losses: dict[str, float]
    coherence: float
    opacity: float
    gradients: dict[str, list[Tensor | None]]
    state: State
    undecided: int  # numbers at which Relu has two derivatives
    active: dict[str, float]  # how much each limit, mask, ... changed: |after - before| / |after|


# Cameras (docs/conventions.md, Cameras)


def draw_cameras(s: Settings, draws: Draws) -> SimpleNamespace:
    """B rigs of V views: one elevation, fov, distance and light per rig, azimuths 360 / V apart."""
    b, v = s.n_rigs, s.n_views

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * draws.uniform(b, 1)

    low, high = (math.radians(x) for x in s.elevation_deg)
    coin, in_angle = uniform(0, 1), uniform(low, high)
    on_sphere = uniform(math.sin(low), math.sin(high)).asin()
    elevation = torch.where(coin < 0.5, in_angle, on_sphere).expand(b, v)
    phase = uniform(0, 1)
    fovy = uniform(*(math.radians(x) for x in s.fovy_deg))
    distance = (uniform(*s.relative_distance) / (fovy / 2).tan()).expand(b, v)
    light_distance, light_noise = uniform(*s.light_distance), draws.normal(b, 1, 3)
    first = -math.pi + phase * 2 * math.pi / v
    if s.first_azimuth_deg is not None:
        left, right = (math.radians(x) for x in s.first_azimuth_deg)
        first = left + (right - left) * phase
    azimuth = first + torch.arange(v) * 2 * math.pi / v

    ce, se, ca, sa = elevation.cos(), elevation.sin(), azimuth.cos(), azimuth.sin()
    zero = torch.zeros_like(ce)
    right = torch.stack([-sa, ca, zero], -1)
    up = torch.stack([-se * ca, -se * sa, ce], -1)
    backward = torch.stack([ce * ca, ce * sa, se], -1)
    position = distance[..., None] * backward
    c2w = torch.eye(4, dtype=F64).repeat(b, v, 1, 1)
    c2w[..., :3, :] = torch.stack([right, up, backward, position], -1)
    light = F.normalize(position + light_noise, dim=-1) * light_distance[..., None]
    return SimpleNamespace(
        c2w=c2w, fovy=fovy.expand(b, v), elevation=elevation, azimuth=azimuth, distance=distance, light=light
    )


def camera_rays(cameras: SimpleNamespace, resolution: int) -> tuple[Tensor, Tensor]:
    """Origins and unit directions (B V R R, 3) through the centres of pixels; row 0 is the top."""
    focal = 0.5 * resolution / (cameras.fovy / 2).tan()
    pixel = torch.arange(resolution, dtype=F64) + 0.5 - resolution / 2
    rows, columns = torch.meshgrid(pixel, pixel, indexing="ij")
    x, y = columns / focal[..., None, None], -rows / focal[..., None, None]
    d = F.normalize(torch.stack([x, y, -torch.ones_like(x)], -1), dim=-1)
    d = (cameras.c2w[:, :, None, None, :3, :3] @ d[..., None])[..., 0]
    o = cameras.c2w[:, :, None, None, :3, 3].expand_as(d)
    return o.reshape(-1, 3), d.reshape(-1, 3)


# Scene (docs/conventions.md, Radiance field and Volume rendering)


def hash_encoding(x: Tensor, table: Tensor, encoding: Mapping[str, Any]) -> Tensor:
    """Points (N, 3) of the unit cube -> features (N, L F): Instant-NGP's grid as tiny-cuda-nn defines it."""
    n_features, size = encoding["n_features"], 2 ** encoding["log2_table_size"]
    rows, features, start = table.view(-1, n_features), [], 0
    for level in range(encoding["n_levels"]):
        scale = level_scale(level, encoding)
        resolution = math.ceil(scale) + 1
        entries = min(-(-(resolution**3) // 8) * 8, size)
        p = x * scale + 0.5
        cell = p.detach().floor()
        inside, cell = p - cell, cell.long()
        found = torch.zeros(len(x), n_features, dtype=F64)
        for corner in range(8):
            offset = torch.tensor([corner >> axis & 1 for axis in range(3)])
            vertex = cell + offset
            if resolution**3 <= entries:
                index = vertex @ torch.tensor([1, resolution, resolution**2])
            else:
                hashed = (vertex & 0xFFFFFFFF) * torch.tensor([1, 2654435761, 805459861])
                index = hashed[:, 0] ^ hashed[:, 1] ^ hashed[:, 2]
            index = (index & 0xFFFFFFFF) % entries
            weight = torch.where(offset.bool(), inside, 1 - inside).prod(-1, keepdim=True)
            found = found + weight * rows[start + index]
        features.append(found)
        start += entries
    return torch.cat(features, -1)


def level_scale(level: int, encoding: Mapping[str, Any]) -> float:
    """base growth^level - 1, in float32: it is one of the numbers that a run starts from, not one that it computes."""
    growth, base = np.float32(encoding["growth"]), np.float32(encoding["base_resolution"])
    return float(np.exp2(np.float32(level) * np.log2(growth)) * base - np.float32(1))


class Relu:
    """max(x, 0), which has two derivatives at 0.

    Bit k of `sides` takes the other one of the k-th x that is 0 but for rounding.
    What float32 makes of a sum of products, of features that are themselves rounded, is known to NEAR of their sizes.
    """

    NEAR = 3e-6

    def __init__(self, sides: int = 0):
        self.sides, self.undecided = sides, 0

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """max(W x, 0), (N, C)."""
        sums = x @ weight.T
        above = sums.detach() > 0
        near = sums.detach().abs() < self.NEAR * (x.detach().abs() @ weight.detach().abs().T)
        for row, column in near.nonzero().tolist():
            above[row, column] ^= bool(self.sides >> self.undecided & 1)
            self.undecided += 1
        return sums * above


def two_layers(x: Tensor, weights: list[Tensor], relu: Relu) -> Tensor:
    return relu(x, weights[0]) @ weights[1].T


def density_before_activation(
    x: Tensor, parameters: Mapping[str, list[Tensor]], s: Settings, relu: Relu
) -> tuple[Tensor, Tensor]:
    """The argument of softplus (N,) at world points (N, 3) in [-1, 1]^3, with Magic3D's blob; and the features."""
    features = hash_encoding((x + 1) / 2, parameters["encoding"][0], s.encoding)
    return two_layers(features, parameters["density"], relu)[:, 0] + 10 * (1 - x.norm(dim=-1) / 0.5), features


def update_occupancy(state: State, s: Settings, step: int, draws: Draws) -> State:
    """All cells (of the first 256 steps), at a random point of each: max(0.95 old, sigma step size)."""
    if step % s.update_every:
        return state
    g = s.grid_resolution
    corner = torch.cartesian_prod(*[torch.arange(g)] * 3)
    x = (corner + draws.uniform(g**3, 3)) * (2 / g) - 1
    with torch.no_grad():
        sigma = F.softplus(density_before_activation(x, state.parameters, s, Relu())[0])
    occupancy = torch.maximum(0.95 * state.occupancy, (sigma * step_size(s)).view(g, g, g))
    return State(**{**vars(state), "occupancy": occupancy, "occupied": occupancy > occupancy.mean().clamp(max=0.01)})


def step_size(s: Settings) -> float:
    return 2 * math.sqrt(3) / s.n_samples


def spherical_harmonics(d: Tensor) -> Tensor:
    """Degree 3, the signs of tiny-cuda-nn."""
    x, y, z = d.unbind(-1)
    c0, c1, c2 = math.sqrt(1 / math.pi) / 2, math.sqrt(3 / (4 * math.pi)), math.sqrt(15 / (4 * math.pi))
    constant = torch.full_like(x, c0)
    second = [
        c2 * x * y,
        -c2 * y * z,
        math.sqrt(5 / (16 * math.pi)) * (3 * z**2 - 1),
        -c2 * x * z,
        c2 / 2 * (x**2 - y**2),
    ]
    return torch.stack([constant, -c1 * y, c1 * z, -c1 * x, *second], -1)  # fmt: skip


def render(
    state: State, cameras: SimpleNamespace, now: SimpleNamespace, s: Settings, draws: Draws, active: Active, relu: Relu
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Images (B, V, C, R, R) and the regularisers that the schedule weighs.

    Samples of a ray lie at t = (k + offset + 1/2) step; those in free cells, in the dark or next to transparent are
    dropped; the others are summed: w = T alpha, alpha = 1 - exp(-sigma step).
    """
    p = state.parameters
    mode, ambient, diffuse = "albedo", 1.0, 0.0
    if now.shading:
        diffuse, coin = draws.uniform(2).tolist()
        ambient = 1 - diffuse
        mode = "albedo" if coin < 0.25 else "textureless" if coin < 0.625 else "diffuse"
    o, d = camera_rays(cameras, now.resolution)
    offset = draws.uniform(len(o))
    coin, *color = draws.uniform(4).tolist()
    learned = coin >= s.random_probability
    if s.random_grey_range is not None:
        low, high = s.random_grey_range
        color = [low + (high - low) * color[0]] * 3

    delta, g = step_size(s), s.grid_resolution
    k = torch.arange(math.ceil((float(cameras.distance.max()) + 2) / delta))
    t = (k + offset[:, None] + 0.5) * delta  # (N, S)
    x = o[:, None] + t[..., None] * d[:, None]
    cell = ((x + 1) * g / 2).floor().long()
    in_box = ((cell >= 0) & (cell < g)).all(-1)
    kept = in_box & state.occupied[tuple(cell.clamp(0, g - 1).unbind(-1))]
    with torch.no_grad():
        sigma = torch.zeros_like(t)
        sigma[kept] = F.softplus(density_before_activation(x[kept], p, s, Relu())[0])
        tau = sigma * delta
        transmittance = (-(tau.cumsum(1) - tau)).exp()
        kept &= (1 - (-tau).exp() >= state.occupancy.mean().clamp(max=0.01)) & (transmittance >= 1e-4)

    points, ray = x[kept], kept.nonzero()[:, 0]
    normals = now.loss.get("orient", 0) != 0 or mode != "albedo"
    points = points.requires_grad_(normals)
    z, features = density_before_activation(points, p, s, relu)
    albedo = two_layers(features, p["albedo"], relu).sigmoid()
    normal = torch.zeros_like(points)
    if normals:
        (slope,) = torch.autograd.grad(z.sum(), points, create_graph=True)
        normal = -F.normalize(slope, dim=-1, eps=1e-8)
    color_of_sample = albedo
    if mode != "albedo":
        light = cameras.light[:, :, None, None].expand(-1, -1, *[now.resolution] * 2, -1).reshape(-1, 3)[ray]
        lambert = (normal * F.normalize(light - points.detach(), dim=-1)).sum(-1, keepdim=True).clamp(min=0)
        irradiance = ambient + diffuse * lambert
        color_of_sample = irradiance.expand_as(albedo) if mode == "textureless" else albedo * irradiance
        active.changed(mode, albedo.detach(), color_of_sample.detach())

    def spread(values: Tensor) -> Tensor:  # (K, C) of the kept samples -> (N, S, C)
        return torch.zeros(*t.shape, values.shape[-1], dtype=F64).index_put(tuple(kept.nonzero().T), values)

    tau = spread(F.softplus(z)[:, None])[..., 0] * delta
    w = ((-(tau.cumsum(1) - tau)).exp() * (1 - (-tau).exp()))[..., None]  # (N, S, 1)
    opacity, depth = w.sum(1), (w * t[..., None]).sum(1)
    behind = torch.tensor(color, dtype=F64).expand(len(o), 3)
    if learned:
        hidden = spherical_harmonics(d)
        for weight in p["background"][:2]:
            hidden = relu(hidden, weight)
        behind = (hidden @ p["background"][2].T).sigmoid()
    rgb = (w * spread(color_of_sample)).sum(1) + behind * (1 - opacity)

    losses = {}
    if now.loss.get("orient"):
        facing_away = (normal * d[ray]).sum(-1, keepdim=True).clamp(min=0) ** 2
        losses["orient"] = (w.detach() * spread(facing_away)).sum() / (opacity > 0).sum().clamp(min=1)
    if now.loss.get("sparsity"):
        losses["sparsity"] = (opacity**2 + 0.01).sqrt().mean()
    if now.loss.get("opaque"):
        q = opacity.clamp(1e-3, 1 - 1e-3)
        losses["opaque"] = -(q * q.log() + (1 - q) * (1 - q).log()).mean()
    if now.loss.get("z_variance"):
        variance, covered = (w * (t[..., None] - depth[:, None]) ** 2).sum(1), opacity > 0.5
        losses["z_variance"] = variance[covered].mean() if covered.any() else variance.sum() * 0

    def image(values: Tensor) -> Tensor:
        shape = (s.n_rigs, s.n_views, now.resolution, now.resolution, -1)
        return values.reshape(shape).movedim(-1, 2)

    return {"rgb": image(rgb), "opacity": image(opacity)}, losses


# Frozen networks


def alphas_cumprod() -> Tensor:
    """Stable Diffusion's: betas are the squares of a linear ramp between the roots of 0.00085 and 0.012."""
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2).cumprod(0)


def alpha_sigma(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    abar = alphas_cumprod()[timesteps].view(-1, 1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()


class Latents:
    """A diffusers folder's autoencoder."""

    def __init__(self, folder: Path, image_size: int):
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        self.vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=F64).requires_grad_(False)
        self.size, self.scale = image_size, self.vae.config.scaling_factor

    def posterior(self, images: Tensor) -> Any:
        """Of images (N, 3, H, W) in [0, 1] of any size."""
        images = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        return self.vae.encode(2 * images - 1).latent_dist

    def encode(self, rgb: Tensor, draws: Draws) -> Tensor:
        """A sample of the posterior, scaled: (B, V, 3, R, R) -> (B, V, C, h, w)."""
        posterior = self.posterior(rgb.flatten(0, 1))
        sample = posterior.mean + posterior.std * draws.normal(*posterior.mean.shape)
        return (self.scale * sample).unflatten(0, rgb.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, H, W), about [0, 1]."""
        return self.vae.decode(latents / self.scale).sample / 2 + 0.5


class Network:
    """A diffusers folder's UNet, its prediction read as x0 whatever it is of."""

    def __init__(self, folder: Path, n_views: int = 1):
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=F64)
        self.unet: Any = unet.requires_grad_(False)
        self.unet.set_attn_processor(JointAttention(n_views))
        self.kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"]

    @torch.no_grad()
    def x0(self, x_t: Tensor, timesteps: Tensor, context: Tensor, beside: Tensor | None = None, **more: Any) -> Tensor:
        """x0 (B, V, C, h, w) seen in x_t, given tokens (B, V, L, D); beside: further channels, (B, V, C, h, w)."""
        b, v = x_t.shape[:2]
        rows = x_t if beside is None else torch.cat([x_t, beside], 2)
        t = timesteps.repeat_interleave(v)
        out = self.unet(rows.flatten(0, 1), t, context.flatten(0, 1), return_dict=False, **more)[0].unflatten(0, (b, v))
        alpha, sigma = alpha_sigma(timesteps)
        if self.kind == "sample":
            return out
        return (x_t - sigma * out) / alpha if self.kind == "epsilon" else alpha * x_t - sigma * out


class JointAttention:
    """softmax(q k / sqrt(d)) v; self-attention sees the tokens of all views of a rig (MVDream)."""

    def __init__(self, n_views: int):
        self.n_views = n_views

    def __call__(self, attn: Any, x: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        shape = x.shape
        if encoder_hidden_states is None:
            x = x.reshape(shape[0] // self.n_views, -1, shape[2])
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(x), attn.to_k(context), attn.to_v(context))
        )
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2)).reshape(shape)


def embed_text(s: Settings) -> tuple[Tensor, Tensor]:
    """(4, L, D) of the prompt from the side, front, back and above; (2, L, D) of the empty and the negative prompt."""
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = Path(s.text_to_image["source"])
    encoder: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=F64)
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    texts = [f"{s.prompt}, {view} view" for view in ("side", "front", "back", "overhead")] + ["", s.negative_prompt]
    length = encoder.config.max_position_embeddings
    assert all(len(tokenizer(text).input_ids) <= length for text in texts), "long prompts are not part of this"
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        embeddings = encoder.double()(tokens).last_hidden_state
    return embeddings[:4], embeddings[4:]


class Classifier:
    """M_CLS from its file: DINO's blocks and the layers of Appendix A.2, written out."""

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        self.w = {name: value.to(F64) for name, value in load_file(folder / "model.safetensors").items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)

    def mlp(self, name: str, x: Tensor, layers: int) -> Tensor:
        for i in range(layers):
            x = self.linear(f"{name}.{2 * i}", F.gelu(x) if i else x)
        return x

    def tokens(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], H the classifier's -> (N, L, C), the class token first."""
        c = self.config
        assert images.shape[-1] == c["image_size"]
        mean, std = (torch.tensor(x, dtype=F64).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        w = self.w
        patches = F.conv2d((images - mean) / std, w["backbone.patch_embed.proj.weight"],
                           w["backbone.patch_embed.proj.bias"], stride=c["patch_size"])  # fmt: skip
        x = torch.cat([w["backbone.cls_token"].expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x = x + w["backbone.pos_embed"]
        for i in range(c["n_blocks"]):
            block, eps = f"backbone.blocks.{i}", c["layer_norm_eps"]
            qkv = self.linear(f"{block}.attn.qkv", self.layer_norm(f"{block}.norm1", x, eps))
            q, k, v = qkv.unflatten(-1, (3, c["n_heads"], -1)).permute(2, 0, 3, 1, 4)
            mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
            x = x + self.linear(f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))
            hidden = F.gelu(self.linear(f"{block}.mlp.fc1", self.layer_norm(f"{block}.norm2", x, eps)))
            x = x + self.linear(f"{block}.mlp.fc2", hidden)
        return self.layer_norm("backbone.norm", x, c["layer_norm_eps"])

    def logits(self, images: Tensor, pairs: list[tuple[int, int]], c2w: Tensor) -> Tensor:
        """(P,) of pairs of one rig's views: images (V, 3, H, W), c2w (V, 4, 4)."""
        c, (i, j) = self.config, torch.tensor(pairs).T
        tokens = self.tokens(images)
        pose = torch.linalg.inv(c2w[i]) @ c2w[j]  # camera j as camera i sees it, lengths in distances of i
        pose[:, :3, 3] /= c2w[i][:, :3, 3].norm(dim=-1, keepdim=True)
        query = self.linear("query", self.mlp("camera", pose.flatten(1), 4))[:, None]
        both = torch.cat(
            [
                self.linear("key_value", tokens[n]) + order
                for n, order in ((i, self.w["order"][0]), (j, self.w["order"][1]))
            ],
            1,
        )
        shape = (c["attention_heads"], c["attention_channels"])
        q, k, v = (part.unflatten(-1, shape).transpose(1, 2) for part in (query, *both.chunk(2, -1)))
        read = ((q @ k.transpose(-1, -2) / math.sqrt(shape[1])).softmax(-1) @ v).transpose(1, 2).flatten(2)
        read = self.layer_norm("norm", self.linear("out", (query + read)[:, 0]), 1e-5)
        return self.mlp("head", torch.cat([tokens[i][:, 0], tokens[j][:, 0]], -1) + read, 3)[:, 0]


# Priors


class TextToImage:
    """eps_hat = (1 + s) eps(y) - s eps(0), with the limits of its own."""

    def __init__(self, s: Settings):
        self.options, folder = s.text_to_image, Path(s.text_to_image["source"])
        self.latents, self.network = Latents(folder, s.image_size), Network(folder)

    def noise(self, noised: SimpleNamespace, text: SimpleNamespace, scale: float, active: Active):
        """Guided, and without a text."""
        x_t, alpha, sigma = noised.x_t, noised.alpha, noised.sigma
        text_x0, empty_x0 = (self.network.x0(x_t, noised.t, words) for words in (text.cond, text.uncond))
        cond, uncond = ((x_t - alpha * x0) / sigma for x0 in (text_x0, empty_x0))
        noise, view = active.changed("cfg", cond, (1 + scale) * cond - scale * uncond), (-3, -2, -1)
        noise = active.rescale("cfg_rescale", noise, cond, self.options["cfg_rescale"], view)
        x0 = active.rescale("x0_rescale", (x_t - sigma * noise) / alpha, text_x0, self.options["x0_rescale"], view)
        x0 = active.clamp("text_to_image.x0_limit", x0, self.options["x0_limit"])
        return (x_t - alpha * x0) / sigma, uncond


class MultiView:
    """MVDream: x0_mv, guided by uncond + s (text - uncond), half of it brought to the spread of the text's."""

    def __init__(self, s: Settings):
        self.options = s.multi_view
        self.network = Network(Path(self.options["source"]), s.n_views)
        vae = self.options["vae"]
        self.latents = None if vae == "shared" else Latents(Path(vae), s.image_size)

    def x0(self, x_t: Tensor, t: Tensor, text: SimpleNamespace, c2w: Tensor, active: Active) -> tuple[Tensor, Tensor]:
        """Guided, and without a text."""
        camera = c2w.clone()
        camera[..., :3, 3] = F.normalize(camera[..., :3, 3], dim=-1)
        camera = camera.flatten(2).flatten(0, 1)
        cond, uncond = (self.network.x0(x_t, t, words, class_labels=camera) for words in (text.cond, text.uncond))
        x0 = active.changed("multi_view.cfg", cond, uncond + self.options["guidance_scale"] * (cond - uncond))
        x0 = active.rescale("multi_view.rescale", x0, cond, self.options["rescale"], (1, 2, 3, 4))
        return active.clamp("multi_view.x0_limit", x0, self.options["x0_limit"]), uncond

    def noise(self, noised: SimpleNamespace, text: SimpleNamespace, scale: float, active: Active):
        guided, uncond = self.x0(noised.x_t, noised.t, text, text.c2w, active)
        return tuple((noised.x_t - noised.alpha * x0) / noised.sigma for x0 in (guided, uncond))


# Energies: C (B,) of the views, with the gradient through x0 alone


def random_energy(s: Settings, active: Active) -> Callable[[SimpleNamespace], Tensor]:
    return lambda views: s.energy_scale * (views.x0 * views.draws.normal(*views.x0.shape)).sum((1, 2, 3, 4))


def squared_distance(x0: Tensor, target: Tensor) -> Tensor:
    return -0.5 * (x0 - target.detach()).square().sum((1, 2, 3, 4))


def multi_view_energy(s: Settings, active: Active) -> Callable[[SimpleNamespace], Tensor]:
    """Eq. 8: C = -1/2 sum (x0 - x0_mv)^2."""
    model = MultiView(s)

    def energy(views: SimpleNamespace) -> Tensor:
        with torch.no_grad():
            z = views.latents if model.latents is None else model.latents.encode(views.rgb, views.draws)
            alpha, sigma = alpha_sigma(views.t)
            x_t = alpha * z + sigma * views.draws.normal(*z.shape)
            target, _ = model.x0(x_t, views.t, views.text, views.cameras.c2w, active)
        return squared_distance(views.x0, target)

    return energy


def classifier_energy(s: Settings, active: Active) -> Callable[[SimpleNamespace], Tensor]:
    """Eq. 6: C = sum over pairs of M_CLS(x_i, x_j, pose); or as Eq. 7, the target being where its ascent leads."""
    o, model = s.classifier, Classifier(Path(s.classifier["source"]))

    def pairs(front: int, v: int) -> list[tuple[int, int]]:
        if o["pairs"] == "given":
            return [(front, (front + k) % v) for k in range(1, v)]
        if o["pairs"] == "all":
            return [(i, j) for i in range(v) for j in range(v) if i != j]
        return [(i, (i + 1) % v) for i in range(v)]

    def energy(views: SimpleNamespace) -> Tensor:
        found = []
        for rig in range(len(views.x0)):
            front = int(views.cameras.azimuth[rig].cos().argmax())
            c2w, v = views.cameras.c2w[rig], views.x0.shape[1]
            free = torch.ones(v, 1, 1, 1, dtype=F64)
            if o["anchor"] == "front":
                free[front] = 0
            seen = free * views.x0[rig] + (1 - free) * views.x0_guided[rig].detach()
            if not o["ascent"]:
                logits = model.logits(views.prior.decode(seen), pairs(front, v), c2w)
                found.append(o["scale"] * logits.sum())
                continue
            images = views.prior.decode(seen.detach()).detach().clamp(0, 1)
            for _ in range(o["ascent"]):
                images.requires_grad_(True)
                (slope,) = torch.autograd.grad(F.logsigmoid(model.logits(images, pairs(front, v), c2w)).sum(), images)
                images = (images.detach() + o["ascent_step"] * slope * free).clamp(0, 1)
            with torch.no_grad():
                target = views.prior.encode(images[None], views.draws)[0]
            found.append(o["scale"] * squared_distance((views.x0[rig] * free)[None], (target * free)[None])[0])
        return torch.stack(found)

    return energy


def novel_view_energy(s: Settings, active: Active) -> Callable[[SimpleNamespace], Tensor]:
    """Eq. 7 with Zero-1-to-3: C = -1/2 sum over the other views (x0_i - M(x_ref, pose_i))^2."""
    from transformers import CLIPVisionModelWithProjection

    o, folder = s.novel_view, Path(s.novel_view["source"])
    network, latents = Network(folder), Latents(Path(o["vae"]), s.image_size)
    clip: Any = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=F64).double()
    projection = load_file(folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors")
    weight, bias = (projection[f"proj.{name}"].to(F64) for name in ("weight", "bias"))
    mean, std = (
        torch.tensor(x, dtype=F64).view(3, 1, 1)
        for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )

    @torch.no_grad()
    def novel(views: SimpleNamespace) -> tuple[Tensor, Tensor]:
        b, v = views.x0.shape[:2]
        rgb = views.rgb * views.opacity + 1 - views.opacity if o["white"] else views.rgb
        reference = (
            views.draws.integers(0, v - 1, b, 1)[:, 0] if o["reference"] is None else torch.full((b,), o["reference"])
        )
        each, others = torch.arange(b), (reference[:, None] + torch.arange(1, v)) % v
        image = rgb[each, reference]
        if o["reference_image"] == "estimate":
            image = views.prior.decode(views.x0_guided[each, reference]).clamp(0, 1)
        z = latents.encode(rgb[each[:, None], others], views.draws)
        alpha, sigma = alpha_sigma(views.t)
        x_t = alpha * z + sigma * views.draws.normal(*z.shape)

        small = F.interpolate(image, (s.image_size,) * 2, mode="bilinear", align_corners=False)
        embedding = clip(pixel_values=(small - mean) / std).image_embeds
        c = views.cameras
        at = {name: getattr(c, name) for name in ("elevation", "azimuth", "distance")}
        pose = {name: x[each[:, None], others] - x[each, reference][:, None] for name, x in at.items()}
        numbers = [-pose["elevation"], pose["azimuth"].sin(), pose["azimuth"].cos(), pose["distance"]]
        token = torch.cat([embedding[:, None].expand(-1, v - 1, -1), torch.stack(numbers, -1)], -1)
        token = F.linear(token, weight, bias)[:, :, None]
        beside = latents.posterior(image).mode()[:, None].expand_as(z)
        x0 = network.x0(x_t, views.t, token, beside)
        if o["guidance_scale"] != 1:
            uncond = network.x0(x_t, views.t, torch.zeros_like(token), torch.zeros_like(beside))
            x0 = active.changed("novel_view.cfg", x0, uncond + o["guidance_scale"] * (x0 - uncond))
        return active.clamp("novel_view.x0_limit", x0, o["x0_limit"]), others

    def energy(views: SimpleNamespace) -> Tensor:
        target, others = novel(views)
        return squared_distance(views.x0[torch.arange(len(others))[:, None], others], target)

    return energy


ENERGIES = {
    "random": random_energy,
    "mvs": multi_view_energy,
    "cls": classifier_energy,
    "i2i": novel_view_energy,
}


# Eq. 2 to 5

WEIGHTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sds": lambda alpha, sigma: sigma**2,
    "uniform": lambda alpha, sigma: torch.ones_like(sigma),
    "fantasia3d": lambda alpha, sigma: alpha * sigma**2,
    "x0": lambda alpha, sigma: sigma / alpha,
}


class Reference:
    """The training step of one run."""

    def __init__(self, s: Settings):
        self.s = s
        self.cond, self.uncond = embed_text(s)
        self.prior = TextToImage(s) if s.prior == "text_to_image" else MultiView(s)
        self.name = "jsd" if s.prior == "text_to_image" else "mvdream"  # of the loss
        self.second = (
            MultiView(s) if {"jsd", "mvdream"} <= s.schedule["loss"].keys() else None
        )  # Fig. 10: SDS + MVDream
        self.active = Active()
        self.energy = ENERGIES[s.energy](s, self.active) if s.energy != "none" else None

    def text(self, cameras: SimpleNamespace, negative: bool) -> SimpleNamespace:
        """View-dependent: side, unless within 30 degrees of the front or of the back."""
        azimuth = (cameras.azimuth + math.pi) % (2 * math.pi) - math.pi
        which = torch.zeros_like(azimuth, dtype=torch.long)
        which[azimuth.abs() < math.radians(30)] = 1
        which[azimuth.abs() > math.radians(150)] = 2
        which[cameras.elevation > math.radians(60)] = 3
        cond = self.cond[which]
        return SimpleNamespace(cond=cond, uncond=self.uncond[int(negative)].expand_as(cond), c2w=cameras.c2w)

    def step(self, state: State, step: int, random_state: Tensor, sides: int = 0) -> Step:
        """The step of this number, from this state; sides: of Relu."""
        relu = Relu(sides)
        s, now, draws, self.active.sizes = self.s, plan_at(self.s.schedule, step), Draws(random_state), {}
        leaves = {name: [x.detach().requires_grad_(True) for x in xs] for name, xs in state.parameters.items()}
        state = State(**{**vars(state), "parameters": leaves})
        cameras = draw_cameras(s, draws)
        state = update_occupancy(state, s, step, draws)
        images, losses = render(state, cameras, now, s, draws, self.active, relu)
        text = self.text(cameras, now.negative_prompt)
        assert self.prior.latents is not None
        z = self.prior.latents.encode(images["rgb"], draws)

        t = draws.integers(int(1000 * now.t_min), min(int(1000 * now.t_max), 999), s.n_rigs)
        alpha, sigma = alpha_sigma(t)
        noise = draws.normal(*z.shape)
        x_t = (alpha * z + sigma * noise).detach()
        noised = SimpleNamespace(x_t=x_t, t=t, alpha=alpha, sigma=sigma)
        guided, uncond = self.prior.noise(noised, text, now.guidance_scale, self.active)

        prediction, coherence = guided, torch.zeros(s.n_rigs, dtype=F64)
        if self.energy is not None and now.energy_weight > 0:
            energy_grad, coherence = self.energy_gradient(noised, z, guided, uncond, images, cameras, text, draws)
            weight = now.energy_weight
            if s.energy_limit is not None:
                bounded = weight / (1 + weight * (sigma / alpha) ** 2 / s.energy_limit)
                weight = self.active.changed("energy_limit", torch.full_like(bounded, weight), bounded)
            prediction = self.active.changed("energy", guided, guided - weight * sigma * energy_grad)  # Eq. 5
        if s.x0_limit is not None:
            x0 = self.active.clamp("x0_limit", (x_t - sigma * prediction) / alpha, s.x0_limit)
            prediction = (x_t - alpha * x0) / sigma
        grad = (WEIGHTINGS[s.weighting](alpha, sigma) * (prediction - noise)).detach()
        views = s.n_rigs * s.n_views
        losses[self.name] = 0.5 * grad.square().sum() / views + injected(z, grad / views)
        if self.second is not None:  # 1/2 |z - x0_mv|^2, a mean over the views
            assert self.second.latents is not None
            z_mv = self.second.latents.encode(images["rgb"], draws)
            x_mv = (alpha * z_mv + sigma * draws.normal(*z_mv.shape)).detach()
            x0, _ = self.second.x0(x_mv, t, text, cameras.c2w, self.active)
            losses["mvdream"] = 0.5 * (z_mv - x0).square().sum() / views

        loss: Any = sum(now.loss[name] * value for name, value in losses.items())
        flat = [(name, x) for name, xs in leaves.items() for x in xs]
        grads = torch.autograd.grad(loss, [x for _, x in flat], allow_unused=True)
        gradients: dict[str, list[Tensor | None]] = {name: [] for name in leaves}
        for (name, _), grad in zip(flat, grads, strict=True):
            gradients[name].append(grad)
        return Step(
            loss=loss.item(),
            losses={name: value.item() for name, value in losses.items()},
            coherence=coherence.mean().item(),
            opacity=images["opacity"].mean().item(),
            gradients=gradients,
            state=adamw(state, gradients, rates(now.lr, s.encoding_lr)),
            active=dict(self.active.sizes),
            undecided=relu.undecided,
        )

    def energy_gradient(self, noised, z, guided, uncond, images, cameras, text, draws) -> tuple[Tensor, Tensor]:
        """dC/dx_t through x0 = (x_t - sigma e) / alpha alone, and C; the mask is the opacity at the latents' size."""
        s, (b, v) = self.s, z.shape[:2]
        opacity = images["opacity"].detach()
        m = F.interpolate(opacity.flatten(0, 1), z.shape[-2:], mode="bilinear", align_corners=False).unflatten(
            0, (b, v)
        )
        m = self.active.changed("mask_floor", m, m.clamp(min=s.mask_floor))
        x_t = noised.x_t.clone().requires_grad_(True)
        e = guided if s.energy_x0 == "guided" else uncond
        x0 = ((m * x_t if s.mask == "input" else x_t) - noised.sigma * e) / noised.alpha
        views = SimpleNamespace(
            x0=x0, x0_guided=(noised.x_t - noised.sigma * guided) / noised.alpha, latents=z.detach(),
            rgb=images["rgb"].detach(), opacity=opacity, cameras=cameras, text=text, t=noised.t, draws=draws,
            prior=self.prior.latents,
        )  # fmt: skip
        assert self.energy is not None
        coherence = self.energy(views)
        (grad,) = torch.autograd.grad(coherence.sum(), x_t)
        if s.mask == "gradient":
            grad = self.active.changed("mask", grad, m * grad)
        elif s.mask == "input":  # what the energy sees would be another x0 without it
            self.active.changed("mask", (x_t - noised.sigma * e).detach(), (m * x_t - noised.sigma * e).detach())
        return grad, coherence.detach()


def injected(z: Tensor, grad: Tensor) -> Tensor:
    """Zero, whose gradient with respect to z is `grad`."""
    return ((z - z.detach()) * grad).sum()


def rates(lr: Mapping[str, float], encoding_lr: float) -> dict[str, float]:
    """The rate of each parameter by what it is, from those by role."""
    return {
        "encoding": encoding_lr * lr["geometry"],
        "density": lr["geometry"],
        "albedo": lr["appearance"],
        "background": lr["background"],
    }


def adamw(state: State, gradients: Mapping[str, list[Tensor | None]], lr: Mapping[str, float]) -> State:
    """AdamW (Loshchilov and Hutter) with the paper's betas; a parameter without a gradient stays as it is."""
    beta_1, beta_2, eps, decay = 0.9, 0.99, 1e-15, 0.01
    after = State({}, {}, {}, {}, state.occupancy, state.occupied)
    for name, parameters in state.parameters.items():
        rows = []
        for i, (p, g) in enumerate(zip(parameters, gradients[name], strict=True)):
            p, m, v, n = p.detach(), state.first[name][i], state.second[name][i], state.count[name][i]
            if g is not None:
                n += 1
                m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
                update = (m / (1 - beta_1**n)) / ((v / (1 - beta_2**n)).sqrt() + eps)
                p = p * (1 - lr[name] * decay) - lr[name] * update
            rows.append((p, m, v, n))
        after.parameters[name], after.first[name], after.second[name], after.count[name] = map(
            list, zip(*rows, strict=True)
        )
    return after
