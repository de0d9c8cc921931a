import pytest
import torch
from transformers import CLIPTokenizer

from jointdreamer.toybox import networks
from jointdreamer.toybox.networks import EDITIONS
from jointdreamer.toybox.world import COLORS, vocabulary


@pytest.mark.parametrize("edition", EDITIONS.values(), ids=map(str, EDITIONS))
def test_every_word_of_the_world_is_one_token_before_and_after_saving(edition, tmp_path):
    tokenizer = networks.build_tokenizer(edition.words)
    tokenizer.save_pretrained(tmp_path)
    for known in (tokenizer, CLIPTokenizer.from_pretrained(tmp_path)):
        assert [word for word in vocabulary(edition.words) if len(known.tokenize(word)) != 1] == []
        assert len(known.tokenize("zebra")) > 1
        assert known.model_max_length == networks.TEXT_LENGTH


def test_the_longest_caption_fits():
    longest = "a photo of a spotted purple elephant wearing a yellow backpack, overhead view"
    assert len(networks.build_tokenizer()(longest).input_ids) <= networks.TEXT_LENGTH


def test_the_multi_view_unet_differs_by_the_camera_only():
    flat, multi = networks.build_unet().state_dict(), networks.build_unet(multiview=True).state_dict()
    assert {k for k in multi if k not in flat} == {
        f"class_embedding.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")
    }
    assert all(multi[k].shape == v.shape for k, v in flat.items())


@pytest.mark.parametrize("edition", EDITIONS.values(), ids=map(str, EDITIONS))
def test_the_judge_answers_every_question(edition):
    words = edition.words
    answers = networks.JudgeNet(words)(torch.rand(3, 3, 64, 64))
    assert {name: logits.shape[1] for name, logits in answers.items()} == {
        "azimuth": networks.AZIMUTH_BINS,
        "face": 2,
        "kind": len(words.kinds),
        "color": len(COLORS),
        "pattern": len(words.patterns),
        "accessory": len(words.accessories),
        "accessory_color": len(COLORS),
    }


@pytest.mark.parametrize("edition", EDITIONS.values(), ids=map(str, EDITIONS))
def test_normalized_latents_have_unit_spread_in_every_channel_and_give_the_same_images(edition):
    torch.manual_seed(0)
    vae = networks.build_vae(edition).eval().requires_grad_(False)
    rgb = 2 * torch.rand(6, 3, 64, 64) - 1
    before, image = vae.encode(rgb).latent_dist, vae.decode(vae.encode(rgb).latent_dist.mean).sample
    mean, std = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
    networks.normalize_latents(vae, mean, std)
    after = vae.encode(rgb).latent_dist
    assert after.mean.shape == (6, edition.latent_channels, 16, 16) and vae.config.scaling_factor == 1
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones_like(std), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std, before.std / std[:, None, None], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(vae.decode(after.mean).sample, image, atol=1e-4, rtol=1e-3)
