"""View-dependent prompts: encoded once per run, then picked by where each camera stands.

The text encoder is an argument and nothing here keeps it: the caller drops it after encoding.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import pi, radians, tau
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import torch
from torch import Tensor

from jointdreamer.arguments import Range
from jointdreamer.cameras import Cameras
from jointdreamer.errors import UserError
from jointdreamer.priors.condition import Condition, Conditions
from jointdreamer.project import shipped
from jointdreamer.reading import Unreadable, read_text

log = logging.getLogger(__name__)

MAX_PARTS = 16  # that a prompt is encoded in: 1200 tokens of CLIP
WORD_LEVEL = 5000  # a vocabulary smaller than this was made of whole words; CLIP's own has 49408 tokens
DIRECTIONS = ("side", "front", "back", "overhead")
VIEW = re.compile(rf"(.*)(, (?:{'|'.join(DIRECTIONS)}) view)", re.DOTALL)  # a text that ends in view words


@dataclass(frozen=True)
class Prompts:
    """What to make, what to steer away from, and where a camera sees which side (degrees)."""

    prompt: str
    negative_prompt: str = ""
    front_deg: Annotated[float, Range(0, 180)] = 30.0
    back_deg: Annotated[float, Range(0, 180)] = 30.0
    overhead_deg: Annotated[float, Range(-90, 90)] = 60.0
    view_dependent: bool = True


@dataclass(frozen=True)
class TextPair:
    """The text-to-image prior's embeddings of every view of a step, as energies see them."""

    cond: Tensor  # (B, V, L, D)
    uncond: Tensor  # (B, V, L, D)


@dataclass(frozen=True)
class TextEmbeddings(Conditions):
    """One prompt from every direction, and what guidance steers away from; thresholds in radians."""

    cond: Tensor  # (4, L, D) in the order of DIRECTIONS
    uncond: Tensor  # (2, L, D) the empty prompt, the negative prompt
    front: float = radians(30)
    back: float = radians(30)
    overhead: float = radians(60)
    plain: Tensor | None = None  # (L, D) the prompt without view words
    pooled: Tensor | None = None  # (7, P) of the rows of cond, uncond and plain, for networks that are told them

    def without_view(self, cameras: Cameras) -> Condition:
        """The prompt without view words for each camera (B, V)."""
        if self.plain is None:
            raise UserError("these text embeddings do not have the prompt without view words")
        return self._same(self.plain, 6, cameras)

    def at(self, cameras: Cameras) -> Condition:
        """The prompt as each camera (B, V) sees it."""
        which = directions(cameras.azimuth, cameras.elevation, self.front, self.back, self.overhead)
        which = which.to(self.cond.device)
        return Condition(self.cond[which], {} if self.pooled is None else {"pooled": self.pooled[which]})

    def nothing(self, cameras: Cameras, negative: bool = False) -> Condition:
        """The empty prompt for each camera (B, V), or the negative one."""
        return self._same(self.uncond[int(negative)], 4 + int(negative), cameras)

    def _same(self, embedding: Tensor, row: int, cameras: Cameras) -> Condition:
        """One text for every camera: its embedding (L, D), and its row of `pooled`."""
        shape = cameras.azimuth.shape
        extra = {} if self.pooled is None else {"pooled": self.pooled[row].expand(*shape, -1)}
        return Condition(embedding.expand(*shape, -1, -1), extra)

    def filled(self, length: int) -> "TextEmbeddings":
        """The same, filled up with the empty prompt to that many tokens, as `embed_texts` fills shorter texts."""

        def fill(rows: Tensor) -> Tensor:  # (..., L, D)
            lack = length - rows.shape[-2]
            more = self.uncond[0].repeat(-(-lack // rows.shape[-2]), 1)[:lack]
            return torch.cat([rows, more.expand(*rows.shape[:-2], -1, -1)], -2) if lack > 0 else rows

        plain = None if self.plain is None else fill(self.plain)
        return replace(self, cond=fill(self.cond), uncond=fill(self.uncond), plain=plain)

    def to(self, *args) -> "TextEmbeddings":
        """The same embeddings on another device or in another dtype."""
        plain, pooled = (None if one is None else one.to(*args) for one in (self.plain, self.pooled))
        return replace(self, cond=self.cond.to(*args), uncond=self.uncond.to(*args), plain=plain, pooled=pooled)


def read_prompts(file: str | Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines do not count. Raises UserError if there is none to read.

    A relative name that is not here is looked for in what comes with the project.
    """
    try:
        lines = [line.strip() for line in read_text(shipped(file)).splitlines() if line.strip()]
    except Unreadable as error:
        raise UserError(
            f"the prompt file {file} cannot be read ({error.why}): wanted a text, one prompt a line"
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
    front_deg: float = 30.0,
    back_deg: float = 30.0,
    overhead_deg: float = 60.0,
    view_dependent: bool = True,
) -> TextEmbeddings:
    """Encode "<prompt>, front view" and its three siblings, the empty prompt and the negative one.

    The negative prompt gets no view suffix. With `view_dependent=False` all four directions are the bare prompt. The
    embedding is the encoder's last hidden state: Stable Diffusion 2.1 stores 23 layers, so its last is the released
    penultimate one. What is longer than the encoder reads is encoded in parts, see `embed_texts`. Warns about words
    that the tokenizer does not know.

    Raises UserError for an empty prompt.
    """
    prompts = from_every_direction(prompt, view_dependent)
    warn_of_unknown_words(prompt, tokenizer)
    embeddings = embed_texts([*prompts, "", negative_prompt], tokenizer, text_encoder)
    plain = embed_texts([prompt], tokenizer, text_encoder, say=False)[0] if view_dependent else embeddings[0]
    front, back, overhead = (radians(angle) for angle in (front_deg, back_deg, overhead_deg))
    return TextEmbeddings(embeddings[:4], embeddings[4:], front, back, overhead, plain)


def embed_texts(texts: Sequence[str], tokenizer: Any, text_encoder: Any, say: bool = True) -> Tensor:
    """(N, K L, D): the encoder's last hidden state, without a graph.

    The encoder reads L tokens. What is longer is encoded in K parts, each between a start and an end token of its own,
    whose embeddings follow each other, as is customary for long prompts; shorter texts are filled up with empty parts.
    View words at the end of a text are never torn apart. What is longer than MAX_PARTS parts is cut, with a warning;
    without `say` nothing is said, of what was said before.
    """
    ids = _in_parts(texts, tokenizer, text_encoder, say)  # (N, K, L)
    with torch.no_grad():
        embeddings = text_encoder(ids.flatten(0, 1)).last_hidden_state
    return embeddings.unflatten(0, ids.shape[:2]).flatten(1, 2)


@torch.no_grad()
def embed_and_pool(texts: Sequence[str], tokenizer: Any, text_encoder: Any) -> tuple[Tensor, Tensor | None]:
    """(N, K L, D) the last hidden state but one, as SDXL and Stable Diffusion 3 read it, and (N, P) the pooled text.

    The pooled text is that of the first part, None where the encoder has no projection. Otherwise as `embed_texts`.
    """
    ids = _in_parts(texts, tokenizer, text_encoder)
    out = text_encoder(ids.flatten(0, 1), output_hidden_states=True)
    pooled = getattr(out, "text_embeds", None)
    first = None if pooled is None else pooled.unflatten(0, ids.shape[:2])[:, 0]
    return out.hidden_states[-2].unflatten(0, ids.shape[:2]).flatten(1, 2), first


def embed_by_all(
    text_parts: Sequence[Callable[[], tuple[Any, Any]]], texts: Sequence[str], prompt: str
) -> tuple[Tensor, list[Tensor | None]]:
    """`embed_and_pool` by several encoders, one in memory at a time: (N, L, D) side by side, and each pooled text.

    text_parts: each gives (tokenizer, text encoder), of one vocabulary; prompt: of whose unknown words is warned
    """
    states, pooled = [], []
    for load in text_parts:
        tokenizer, encoder = load()
        if not states:
            warn_of_unknown_words(prompt, tokenizer)
        state, of_all = embed_and_pool(texts, tokenizer, encoder)
        states.append(state)
        pooled.append(of_all)
        del tokenizer, encoder
    return torch.cat(states, -1), pooled


def encode_prompts(prompts: Prompts, embed: Callable[[list[str]], tuple[Tensor, Tensor | None]]) -> TextEmbeddings:
    """The prompt from every direction, the empty and the negative one, and the prompt without view words.

    embed: texts -> embeddings (N, L, D) and pooled (N, P), which may be None
    """
    texts = from_every_direction(prompts.prompt, prompts.view_dependent)
    embeddings, pooled = embed([*texts, "", prompts.negative_prompt, prompts.prompt])
    limits = (radians(angle) for angle in (prompts.front_deg, prompts.back_deg, prompts.overhead_deg))
    return TextEmbeddings(embeddings[:4], embeddings[4:6], *limits, plain=embeddings[6], pooled=pooled)


def from_every_direction(prompt: str, view_dependent: bool = True) -> list[str]:
    """The prompt with the view words of each of DIRECTIONS, or without. Raises UserError for an empty prompt."""
    if not prompt.strip():
        raise UserError('the prompt is empty: say what to make, e.g. prompt="a corgi"')
    return [f"{prompt}, {direction} view" if view_dependent else prompt for direction in DIRECTIONS]


def warn_of_unknown_words(prompt: str, tokenizer: Any) -> None:
    """Warn of words that the text encoder was never taught, with those that it knows."""
    if unknown := unknown_words(prompt, tokenizer):
        known = ", ".join(vocabulary(tokenizer))
        log.warning("the text encoder does not know %s; it knows: %s", ", ".join(map(repr, unknown)), known)


def _in_parts(texts: Sequence[str], tokenizer: Any, text_encoder: Any, say: bool = True) -> Tensor:
    """Tokens (N, K, L) of texts in K parts, on the encoder's device, see `embed_texts`."""
    length = text_encoder.config.max_position_embeddings
    rows = [_framed(parts, tokenizer, length) for parts in _cut(texts, tokenizer, length - 2, MAX_PARTS, say)]
    most = max(map(len, rows))
    if most > 1 and say:
        log.info("the prompt is longer than the %d tokens of the text encoder: encoded in %d parts", length, most)
    empty = _framed([[]], tokenizer, length)
    return torch.tensor([[*row, *empty * (most - len(row))] for row in rows]).to(text_encoder.device)


def shortened(texts: Sequence[str], tokenizer: Any, length: int) -> Tensor:
    """Tokens (N, L) of texts for a network that reads no more than L = `length` of them.

    Of what is longer the end is cut off, but for the view words, with a warning that says what was cut.
    """
    return torch.tensor([_framed(parts, tokenizer, length)[0] for parts in _cut(texts, tokenizer, length - 2, 1)])


def _cut(texts: Sequence[str], tokenizer: Any, room: int, most: int, say: bool = True) -> list[list[list[int]]]:
    """The tokens of each text in at most so many parts of `room` tokens, and a warning that says what does not fit.

    View words at the end stay, and stay together, where a part has room for them.
    """
    found, lost = [], {}
    for text in texts:
        whole = _tokens(text, tokenizer)
        if len(whole) <= room:
            found.append([whole])
            continue
        body, view = _body_and_view(text, tokenizer)
        if len(view) >= room:  # an encoder that reads less than the view words
            body, view = whole, []
        kept = body[: most * room - len(view)]
        if len(kept) < len(body):
            lost[tokenizer.decode(body)] = tokenizer.decode(body[len(kept) :])
        parts = [kept[k : k + room] for k in range(0, len(kept), room)]
        if len(parts[-1]) + len(view) <= room:
            parts[-1] = parts[-1] + view
        else:
            parts.append(view)
        found.append(parts)
    for text, end in lost.items() if say else ():
        too_long = f"{shorten(text, 80)!r}, which is too long (at most {most * room} tokens are read)"
        log.warning("of %s, this is cut off: %r", too_long, shorten(end, 400))
    return found


def _body_and_view(text: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens of a text, and those of the view words at its end, which may be none."""
    found = VIEW.fullmatch(text)
    body, view = found.groups() if found else (text, "")
    return _tokens(body, tokenizer), _tokens(view, tokenizer)


def _framed(parts: list[list[int]], tokenizer: Any, length: int) -> list[list[int]]:
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return [[start, *part, end, *[pad] * (length - 2 - len(part))] for part in parts]


def _tokens(text: str, tokenizer: Any) -> list[int]:
    """A text's tokens without start and end. Of any length: the tokenizer's own warning would say that it is cut."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids if text else []


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
