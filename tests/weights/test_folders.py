"""Which of a repository's files are fetched."""

from jointdreamer.weights.folders import wanted_files


def test_wanted_files_leave_out_second_copies_and_keep_a_pickle_where_it_is_all_there_is():
    files = ["README.md", "unet/config.json", "unet/a.safetensors", "unet/a.fp16.safetensors", "unet/a.bin", "x.ckpt"]
    files += ["vae/config.json", "vae/model.bin", "half/config.json", "half/b.fp16.safetensors", "half/model.bin"]
    wanted = wanted_files(files, ["unet/config.json", "vae/config.json", "half/config.json"])
    kept = {"unet/config.json", "unet/a.safetensors", "vae/config.json", "vae/model.bin"}
    assert set(wanted) == kept | {"half/config.json", "half/b.fp16.safetensors"}
    root = ["config.json", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"]
    assert set(wanted_files(root, ["config.json"])) == {"config.json", "pytorch_model.bin"}


def test_a_large_encoder_in_two_precisions_and_eight_bits_is_fetched_once():
    """text_encoder/ of DeepFloyd IF and text_encoder_3/ of Stable Diffusion 3.5."""
    shards = [f"text_encoder/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "text_encoder/model.safetensors.index.json"
    half = [name.replace("model-", "model.fp16-") for name in shards]
    half_index = "text_encoder/model.safetensors.index.fp16.json"
    others = ["text_encoder/model.8bit.safetensors", "text_encoder/pytorch_model-00001-of-00002.bin"]
    config = "text_encoder/config.json"
    everything = [config, *shards, index, *half, half_index, *others]
    assert set(wanted_files(everything, [config])) == {config, *shards, index}
    assert set(wanted_files([config, *half, half_index, *others], [config])) == {config, *half, half_index}
