"""What is seen where the object is not."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from jointdreamer.arguments import Share
from jointdreamer.errors import UserError
from jointdreamer.ranks import shared


class SphericalBackground(nn.Module):
    """A learned colour per direction: spherical harmonics of degree 3 -> 9-16-16-3 without biases -> sigmoid.

    In training the scene is often shown before a random plain colour instead, so that the object cannot hide in the
    background, nor the background stand in for the object.

    random_probability: how often a training batch gets one random colour.
    random_grey_range: (low, high) in [0, 1]: that colour is a grey from this range; None: any colour.
    eval_color: the plain colour of evaluation, white.
    """

    def __init__(
        self,
        random_probability: Share = 0.5,
        random_grey_range: tuple[Share, Share] | None = None,
        eval_color: tuple[Share, Share, Share] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if not 0 <= random_probability <= 1:
            raise UserError(f"random_probability of the background wants a number in [0, 1], got {random_probability}")
        if random_grey_range is not None and not 0 <= random_grey_range[0] <= random_grey_range[-1] <= 1:
            raise UserError(f"random_grey_range wants [low, high] in [0, 1], got {list(random_grey_range)}")
        self.random_probability = random_probability
        self.random_grey_range = None if random_grey_range is None else (random_grey_range[0], random_grey_range[-1])
        self.eval_color = tuple(eval_color)
        self.mlp = nn.Sequential(
            nn.Linear(9, 16, bias=False), nn.ReLU(),
            nn.Linear(16, 16, bias=False), nn.ReLU(),
            nn.Linear(16, 3, bias=False),
        )  # fmt: skip

    def forward(self, dirs: Tensor) -> Tensor:
        """The learned background: unit directions (..., 3) -> colours (..., 3) in [0, 1]."""
        return torch.sigmoid(self.mlp(spherical_harmonics(dirs)))

    def draw(self, generator: torch.Generator | None) -> Callable[[Tensor], Tensor]:
        """The background of one batch of rays, as a function of (..., 3) directions; without a generator, evaluation's.

        Draws the coin and the colour whatever the coin says, so that the generator moves alike in every step. They are
        read on the host: a generator on a GPU would have it wait.
        """
        if generator is None:
            return partial(plain, self.eval_color)
        coin, *color = torch.rand(4, generator=shared(generator), device=generator.device).tolist()
        if coin >= self.random_probability:
            return self
        if self.random_grey_range is not None:
            low, high = self.random_grey_range
            color = [low + (high - low) * color[0]] * 3
        return partial(plain, color)

    def sample(self, dirs: Tensor, generator: torch.Generator | None) -> Tensor:
        """The background of one batch of rays: unit directions (..., 3) -> colours (..., 3)."""
        return self.draw(generator)(dirs)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"background": list(self.parameters())}


def plain(color: Sequence[float], dirs: Tensor) -> Tensor:
    """One colour in all directions: (..., 3) -> (..., 3)."""
    return dirs.new_tensor(color).expand_as(dirs)


def spherical_harmonics(dirs: Tensor) -> Tensor:
    """Real spherical harmonics of bands 0 to 2 ("degree 3"), tiny-cuda-nn's signs: (..., 3) -> (..., 9)."""
    x, y, z = dirs.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),  # 1 / (2 sqrt(pi))
            -0.4886025119029199 * y,  # sqrt(3 / (4 pi))
            0.4886025119029199 * z,
            -0.4886025119029199 * x,
            1.0925484305920792 * x * y,  # sqrt(15 / (4 pi))
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * z * z - 1),  # sqrt(5 / (16 pi))
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),  # sqrt(15 / (16 pi))
        ],
        dim=-1,
    )
