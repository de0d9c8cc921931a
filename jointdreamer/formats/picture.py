"""Pictures of any depth as 8-bit RGBA."""

import io

import numpy as np
from PIL import Image


def read_rgba(data: bytes) -> Image.Image:
    """A PNG, JPEG, WebP, ... in mode RGBA; palettes, greys, alpha and 16 bits a channel are brought to 8 bits each.

    Pillow's own conversion cuts what is above 255, so that a 16-bit grey picture comes out white.
    Raises: ValueError if it is no picture or a damaged one, with Pillow's reason.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode[0] not in "IF":  # 8 bits a channel, or 1
                return image.convert("RGBA")
            deep = np.asarray(image, dtype=np.float64)
    except MemoryError:
        raise
    except Exception as error:  # Pillow lets many through
        raise ValueError(f"{' '.join(str(error).split())[:100] or type(error).__name__}") from error
    white = 1.0 if image.mode == "F" else 65535.0
    grey = np.round(255 * np.clip(np.nan_to_num(deep) / white, 0, 1)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGBA")
