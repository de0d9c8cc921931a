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
