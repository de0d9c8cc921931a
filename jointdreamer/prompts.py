"""View-dependent prompts: encoded once per run, then picked by where each camera stands.

The text encoder is an argument and nothing here keeps it: the caller drops it after encoding.
"""

import logging
import re
from dataclasses import dataclass, replace
from math import pi, radians, tau
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from jointdreamer.arguments import Range
from jointdreamer.cameras import Cameras
from jointdreamer.errors import UserError
from jointdreamer.project import shipped

log = logging.getLogger(__name__)

WORD_LEVEL = 5000  # a vocabulary smaller than this was made of whole words; CLIP's own has 49408 tokens
DIRECTIONS = ("side", "front", "back", "overhead")


@dataclass(frozen=True)
class Conditioning:
    """What a prior is told of every view of a step: the text and, for priors that look at cameras, where it stands."""

    cond: Tensor  # (B, V, L, D)
    uncond: Tensor  # (B, V, L, D)
    c2w: Tensor | None = None  # (B, V, 4, 4)


@dataclass(frozen=True)
class TextEmbeddings:
    """One prompt from every direction, and what guidance steers away from; thresholds in radians."""

    cond: Tensor  # (4, L, D) in the order of DIRECTIONS
    uncond: Tensor  # (2, L, D) the empty prompt, the negative prompt
    front: float = radians(30)
    back: float = radians(30)
    overhead: float = radians(60)

    def at(self, cameras: Cameras, use_negative: bool = False) -> Conditioning:
        """What each camera is told, (B, V, L, D); `use_negative` puts the negative prompt for the empty one."""
        which = directions(cameras.azimuth, cameras.elevation, self.front, self.back, self.overhead)
        cond = self.cond[which.to(self.cond.device)]
        return Conditioning(cond, self.uncond[int(use_negative)].expand_as(cond), cameras.c2w)

    def to(self, *args) -> "TextEmbeddings":
        """The same embeddings on another device or in another dtype."""
        return replace(self, cond=self.cond.to(*args), uncond=self.uncond.to(*args))


def read_prompts(file: str | Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines do not count. Raises UserError if there is none to read.

    A relative name that is not here is looked for in what comes with the project.
    """
    try:
        lines = [line.strip() for line in shipped(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the prompt file {file} cannot be read ({error}): wanted a text file, one prompt a line"
        ) from error
    if not lines:
        raise UserError(f"the prompt file {file} is empty: wanted a prompt a line")
    return lines


def directions(
    azimuth: Tensor,  # (B, V) radians
    elevation: Tensor,  # (B, V) radians
    front: float,
    back: float,
    overhead: float,
) -> Tensor:
    """Index into DIRECTIONS for every camera, (B, V): side, unless front, back or overhead; later rules win.

    All comparisons are strict; azimuth is wrapped into [-180, 180) degrees first (docs/conventions.md, Prompts).
    """
    azimuth = (azimuth + pi).remainder(tau) - pi
    which = torch.zeros_like(azimuth, dtype=torch.long)
    which[azimuth.abs() < front] = DIRECTIONS.index("front")
    which[azimuth.abs() > pi - back] = DIRECTIONS.index("back")
    which[elevation > overhead] = DIRECTIONS.index("overhead")
    return which


def caption_views(captions: list[str], c2w: Tensor) -> list[str]:
    """ "<caption>, back view" and so on for N cameras (N, 4, 4), with the thresholds of `TextEmbeddings`."""
    x, y, z = c2w[:, :3, 3].unbind(1)
    azimuth, elevation = torch.atan2(y, x), torch.atan2(z, torch.hypot(x, y))
    which = directions(azimuth, elevation, TextEmbeddings.front, TextEmbeddings.back, TextEmbeddings.overhead)
    return [f"{caption}, {DIRECTIONS[int(k)]} view" for caption, k in zip(captions, which, strict=True)]


@torch.no_grad()
def encode_prompt(
    prompt: str,
    negative_prompt: str,
    tokenizer: Any,  # a CLIPTokenizer
    text_encoder: Any,  # a CLIPTextModel
    front_deg: Annotated[float, Range(0, 180)] = 30.0,
    back_deg: Annotated[float, Range(0, 180)] = 30.0,
    overhead_deg: Annotated[float, Range(-90, 90)] = 60.0,
    view_dependent: bool = True,
) -> TextEmbeddings:
    """Encode "<prompt>, front view" and its three siblings, the empty prompt and the negative one.

    The negative prompt gets no view suffix. With `view_dependent=False` all four directions are the bare prompt. The
    embedding is the encoder's last hidden state: Stable Diffusion 2.1 stores 23 layers, so its last is the released
    penultimate one. Warns about words that the tokenizer does not know and about text that does not fit.

    Raises UserError for an empty prompt.
    """
    if not prompt.strip():
        raise UserError('the prompt is empty: say what to make, e.g. prompt="a corgi"')
    prompts = [f"{prompt}, {direction} view" if view_dependent else prompt for direction in DIRECTIONS]
    if unknown := unknown_words(prompt, tokenizer):
        known = ", ".join(vocabulary(tokenizer))
        log.warning("the text encoder does not know %s; it knows: %s", ", ".join(map(repr, unknown)), known)
    length = text_encoder.config.max_position_embeddings
    longest = max(len(tokenizer(text).input_ids) for text in prompts)
    if longest > length:
        log.warning("the prompt has %d tokens; only the first %d are read", longest, length)
    embeddings = embed_texts([*prompts, "", negative_prompt], tokenizer, text_encoder)
    return TextEmbeddings(embeddings[:4], embeddings[4:], radians(front_deg), radians(back_deg), radians(overhead_deg))


def embed_texts(texts: list[str], tokenizer: Any, text_encoder: Any) -> Tensor:
    """(N, L, D): the encoder's last hidden state, without a graph; texts are padded or cut to the length it reads."""
    length = text_encoder.config.max_position_embeddings
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state


def unknown_words(prompt: str, tokenizer: Any) -> list[str]:
    """The words of the prompt that the text encoder was never taught, each once, in order; punctuation is skipped.

    These become the unknown token, or, under a small vocabulary of whole words like the toybox's, fall into pieces that
    mean nothing. A large vocabulary spells any word from its pieces and knows them all.
    """
    unknown, most = [], 1 if len(tokenizer) < WORD_LEVEL else float("inf")
    for word in dict.fromkeys(re.findall(r"[^\W_]+", prompt)):
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if not ids or len(ids) > most or tokenizer.unk_token_id in ids:
            unknown.append(word)
    return unknown


def vocabulary(tokenizer: Any) -> list[str]:
    """The whole words that a tokenizer knows, sorted: the text of its tokens, without word-end marks and specials."""
    tokens = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if any(token.endswith("</w>") for token in tokens):  # byte-pair: the other tokens are pieces of words
        tokens = {token.removesuffix("</w>") for token in tokens if token.endswith("</w>")}
    return sorted(token for token in tokens if token.isalnum() and (len(token) > 1 or token == "a"))
