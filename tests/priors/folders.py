"""Random text-to-image models in the folder layouts of Stable Diffusion XL, 3.5 and DeepFloyd IF, 16 pixels."""

import json
from pathlib import Path
from typing import Any

from tests.conftest import WORDS, _scheduler, _unet, _vae, tiny_tokenizer

CLIP_WIDTHS, POOLED = (16, 24), (16, 20)  # of the two encoders: their states, their projections
T5_WIDTH = 48
TIME_ID = 8  # channels of each of the six time ids


def clip(folder: Path, number: str, projected: bool = True, length: int = 12) -> None:
    """text_encoder and tokenizer, or those of a later number."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    width, pooled = CLIP_WIDTHS[number == "_2"], POOLED[number == "_2"]
    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=pooled,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    kind(config).save_pretrained(folder / f"text_encoder{number}")
    tokenizer.save_pretrained(folder / f"tokenizer{number}")


def t5(folder: Path, number: str) -> None:
    """A T5 encoder whose tokenizer knows WORDS."""
    from transformers import T5Config, T5EncoderModel

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocab += [(f"\u2581{word}", -1.0) for word in WORDS] + [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = unigram_tokenizer(vocab)
    tokenizer.save_pretrained(folder / f"tokenizer{number}")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    T5EncoderModel(config).save_pretrained(folder / f"text_encoder{number}")


def unigram_tokenizer(vocab: list[tuple[str, float]]) -> Any:
    """T5's tokenizer of pieces with their scores, in every transformers that we allow."""
    import transformers
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import Unigram

    backend = Tokenizer(Unigram(vocab, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    kind: Any = getattr(transformers, "T5TokenizerFast", None) or transformers.T5Tokenizer
    try:
        return kind(tokenizer_object=backend, extra_ids=0)
    except TypeError:
        return kind(vocab=vocab, extra_ids=0)


def write_sdxl(folder: Path) -> None:
    unet = _unet(
        cross_attention_dim=sum(CLIP_WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID,
        projection_class_embeddings_input_dim=POOLED[1] + 6 * TIME_ID,
    )
    unet.save_pretrained(folder / "unet")
    vae = _vae()
    vae.register_to_config(scaling_factor=0.13025, force_upcast=True)
    vae.save_pretrained(folder / "vae")
    _scheduler("epsilon").save_pretrained(folder / "scheduler")
    clip(folder, "", projected=False)
    clip(folder, "_2")
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index))


def write_sd35(folder: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=sum(POOLED),
        out_channels=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    transformer.save_pretrained(folder / "transformer")
    options: dict[str, Any] = dict(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=16,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )
    AutoencoderKL(**options).save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    clip(folder, "")
    clip(folder, "_2")
    t5(folder, "_3")


def write_if(folder: Path) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=32,
        encoder_hid_dim=T5_WIDTH,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        beta_start=0.0001,
        beta_end=0.02,
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        prediction_type="epsilon",
        variance_type="learned_range",
    ).save_pretrained(folder / "scheduler")
    t5(folder, "")


WRITERS = {"sdxl": write_sdxl, "sd35": write_sd35, "if": write_if}
