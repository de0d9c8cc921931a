"""The multi-view diffusion model (MVDream) on diffusers' own UNet2DConditionModel and AutoencoderKL.

The stock UNet holds every MVDream weight: the 16 camera numbers go in as class labels (class_embed_type "projection")
and are added to the time embedding. What differs is one attention processor, which lets self-attention see the tokens
of all V views of a rig at once. Names and layouts: docs/conventions.md, Multi-view UNet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointdreamer.diffusion import NoiseProcess, scaled_linear_alphas_cumprod
from jointdreamer.errors import UserError
from jointdreamer.precision import network_dtype
from jointdreamer.priors.autoencoder import check_autoencoder, load_autoencoder
from jointdreamer.priors.ldm import UNET, VAE, strip, unet_from_ldm, vae_from_ldm
from jointdreamer.priors.placement import place, place_unet
from jointdreamer.weights.checkpoint import advice, differences, read_checkpoint
from jointdreamer.weights.find import find_weights
from jointdreamer.weights.noise_process import load_noise_process
from jointdreamer.weights.parts import load_part, part_keys, read_part

SHARED = "shared"  # the autoencoder that is the text-to-image model's
CAMERA = "camera_embed.0.weight"  # in the original layout


class MultiViewAttnProcessor:
    """Self-attention over the tokens of all views of a rig; attention to text stays each view's own.

    Rows must be consecutive views: (B V, L, C) is seen as (B, V L, C).
    """

    def __init__(self, n_views: int):
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.n_views = n_views
        self.within = AttnProcessor2_0()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs) -> Tensor:
        if encoder_hidden_states is not None or self.n_views == 1:
            return self.within(attn, hidden_states, encoder_hidden_states, **kwargs)
        rows, tokens, channels = hidden_states.shape
        if rows % self.n_views:
            raise ValueError(f"{rows} rows are not whole rigs of {self.n_views} views")
        joint = hidden_states.reshape(rows // self.n_views, self.n_views * tokens, channels)
        return self.within(attn, joint, **kwargs).reshape(rows, tokens, channels)


def set_views(unet: Any, n_views: int) -> None:
    """Tell a multi-view UNet (or make a stock one into a UNet) that sees rigs of `n_views`; 1 is the plain network."""
    for processor in unet.attn_processors.values():
        if not isinstance(processor, MultiViewAttnProcessor) or processor.n_views != n_views:
            unet.set_attn_processor(MultiViewAttnProcessor(n_views))
            return


@dataclass(frozen=True)
class MultiViewModel:
    """A multi-view diffusion model, frozen."""

    unet: Any  # UNet2DConditionModel whose class labels are cameras
    vae: Any  # AutoencoderKL; None if the folder or checkpoint has none, or another model's latents are taken
    process: NoiseProcess


def load_multiview(path: str | Path, dtype: torch.dtype = torch.float32) -> MultiViewModel:
    """Read a diffusers folder (unet/, scheduler/, perhaps vae/) or an MVDream checkpoint (.pt, .ckpt, .safetensors).

    Raises UserError, one line, if it is missing, damaged or no multi-view model.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, dtype)
    state = read_checkpoint(path)
    unet = _unet(state, dtype, path)
    has_vae = any(key.startswith(VAE) for key in state)
    vae = vae_from_ldm(state, dtype, f"{path} is no complete MVDream checkpoint") if has_vae else None
    alphas_cumprod = state.get("alphas_cumprod", scaled_linear_alphas_cumprod()).float().clone()
    return MultiViewModel(unet, vae, NoiseProcess.variance_preserving(alphas_cumprod))


def _unet(state: Mapping[str, Tensor], dtype: torch.dtype, path: Path) -> Any:
    """MVDream's UNet as a UNet2DConditionModel, frozen. Raises UserError for one without cameras, or not whole."""
    where = f"{path} is no complete MVDream checkpoint"
    ldm = strip(state, UNET) or (state if CAMERA in state else {})  # or the UNet alone
    if CAMERA not in ldm:
        what = "has no camera_embed: a single-view model" if ldm else "has no model.diffusion_model.* weights"
        odd = [key for key in state if not key.startswith((UNET, VAE, "cond_stage_model."))]
        keys = differences([f"{UNET}{CAMERA}"], odd, seen=state)
        raise UserError(f"{where}: it {what} ({keys}); expected e.g. sd-v2.1-base-4view.pt")
    return unet_from_ldm(ldm, dtype, where)


def find_multiview(
    source: str | Path | Sequence[str],
    file: str | None = None,
    vae: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    compile: bool = False,
) -> tuple[MultiViewModel, Path]:
    """A multi-view model on its device, and the folder or checkpoint that it came from.

    source: diffusers folder, MVDream checkpoint, or a hub id of either; or a list, tried in order
    file: the checkpoint's name inside a folder or repository
    vae: folder or hub id whose vae/ takes the place of its own; SHARED for none

    Raises UserError, one line, if the weights are missing, damaged or do not fit.
    """
    device = torch.device(device)
    dtype = network_dtype(dtype, device)
    download = device.type == "cuda"
    hint = "name the checkpoint's file, models.multi_view.source=FILE (or a diffusers folder, with "
    hint += "models.multi_view.file=null); models=toybox needs no download"
    path = find_weights(source, "multi_view", file=file, hint=hint, download=download)
    model = load_multiview(path, dtype)
    if vae == SHARED:
        autoencoder = None
    elif vae is not None:
        role = "autoencoder of the multi-view model"
        folder = find_weights(vae, role, needs=("vae/config.json",), download=download)
        autoencoder = load_autoencoder(folder, dtype)
    elif model.vae is not None:
        autoencoder = model.vae
    else:
        raise UserError(f"{path} has no autoencoder: name a folder that has one, models.multi_view.vae=FOLDER")
    if autoencoder is not None:
        check_autoencoder(autoencoder, model.unet.config.in_channels, path)
    unet = place_unet(model.unet, device, compile)
    autoencoder = autoencoder if autoencoder is None else place(autoencoder, device)
    return MultiViewModel(unet, autoencoder, model.process.to(device)), path


def _load_folder(folder: Path, dtype: torch.dtype) -> MultiViewModel:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    process = load_noise_process(folder)
    if any(key.endswith(CAMERA) for key in part_keys(folder / "unet")):
        # the widely used diffusers copies keep the original names, for a class of their own
        unet = _unet(read_part(folder / "unet"), dtype, folder / "unet")
    else:
        unet = load_part(UNet2DConditionModel, folder, "unet", dtype)
    labels = (unet.config.class_embed_type, unet.config.projection_class_embeddings_input_dim)
    if labels != ("projection", 16):
        raise UserError(
            f"{folder / 'unet'} is no multi-view UNet: its config needs class_embed_type 'projection' with "
            f"projection_class_embeddings_input_dim 16 (the camera), got {labels[0]!r} with {labels[1]}"
            f"{advice(part_keys(folder / 'unet'), 'multi_view')}"
        )
    vae = load_autoencoder(folder, dtype) if (folder / "vae").is_dir() else None
    return MultiViewModel(unet, vae, process)
