"""The Instant-NGP field of the paper: a hash encoding under a density and an albedo network, around a blob of density."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jointdreamer.errors import UserError
from jointdreamer.fields.base import Field, FieldOutput
from jointdreamer.fields.encoding import HashEncoding

NORMALS = ("analytic", "finite_difference")


class HashGridField(Field):
    """sigma = softplus(z), z = density_mlp(encoding(x)) + blob(x); albedo = sigmoid(albedo_mlp(encoding(x))).

    The blob, blob_scale (1 - |x| / blob_std) in world units, is Magic3D's start: something in the middle, nothing around.
    Both networks have one hidden layer and no biases. Normals are -grad z / |grad z|, which is -grad sigma / |grad sigma|
    without the factor softplus'(z) > 0 that underflows far outside; "analytic" differentiates the encoding,
    "finite_difference" takes central differences over 2 * difference, which see no detail finer than that.

    hidden: width of both networks; the encoding's arguments are those of `HashEncoding`.
    Raises UserError for an unknown kind of normals or encoding backend.
    """

    def __init__(
        self,
        n_levels: int = 16,
        n_features: int = 2,
        log2_table_size: int = 19,
        base_resolution: int = 16,
        growth: float = 1.447269237440378,
        hidden: int = 64,
        radius: float = 1.0,
        blob_scale: float = 10.0,
        blob_std: float = 0.5,
        normal: str = "analytic",
        difference: float = 0.01,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if normal not in NORMALS:
            raise UserError(f"unknown kind of normals {normal!r}: choose one of {', '.join(NORMALS)}")
        self.radius = radius
        self.blob_scale = blob_scale
        self.blob_std = blob_std
        self.normal = normal
        self.difference = difference
        self.encoding = HashEncoding(n_levels, n_features, log2_table_size, base_resolution, growth, backend)
        self.density_mlp = mlp(self.encoding.out_features, hidden, 1)
        self.albedo_mlp = mlp(self.encoding.out_features, hidden, 3)

    def density(self, x: Tensor) -> Tensor:
        return F.softplus(self._z(x, self._encode(x)))

    def forward(self, x: Tensor, normals: bool = False) -> FieldOutput:
        features = self._encode(x)
        sigma = F.softplus(self._z(x, features))
        albedo = torch.sigmoid(self.albedo_mlp(features))
        return FieldOutput(sigma, albedo, self._normal(x, features) if normals else None)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "encoding": list(self.encoding.parameters()),
            "density": list(self.density_mlp.parameters()),
            "albedo": list(self.albedo_mlp.parameters()),
        }

    def _encode(self, x: Tensor) -> Tensor:
        return self.encoding((x / self.radius + 1) / 2)

    def _z(self, x: Tensor, features: Tensor) -> Tensor:
        """Density before its activation, (N,)."""
        return self.density_mlp(features).squeeze(-1) + self.blob_scale * (1 - x.norm(dim=-1) / self.blob_std)

    def _normal(self, x: Tensor, features: Tensor) -> Tensor:
        gradient = self._z_gradient(x, features) if self.normal == "analytic" else self._z_difference(x)
        return -F.normalize(gradient, dim=-1, eps=1e-8)

    def _z_gradient(self, x: Tensor, features: Tensor) -> Tensor:
        """The chain rule by hand: it works under no_grad, and a loss on the result costs no second backward graph."""
        first, _, last = self.density_mlp
        active = (first(features) > 0).to(x.dtype)
        grad_features = (active * last.weight) @ first.weight
        grad_encoded = self.encoding.position_gradient((x / self.radius + 1) / 2, grad_features) / (2 * self.radius)
        return grad_encoded - self.blob_scale / self.blob_std * F.normalize(x, dim=-1, eps=1e-8)

    def _z_difference(self, x: Tensor) -> Tensor:
        """Central differences; the factor 1 / (2 * difference) falls out when the normal is normalised."""
        steps = self.difference * torch.cat([torch.eye(3), -torch.eye(3)]).to(x)
        around = (x[:, None] + steps).reshape(-1, 3)
        upper, lower = self._z(around, self._encode(around)).view(-1, 2, 3).unbind(1)
        return upper - lower


def mlp(n_in: int, hidden: int, n_out: int) -> nn.Sequential:
    """One hidden ReLU layer, no biases."""
    return nn.Sequential(nn.Linear(n_in, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, n_out, bias=False))
