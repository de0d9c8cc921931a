"""Original checkpoints by their names and shapes; what the converted networks compute is in test_multi_view_unet.py."""

import pytest
import torch

from jointdreamer.errors import UserError
from jointdreamer.priors.ldm import UNET, VAE, unet_from_ldm, unet_names, vae_from_ldm
from tests.conftest import ldm_unet_shapes, ldm_vae_shapes, random_state

LEVELS = (320, 640, 1280, 1280), 2, (True, True, True, False), 1024  # Stable Diffusion 2.1


def on_meta(shapes, prefix=""):
    return {prefix + key: torch.empty(shape, device="meta", dtype=torch.half) for key, shape in shapes.items()}


def test_every_name_of_the_real_networks_is_renamed_once_to_a_weight_of_the_same_shape():
    unet = on_meta(ldm_unet_shapes(*LEVELS))
    names = unet_names(unet, 2)
    assert sorted(names.values()) == sorted(unet) and names["class_embedding.linear_2.bias"] == "camera_embed.2.bias"
    built = unet_from_ldm(unet, torch.half, "here")
    assert {new: tensor.shape for new, tensor in built.state_dict().items()} == {
        new: unet[old].shape for new, old in names.items()
    }
    vae = on_meta(ldm_vae_shapes((128, 256, 512, 512), 2), VAE)
    built = vae_from_ldm(vae, torch.half, "here")
    assert sum(p.numel() for p in built.parameters()) == sum(tensor.numel() for tensor in vae.values())


def test_a_name_that_diffusers_does_not_know_is_kept_and_refused():
    state = random_state(ldm_unet_shapes((32, 64), 1, (True, False), 16))
    assert unet_names([*state, "odd.weight"], 1)["odd.weight"] == "odd.weight"
    for odd in ("odd.weight", "input_blocks.1.0.odd.weight", "label_emb.0.0.weight"):
        with pytest.raises(UserError, match=rf"^here: .*\(none\), first unexpected key {UNET}{odd}$"):
            unet_from_ldm(state | {odd: torch.ones(1)}, torch.float32, "here")
    vae = {VAE + key: value for key, value in random_state(ldm_vae_shapes()).items()}
    for odd in ("odd.weight", "encoder.mid.odd.weight", "encoder.down.0.attn.0.q.weight"):
        with pytest.raises(UserError, match=rf"^here: .*\(none\), first unexpected key {VAE}{odd}$"):
            vae_from_ldm(vae | {VAE + odd: torch.ones(1)}, torch.float32, "here")


@pytest.mark.parametrize("key", ["input_blocks.2.0.op.bias", "input_blocks.1.0.out_layers.3.weight", "out.0.bias"])
def test_a_weight_that_lacks_is_named(key):
    state = random_state(ldm_unet_shapes((32, 64), 1, (True, False), 16))
    del state[key]
    with pytest.raises(UserError, match="^here: first missing key .*first unexpected key .none.$"):
        unet_from_ldm(state, torch.float32, "here")


@pytest.mark.parametrize("state", [{}, {"out.2.weight": torch.ones(1)}, {"input_blocks.0.0.weight": torch.ones(())}])
def test_weights_of_something_else_are_one_line(state):
    with pytest.raises(UserError, match="^here: ") as error:
        unet_from_ldm(state, torch.float32, "here")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="^here: "):
        vae_from_ldm({VAE + key: value for key, value in state.items()}, torch.float32, "here")
