"""In what precision a frozen network runs."""

import torch

from jointdreamer.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def network_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """The dtype of a frozen network's weights and activations on a device, whatever the files hold.

    "auto" is float16 on CUDA, bfloat16 on a CPU with instructions for its products (AMX, AVX512-BF16), float32 on any
    other. The toybox UNet, batch 8, on one core, milliseconds of CPU time: of an AMD EPYC (Zen 4, AVX512-BF16 alone) 80
    in float32, 41 in bfloat16 through `fast_unet`; of a Sapphire Rapids (AMX) 61 and 38 in diffusers' own forward, 20
    through `fast_unet`, 82 in float16, and 174 in bfloat16 with neither. A Sapphire Rapids whose matrix units are
    switched off loses by it (76 in diffusers' own forward): it has AVX512-BF16, but no faster than float32.

    Raises UserError for another name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if torch.device(device).type != "cpu":
            return torch.float16
        return torch.bfloat16 if has_bfloat16_units() else torch.float32
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r} of a frozen network: choose one of auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def has_bfloat16_units() -> bool:
    """Whether this CPU has instructions that multiply bfloat16 numbers: AMX (Intel) or AVX512-BF16 (AMD since Zen 4).

    A torch too old to say counts as no.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
