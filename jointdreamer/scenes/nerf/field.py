"""The Instant-NGP field of the paper: a hash encoding, a density and an albedo network, and a blob to start from."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jointdreamer.arguments import Positive, Range, Takes
from jointdreamer.errors import UserError
from jointdreamer.scenes.nerf.base import Field, FieldOutput
from jointdreamer.scenes.nerf.encoding import HashEncoding
from jointdreamer.scenes.nerf.mlp import MLP, together

NORMALS = ("analytic", "finite_difference")


class HashGridField(Field):
    """sigma = softplus(z), z = density_mlp(encoding(x)) + blob(x); albedo = sigmoid(albedo_mlp(encoding(x))).

    The blob, blob_scale (1 - |x| / blob_std) in world units, is Magic3D's start: something in the middle, nothing
    around. Both networks have one hidden layer and no biases. Normals are -grad z / |grad z|: the direction of -grad
    sigma, without the factor softplus'(z) > 0 that underflows far outside. "analytic" differentiates the encoding;
    "finite_difference" takes central differences over 2 * difference, which see no detail finer than that.

    encoding: the arguments of `HashEncoding`; hidden: width of both networks; encoding_lr: learning rate of the
    encoding, as a multiple of the geometry's.
    Raises UserError for an encoding_lr that is not above 0, and an unknown kind of normals or encoding backend.
    """

    def __init__(
        self,
        encoding: Annotated[Mapping[str, Any], Takes(HashEncoding)] = MappingProxyType({}),
        hidden: Annotated[int, Range(1, 4096)] = 64,
        radius: Annotated[float, Range(1e-3, 1e3)] = 1.0,
        blob_scale: Annotated[float, Range(-1e6, 1e6)] = 10.0,
        blob_std: Annotated[float, Range(1e-3, 1e3)] = 0.5,
        normal: str = "analytic",
        difference: Annotated[float, Range(1e-6, 1)] = 0.01,
        encoding_lr: Positive = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < encoding_lr < float("inf"):
            raise UserError(f"field.encoding_lr={encoding_lr}: wanted a number above 0")
        self.lr_scale = {"geometry:encoding": encoding_lr}
        if normal not in NORMALS:
            raise UserError(f"unknown kind of normals {normal!r}: choose one of {', '.join(NORMALS)}")
        self.radius = radius
        self.blob_scale = blob_scale
        self.blob_std = blob_std
        self.normal = normal
        self.difference = difference
        self.encoding = HashEncoding(**encoding)
        backend = self.encoding.requested_backend
        self.density_mlp = MLP(self.encoding.out_features, hidden, 1, backend)
        self.albedo_mlp = MLP(self.encoding.out_features, hidden, 3, backend)

    def density(self, x: Tensor) -> Tensor:
        return F.softplus(self._z(x))

    @torch.no_grad()
    def density_and_features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.encoding(self._unit(x))
        sigma = F.softplus(self.density_mlp(features).squeeze(-1) + self._blob(x))
        return sigma, features if self.encoding.backend == "numba" else None

    def forward(self, x: Tensor, normals: bool = False, features: Tensor | None = None) -> FieldOutput:
        encoded = self.encoding(self._unit(x), features)
        if normals and self.normal == "analytic":
            z, slope = self.density_mlp.with_gradient(encoded)
            normal = self._outward(self._z_gradient(x, slope))
            color = self.albedo_mlp(encoded)
        else:
            z, color = together(encoded, self.density_mlp, self.albedo_mlp)
            normal = self._outward(self._z_difference(x)) if normals else None
        return FieldOutput(F.softplus(z.squeeze(-1) + self._blob(x)), torch.sigmoid(color), normal)

    def albedo(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.albedo_mlp(self.encoding(self._unit(x))))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "geometry:encoding": list(self.encoding.parameters()),
            "geometry": list(self.density_mlp.parameters()),
            "appearance": list(self.albedo_mlp.parameters()),
        }

    def _unit(self, x: Tensor) -> Tensor:
        """World -> the unit cube of the encoding."""
        return (x / self.radius + 1) / 2

    def _blob(self, x: Tensor) -> Tensor:
        return self.blob_scale * (1 - x.norm(dim=-1) / self.blob_std)

    def _z(self, x: Tensor) -> Tensor:
        """Density before its activation, (N,)."""
        return self.density_mlp(self.encoding(self._unit(x))).squeeze(-1) + self._blob(x)

    def _z_gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """The chain rule by hand: works under no_grad, and a loss on the result needs no second backward graph.

        slope: dz/dfeatures, (N, L * F).
        """
        encoded = self.encoding.position_gradient(self._unit(x), slope) / (2 * self.radius)
        return encoded - self.blob_scale / self.blob_std * F.normalize(x, dim=-1, eps=1e-8)

    def _z_difference(self, x: Tensor) -> Tensor:
        """Central differences; the factor 1 / (2 * difference) falls out when the normal is normalised."""
        steps = self.difference * torch.cat([torch.eye(3), -torch.eye(3)]).to(x)
        upper, lower = self._z((x[:, None] + steps).reshape(-1, 3)).view(-1, 2, 3).unbind(1)
        return upper - lower

    @staticmethod
    def _outward(gradient: Tensor) -> Tensor:
        return -F.normalize(gradient, dim=-1, eps=1e-8)
