"""Wonder3D: six fixed orthographic views, as normal maps and as colours, drawn together. docs/conventions.md, Wonder3D.

The UNet is the stock one of diffusers. Its self-attention sees the six views of a domain at once, by the same processor
as MVDream's, and each of its transformer blocks has one more attention, in which a view of one domain sees itself and
the same view in the other domain: a block of our own around the stock layers, with plain scaled-dot-product attention.
"""

import inspect
import json
from collections.abc import Sequence
from math import radians
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jointdreamer.cameras import Cameras, Rig
from jointdreamer.diffusion import noise_like
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition
from jointdreamer.priors.multi_view_unet import MultiViewAttnProcessor
from jointdreamer.priors.novel_view import NovelView, Parts, check_unet, folder_parts
from jointdreamer.weights.checkpoint import read_checkpoint
from jointdreamer.weights.noise_process import load_noise_process
from jointdreamer.weights.parts import build_exactly

AZIMUTH_DEG = (0.0, 45.0, 90.0, 180.0, -90.0, -45.0)  # front, front right, right, back, left, front left
VIEWS = len(AZIMUTH_DEG)
NORMALS, COLORS = (1.0, 0.0), (0.0, 1.0)
# What the network was told of its six cameras: (polar, azimuth) of one sample camera's frame, in half precision.
# Labels, not angles: they do not follow from AZIMUTH_DEG.
LABELS = (
    (0.0, 0.0),
    (-0.2362, 0.8125),
    (-0.1686, 1.6934),
    (0.5220, 3.1406),
    (0.6904, 4.8359),
    (0.3733, 5.5859),
)


class Wonder3D(NovelView):
    """The rig must be its own (conf/novel_view/wonder3d.yaml), and the reference is the rig's first view.

    The network draws normal maps and colours that see each other. We have noised colours of the object, but no normal
    maps: they start from the network's own one-step guess out of pure noise, noised to the timestep of the colours. It
    costs a second pass; anything that is no normal map would tell the colours of a wrong shape at small timesteps.
    """

    together = True
    role = "wonder3d"

    @classmethod
    def read(cls, path: Path, vae: Any, dtype: torch.dtype) -> Parts:
        if not path.is_dir():
            raise UserError(f"{path} is no Wonder3D folder: wanted one with unet/, vae/, image_encoder/, scheduler/")
        process = load_noise_process(path)
        own_vae, image_encoder = folder_parts(path, vae, dtype)
        unet = read_unet(path / "unet", dtype)
        check_unet(unet, path, "Wonder3D model", image_encoder)
        return Parts(unet, own_vae, image_encoder, process)

    def check_rig(self, rig: Rig) -> None:
        azimuth = None if rig.azimuth_deg is None else tuple(map(float, rig.azimuth_deg))
        if (rig.n_views, azimuth, rig.projection) != (VIEWS, AZIMUTH_DEG, "orthographic"):
            raise UserError(
                f"Wonder3D draws six fixed orthographic views: it wants cameras.n_views={VIEWS}, cameras.azimuth_deg="
                f"{[round(a) for a in AZIMUTH_DEG]} and cameras.projection=orthographic, which novel_view=wonder3d "
                f"sets; got n_views {rig.n_views}, azimuth_deg {rig.azimuth_deg}, projection {rig.projection}"
            )

    @torch.no_grad()
    def embed_image(self, image: Tensor, reference: Cameras, cameras: Cameras) -> Condition:
        """The image's latents are the posterior's mode, scaled (Zero-1-to-3 does not scale them)."""
        if not reference.orthographic or not cameras.orthographic or not _is_rig(reference, cameras):
            raise UserError("these cameras are not the six of Wonder3D around its reference: novel_view=wonder3d")
        embedding = self.image_embedding(image, antialias=True)[:, None, None].expand(-1, VIEWS, -1, -1)
        latents = self.mode(image) * self.vae.config.scaling_factor
        return Condition(embedding, {"image": latents[:, None].expand(-1, VIEWS, -1, -1, -1)})

    def start(
        self, condition: Condition, x_t: Tensor, t: Tensor, cameras: Cameras, generator: torch.Generator | None
    ) -> Tensor:
        """(B, 12, C, h, w): the normal maps, then the colours."""
        if x_t.shape[1] != VIEWS:
            raise UserError(f"Wonder3D draws {VIEWS} views, got {x_t.shape[1]} (cameras.n_views): novel_view=wonder3d")
        last = torch.full_like(t, self.process.last)
        pure = noise_like(torch.cat([x_t, x_t], 1), generator)
        (noise,) = self.predict(pure, last, [condition], cameras)
        normals = self.guidance.x0(self.process, pure, last, noise, noise)[:, :VIEWS]
        alpha_t, sigma_t = self.process.at(t)
        return torch.cat([alpha_t * normals + sigma_t * noise_like(normals, generator), x_t], 1)

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, conditions: Sequence[Condition], cameras: Cameras | None) -> list[Tensor]:
        """x_t: (B, 12, C, h, w) as `start` gives. Rows of the network: domain, condition, rig, view."""
        k, b, dtype = len(conditions), x_t.shape[0], self.unet.dtype
        domains = x_t.to(dtype).unflatten(1, (2, VIEWS)).movedim(1, 0)  # (2, B, 6, C, h, w)
        rows = torch.stack([domains] * k, 1).flatten(0, 3)
        image = torch.cat([c.extra["image"] for c in conditions]).to(dtype).flatten(0, 1)  # (K B 6, C, h, w)
        context = torch.cat([c.embedding for c in conditions]).to(dtype).flatten(0, 1)  # (K B 6, 1, D)
        labels = class_labels().to(x_t.device, dtype)[:, None].expand(-1, k * b, -1, -1).flatten(0, 2)
        out = self.unet(
            torch.cat([rows, image.repeat(2, 1, 1, 1)], 1),
            t.repeat_interleave(VIEWS).repeat(2 * k),
            context.repeat(2, 1, 1),
            class_labels=labels,
            return_dict=False,
        )[0]
        out = out.float().unflatten(0, (2, k, b, VIEWS)).movedim(0, 2).flatten(2, 3)  # (K, B, 12, C, h, w)
        return [self.process.noise(one, x_t, t) for one in out]


def class_labels() -> Tensor:
    """(2, 6, 10), normals then colours: sines, then cosines, of [0, polar, azimuth, domain]; the flags too."""
    numbers = torch.tensor([[(0.0, *label, *domain) for label in LABELS] for domain in (NORMALS, COLORS)])
    numbers = numbers.half().float()
    return torch.cat([numbers.sin(), numbers.cos()], -1)


def _is_rig(reference: Cameras, cameras: Cameras) -> bool:
    """Whether the cameras stand where they should around the reference, each at its angle in the reference's frame."""
    direction = torch.einsum("bxi,bvx->bvi", reference.c2w[:, 0, :3, :3], cameras.c2w[..., :3, 2])
    angle = direction.new_tensor([radians(a) for a in AZIMUTH_DEG])
    wanted = torch.stack([angle.sin(), torch.zeros_like(angle), angle.cos()], -1)
    return direction.shape[1] == VIEWS and bool((direction - wanted).abs().max() < 1e-3)


class CrossDomainBlock(nn.Module):
    """A transformer block: the views of a domain, then the two domains of a view, then the image, then feed-forward.

    It takes over the layers of a stock BasicTransformerBlock and adds `attn_joint_mid` with its norm. The first half of
    the rows are normal maps, the second half the same views in colour.
    """

    def __init__(self, block: Any):
        from diffusers.models.attention_processor import Attention

        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ff = block.norm3, block.ff
        dim, heads = block.norm1.normalized_shape[0], block.attn1.heads
        self.norm_joint_mid = nn.LayerNorm(dim)
        self.attn_joint_mid = Attention(query_dim=dim, heads=heads, dim_head=dim // heads)
        self.attn1.set_processor(MultiViewAttnProcessor(VIEWS))

    def forward(
        self, hidden_states: Tensor, attention_mask=None, encoder_hidden_states: Tensor | None = None, **_
    ) -> Tensor:
        h = hidden_states + self.attn1(self.norm1(hidden_states))
        # Both domains of a view as one sequence
        pairs = torch.cat(self.norm_joint_mid(h).chunk(2), 1)
        h = h + torch.cat(self.attn_joint_mid(pairs).chunk(2, 1))
        h = h + self.attn2(self.norm2(h), encoder_hidden_states=encoder_hidden_states)
        return h + self.ff(self.norm3(h))


def build_unet(config: dict[str, Any]) -> Any:
    """The stock UNet of Wonder3D's config with a CrossDomainBlock for every transformer block."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    unet = UNet2DConditionModel(**{key: value for key, value in config.items() if key in known})
    for module in list(unet.modules()):
        blocks = getattr(module, "transformer_blocks", None)
        if isinstance(blocks, nn.ModuleList):
            for i, block in enumerate(blocks):
                blocks[i] = CrossDomainBlock(block)
    return unet


def read_unet(folder: Path, dtype: torch.dtype) -> Any:
    """The UNet of a Wonder3D folder: every tensor used once. Older files call the joint layers `_twice`.

    Raises UserError, one line.
    """
    where = f"{folder} is no Wonder3D UNet"
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors")) or sorted(folder.glob("*.bin"))
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / 'config.json'}: {error}; download it again") from error
    if len(files) != 1:
        raise UserError(f"{where}: wanted one file of weights in it, found {len(files)}; download it again")
    if config.get("class_embed_type") != "projection" or config.get("projection_class_embeddings_input_dim") != 10:
        raise UserError(f"{where}: its config needs class_embed_type 'projection' with 10 numbers (the camera)")
    config = {key: _stock(value) for key, value in config.items()}
    mapped, names = {}, {}
    for key, value in read_checkpoint(files[0]).items():
        new = key.replace("_joint_twice.", "_joint_mid.")
        mapped[new], names[new] = value, key
    return build_exactly(lambda: build_unet(config), mapped, dtype, where, names)


def _stock(value: Any) -> Any:
    """The authors' classes of blocks are the stock ones under the names MV2D."""
    if isinstance(value, list):
        return [_stock(item) for item in value]
    return value.replace("MV2D", "2D") if isinstance(value, str) else value
