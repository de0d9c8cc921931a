import torch
from transformers import CLIPTokenizer

from jointdreamer.toybox import networks
from jointdreamer.toybox.world import vocabulary


def test_every_word_of_the_world_is_one_token_before_and_after_saving(tmp_path):
    tokenizer = networks.build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for known in (tokenizer, CLIPTokenizer.from_pretrained(tmp_path)):
        assert [word for word in vocabulary() if len(known.tokenize(word)) != 1] == []
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


def test_the_judge_answers_every_question():
    answers = networks.JudgeNet()(torch.rand(3, 3, 64, 64))
    assert {k: v.shape for k, v in answers.items()} == {k: (3, n) for k, n in networks.JudgeNet.HEADS.items()}
