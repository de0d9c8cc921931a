"""ImageDream from random checkpoints of the authors' layout: read whole, told a picture, in a term and as an energy."""

from types import SimpleNamespace

import pytest
import torch

from jointdreamer.cameras import Rig, mvdream_camera, orbit_cameras, sample_cameras
from jointdreamer.distillation.base import weighted_sum
from jointdreamer.distillation.registry import build_terms
from jointdreamer.energies.none import NoEnergy
from jointdreamer.energies.reconstruction import imagedream
from jointdreamer.errors import UserError
from jointdreamer.optim import build_optimizer
from jointdreamer.priors.imagedream import ImageDream, Resampler, load_imagedream
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.priors.multi_view_unet import load_multiview, set_views
from jointdreamer.priors.prompts import Prompts
from jointdreamer.reference import ImageCamera, Reference
from jointdreamer.scenes.nerf.scene import NeRF

TOKENS, TEXT = 16, 16  # of the picture; the width of the text


@pytest.fixture(scope="module")
def prior(imagedream_file, tiny_sd_folder):
    prior = ImageDream.build(imagedream_file, text=tiny_sd_folder("epsilon"), image_size=16, dtype="float32")
    prior.give_image(torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(5)))
    return prior


def asked(prior, x_t, cameras, scale=1.0):
    text = prior.embed(Prompts("a red robot"))
    t = torch.full((len(x_t),), 400)
    return prior.predict(x_t, t, [text.at(cameras), text.nothing(cameras)], cameras)


def noise(views=4, rigs=1):
    return torch.randn(rigs, views, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_every_weight_is_read(imagedream_state, imagedream_file):
    parts = load_imagedream(imagedream_file)
    held = sum(p.numel() for part in (parts.unet, parts.resampler, parts.vae) for p in part.parameters())
    wanted = sum(v.numel() for k, v in imagedream_state.items() if k.startswith(("model.", "first_stage_model.")))
    assert held == wanted
    block = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v_ip.weight"
    processor = parts.unet.attn_processors["mid_block.attentions.0.transformer_blocks.0.attn2.processor"]
    assert torch.equal(processor.to_v_ip.weight, imagedream_state[block])


def test_without_its_tokens_and_fifth_view_it_is_mvdream(imagedream_state, prior, tmp_path):
    """With values of 0 for the picture's tokens, the "local" model computes what MVDream's own loader does."""
    path = tmp_path / "mv.pt"
    own = {
        k: v
        for k, v in imagedream_state.items()
        if "image_embed" not in k and "_ip." not in k and not k.startswith("clip_")
    }
    torch.save(own, path)
    torch.save(
        {k: torch.zeros_like(v) if "to_v_ip" in k else v for k, v in imagedream_state.items()}, tmp_path / "ipmv.pt"
    )
    local = ImageDream.build(tmp_path / "ipmv.pt", variant="local", image_size=16, dtype="float32")
    local.features, local.picture = prior.features, prior.picture
    plain = load_multiview(path).unet
    set_views(plain, 4)
    cameras, x_t = orbit_cameras(4, 8), noise()
    text = prior.embed(Prompts("a red robot"))
    (got,) = local.predict(x_t, torch.tensor([400]), [text.at(cameras)], cameras)
    with torch.no_grad():
        wanted = plain(
            x_t[0], torch.full((4,), 400), text.at(cameras).embedding[0], class_labels=mvdream_camera(cameras.c2w)[0]
        ).sample
    torch.testing.assert_close(got[0], wanted, atol=2e-5, rtol=1e-4)


def test_the_picture_changes_the_prediction_with_the_text_alone(prior):
    cameras, x_t, before = orbit_cameras(4, 8), noise(), (prior.features, prior.picture)
    cond, uncond = asked(prior, x_t, cameras)
    prior.give_image(torch.zeros(3, 20, 20))
    other, same = asked(prior, x_t, cameras)
    prior.features, prior.picture = before
    assert cond.shape == (1, 4, 4, 8, 8)
    assert not torch.allclose(cond, other, atol=1e-4) and torch.equal(uncond, same)


def test_the_fifth_view_is_seen_by_the_others_and_has_no_camera(prior, monkeypatch):
    cameras, x_t = orbit_cameras(4, 8), noise()
    seen = {}

    def network(rows, t, encoder_hidden_states, class_labels, return_dict):
        seen.update(rows=rows, words=encoder_hidden_states, camera=class_labels)
        return (rows,)

    text = prior.embed(Prompts("a red robot"))
    conditions = [text.at(cameras), text.nothing(cameras)]
    monkeypatch.setattr(prior.unet, "forward", network)
    out = prior.network(x_t, torch.tensor([10]), conditions, cameras)
    rows, camera = seen["rows"].unflatten(0, (2, 5)), seen["camera"].unflatten(0, (2, 5))
    assert torch.equal(rows[0, 4], prior.picture[0]) and not rows[1, 4].any()
    assert torch.equal(rows[:, :4], torch.cat([x_t, x_t])) and torch.equal(out, torch.cat([x_t, x_t]).flatten(0, 1))
    assert not camera[:, 4].any() and torch.equal(camera[0, :4], mvdream_camera(cameras.c2w)[0])
    words = seen["words"].unflatten(0, (2, 5))
    assert words.shape[2:] == (12 + TOKENS, TEXT)
    torch.testing.assert_close(words[0, :, 12:], prior.resampler(prior.features).expand(5, -1, -1))
    torch.testing.assert_close(words[1, :, 12:], prior.resampler(0 * prior.features).expand(5, -1, -1))


def test_rigs_do_not_influence_each_other(prior):
    cameras = sample_cameras(Rig(n_rigs=2, n_views=4), 8, torch.Generator().manual_seed(0))
    x_t = noise(rigs=2)
    first, _ = asked(prior, x_t, cameras)
    changed = x_t.clone()
    changed[1] += 1
    again, _ = asked(prior, changed, cameras)
    torch.testing.assert_close(first[0], again[0], atol=1e-5, rtol=1e-5)


def test_the_resampler_s_queries_are_mixed_by_what_they_see():
    """Of one feature and no depth it is the projections of the queries; with a layer the feature counts."""
    torch.manual_seed(0)
    resampler = Resampler(3, 8, 6, 5, 64, 16, 1)
    torch.nn.init.normal_(resampler.latents)
    one, two = resampler(torch.randn(1, 2, 6)), resampler(torch.randn(1, 2, 6))
    assert one.shape == (1, 3, 5) and not torch.allclose(one, two)
    resampler.layers = torch.nn.ModuleList()
    bare = resampler.norm_out(resampler.proj_out(resampler.latents))
    torch.testing.assert_close(resampler(torch.randn(1, 2, 6)), bare)


@pytest.mark.parametrize("as_energy", [False, True])
def test_three_steps_end_to_end(imagedream_file, tiny_sd_folder, as_energy):
    text = tiny_sd_folder("epsilon")
    options = {"text": text, "image_size": 16, "dtype": "float32"}
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    rig, generator = Rig(), torch.Generator().manual_seed(0)

    def prior(role):
        if role != "imagedream":
            return LatentDiffusion.build(text, image_size=16, dtype="float32")
        return ImageDream.build(imagedream_file, **options)

    energy = imagedream(imagedream_file, **options) if as_energy else None
    terms = build_terms(
        {"jsd" if as_energy else "imagedream": {"prior": "text_to_image" if as_energy else "imagedream"}},
        prior=prior,
        energy=lambda: energy or NoEnergy(),
        prompts=Prompts("a red robot"),
        rig=rig,
        reference=Reference(torch.cat([picture, torch.ones_like(picture[:1])]), ImageCamera()),
    )
    scene = NeRF.build(
        {"encoding": {"n_levels": 2, "log2_table_size": 8, "backend": "torch"}, "hidden": 4},
        {},
        {"n_samples": 16, "grid_resolution": 8, "backend": "torch"},
    )
    optimizer = build_optimizer(scene.parameter_groups(), scene.lr_scale)
    now = SimpleNamespace(
        t_min=0.1, t_max=0.9, guidance_scale=3.0, energy_weight=1.0, negative_prompt=False, shading=False,
        loss=SimpleNamespace(jsd=1.0, imagedream=1.0), lr=SimpleNamespace(geometry=1e-2, appearance=1e-2, background=0),
    )  # fmt: skip
    before = torch.cat([p.detach().flatten().clone() for p in scene.parameters()])
    for step in range(3):
        cameras = sample_cameras(rig, 8, generator)
        scene.before_step(step, generator)
        render = scene.render(cameras, now, generator)
        loss = weighted_sum(terms[0](scene, render, cameras, now, generator), now.loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(now.lr)
        assert loss.isfinite()
    after = torch.cat([p.detach().flatten() for p in scene.parameters()])
    assert after.isfinite().all() and not torch.equal(before, after)
    if energy:
        assert terms[0].metrics["coherence"] < 0


def test_a_picture_is_wanted_in_one_line(imagedream_file, tiny_sd_folder):
    prior = ImageDream.build(imagedream_file, text=tiny_sd_folder("epsilon"), image_size=16, dtype="float32")
    with pytest.raises(UserError, match="told a picture of the object: give one, image=FILE"):
        prior.embed(Prompts("a red robot"))


def test_mvdream_is_no_imagedream(mvdream_state, tmp_path):
    torch.save(mvdream_state(text=TEXT), tmp_path / "sd-v2.1-base-4view.pt")
    with pytest.raises(UserError, match=r"no complete ImageDream: it has no attn2\.to_k_ip") as error:
        load_imagedream(tmp_path / "sd-v2.1-base-4view.pt")
    assert "models.multi_view.source" in str(error.value)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("image_embed.latents", "image_embed.latents"),
        ("image_embed.layers.1.0.norm1.bias", "image_embed.*layers.1.0.norm1.bias"),
        ("out.2.bias", "conv_out.bias"),
    ],
)
def test_a_lost_weight_is_named(imagedream_state, tmp_path, lost, said):
    torch.save({k: v for k, v in imagedream_state.items() if not k.endswith(lost)}, tmp_path / "ipmv.pt")
    with pytest.raises(UserError, match=f"no complete ImageDream.*{said}"):
        load_imagedream(tmp_path / "ipmv.pt")
