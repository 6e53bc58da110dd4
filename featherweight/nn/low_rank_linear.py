"""Linear layers that hold a matrix of low rank: as two thin factors, or as rows and coefficients.

`LowRankLinear` is what one trains: U and V are ordinary `nn.Linear` layers, so optimizers, adapters and hooks see
nothing new. `PivotedLinear` is what one stores and serves: R * (M + N - R) numbers, fewer than the matrix has for every
R < min(M, N). Both become an ordinary layer again by `to_linear`.
Shapes: M out_features, N in_features, R rank.
Source: WeLore, arXiv 2407.11239 (U, V); PIFA, arXiv 2501.19090 (rows and coefficients); CoLA, arXiv 2502.10940
(an activation between the factors).
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.errors import ConfigError, ShapeError
from featherweight.linalg.factors import factorize, interpolate, rebalance
from featherweight.nn.int8_module import Int8Module

Storage = Literal["dense", "factored", "pivoted"]
STORAGES: tuple[Storage, ...] = ("dense", "factored", "pivoted")

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}
INDEX_BYTES = 4


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a plain linear layer: `nn.Linear`, or `Conv1D` of transformers, which is transposed."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def matrix_of(linear: nn.Module) -> Tensor:
    """Return the weight of a plain linear layer as (M, N), without a copy."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.detach().mT if type(linear).__name__ == "Conv1D" else weight.detach()


def storage_numel(rows: int, columns: int, rank: int, storage: Storage) -> int:
    """Return how many numbers a matrix of a rank takes in a storage; indices of rows are no numbers.

    Example:
        >>> [storage_numel(4096, 4096, 2048, storage) for storage in ("dense", "factored", "pivoted")]
        [16777216, 16777216, 12582912]
    """
    if storage == "factored":
        return rank * (rows + columns)
    return rank * (rows + columns - rank) if storage == "pivoted" else rows * columns


def storage_bytes(rows: int, columns: int, rank: int, storage: Storage, itemsize: int) -> int:
    """Return the bytes of a matrix of a rank in a storage, indices of rows included."""
    indices = INDEX_BYTES * rows if storage == "pivoted" else 0
    return storage_numel(rows, columns, rank, storage) * itemsize + indices


def smallest_storage(rows: int, columns: int, rank: int, itemsize: int) -> Storage:
    """Return the storage with the fewest bytes, the plainer one if two are equal.

    Example:
        >>> smallest_storage(64, 64, 16, 4), smallest_storage(64, 64, 64, 4)
        ('pivoted', 'dense')
    """
    return min(STORAGES, key=lambda storage: storage_bytes(rows, columns, rank, storage, itemsize))


class LowRankLinear(nn.Module):
    """``y = U(activation(V(x))) + bias``, or ``y = base x + U V x + bias`` beside a frozen base.

    A state dict with another rank resizes the layer before it is read, so that a run can be continued whose ranks have
    grown meanwhile; the parameter objects stay.

    Args:
        in_features: N.
        out_features: M.
        rank: R, at least 1.
        bias: whether U has a bias.
        activation: "silu" or "gelu" between the factors, or None; with one the layer is no matrix any more.
        device: of the parameters.
        dtype: of the parameters.
    Example:
        >>> layer = LowRankLinear(64, 32, rank=4)
        >>> layer(torch.zeros(2, 64)).shape, layer.weight.shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([2, 32]), torch.Size([32, 64]), 416)
    """

    base: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ConfigError(f"LowRankLinear: rank={rank} is out of range; expected rank >= 1. Raise it.")
        if activation is not None and activation not in _ACTIVATIONS:
            raise ConfigError(
                f"LowRankLinear: activation={activation!r} is unknown; expected one of {', '.join(_ACTIVATIONS)} or "
                "None. Choose one of them."
            )
        self.V = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.U = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)
        self.activation = activation
        self.is_transposed = False
        self.register_parameter("base", None)

    @classmethod
    def from_factors(
        cls, linear: nn.Module, left_MR: Tensor, right_RN: Tensor, *, activation: str | None = None
    ) -> "LowRankLinear":
        """Return a layer with given factors that takes over bias, dtype, device and mode of a plain linear layer."""
        weight = linear.weight
        assert isinstance(weight, Tensor)
        rows, columns = left_MR.shape[0], right_RN.shape[1]
        layer = _empty(cls, columns, rows, left_MR.shape[1], activation=activation)
        layer.V.weight = _parameter(right_RN, weight)
        layer.U.weight = _parameter(left_MR, weight)
        layer.U.bias = linear.bias
        layer.is_transposed = type(linear).__name__ == "Conv1D"
        return layer.train(linear.training)

    @classmethod
    def from_linear(cls, linear: nn.Module, rank: int) -> "LowRankLinear":
        """Return the best approximation of a rank to an `nn.Linear` or `Conv1D`, by a truncated SVD.

        Raises:
            ShapeError: unless 1 <= rank <= min(M, N).
        """
        matrix_MN = matrix_of(linear)
        if not 1 <= rank <= min(matrix_MN.shape):
            raise ShapeError(
                f"LowRankLinear: rank={rank} does not fit a weight of {tuple(matrix_MN.shape)}; expected "
                f"1 <= rank <= {min(matrix_MN.shape)}. Lower the rank."
            )
        return cls.from_factors(linear, *factorize(_wide(matrix_MN), rank))

    @property
    def in_features(self) -> int:
        """N."""
        return self.V.in_features

    @property
    def out_features(self) -> int:
        """M."""
        return self.U.out_features

    @property
    def rank(self) -> int:
        """R."""
        return self.V.weight.shape[0]

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, (M,), which U holds."""
        return self.U.bias

    @property
    def weight(self) -> Tensor:
        """The matrix that the layer stands for, (M, N), in the dtype of the factors; computed anew at each use.

        Raises:
            ConfigError: if an activation stands between the factors.
        """
        if self.activation is not None:
            raise ConfigError(
                f"LowRankLinear: activation={self.activation!r} stands between the factors, so the layer is no matrix; "
                "expected activation=None. Keep such a layer as it is."
            )
        product_MN = _wide(_values(self.U)) @ _wide(_values(self.V))
        if self.base is not None:
            product_MN = product_MN + self.base
        return product_MN.to(self.U.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., N) to (..., M)."""
        hidden = self.V(x)
        if self.activation is not None:
            hidden = _ACTIVATIONS[self.activation](hidden)
        if self.base is None:
            return self.U(hidden)
        # The bias goes with the base: then, as long as U is zero, every bit is that of the dense layer.
        return F.linear(x, self.base, self.U.bias) + F.linear(hidden, self.U.weight)

    def to_linear(self) -> nn.Module:
        """Return the layer as the kind of plain layer that it came from, with the product as its weight.

        Raises:
            ConfigError: if an activation stands between the factors.
        """
        return _plain(self, self.weight.detach(), self.U.bias)

    @torch.no_grad()
    def truncate_(self, rank: int) -> None:
        """Keep the first components; after a factorization or `rebalance_` these are the strongest.

        Raises:
            ShapeError: unless 1 <= rank <= R.
        """
        if not 1 <= rank <= self.rank:
            raise ShapeError(
                f"LowRankLinear: rank={rank} is out of range; expected 1 <= rank <= {self.rank}. Lower it."
            )
        self.set_factors_(self.U.weight[:, :rank].clone(), self.V.weight[:rank].clone())

    @torch.no_grad()
    def rebalance_(self) -> None:
        """Write the same product with balanced factors in the order of the singular values, as after training.

        Raises:
            ConfigError: if an activation stands between the factors.
        """
        if self.activation is not None:
            _ = self.weight  # says why not
        left_MR, right_RN = rebalance(_wide(self.U.weight), _wide(self.V.weight))
        self.set_factors_(left_MR, right_RN)

    @torch.no_grad()
    def set_factors_(self, left_MR: Tensor, right_RN: Tensor) -> None:
        """Take over factors of any rank, in place: the parameter objects stay, their shape may change.

        An optimizer whose state has the old shape must be told; see `featherweight.optim.policies.moment_growth`.
        """
        self.V.weight.data = right_RN.to(self.V.weight.dtype).contiguous()
        self.U.weight.data = left_MR.to(self.U.weight.dtype).contiguous()
        self.V.out_features = self.U.in_features = self.V.weight.shape[0]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any) -> None:
        right = state_dict.get(f"{prefix}V.weight")
        left = state_dict.get(f"{prefix}U.weight")
        if right is not None and left is not None and right.shape[0] == left.shape[1] != self.rank:
            self.set_factors_(
                self.U.weight.new_empty(self.out_features, right.shape[0]),
                self.V.weight.new_empty(right.shape[0], self.in_features),
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    def extra_repr(self) -> str:
        """Say what cannot be seen in U and V."""
        parts = [f"rank={self.rank}"]
        parts += ["base"] if self.base is not None else []
        parts += [f"activation={self.activation}"] if self.activation else []
        return ", ".join(parts)


class PivotedLinear(nn.Module):
    """``y[positions] = [P x, C (P x)] + bias``: R rows of the matrix, and how the other rows follow from them.

    Args:
        in_features: N.
        out_features: M.
        rank: R, 1 <= R <= M.
        bias: whether there is one.
        device: of the parameters.
        dtype: of the parameters.
    """

    perm: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= out_features:
            raise ConfigError(
                f"PivotedLinear: rank={rank} is out of range; expected 1 <= rank <= {out_features}. Lower it."
            )
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.P = nn.Parameter(torch.empty(rank, in_features, **options))
        self.C = nn.Parameter(torch.empty(out_features - rank, rank, **options))
        self.bias = nn.Parameter(torch.zeros(out_features, **options)) if bias else None
        self.register_buffer("perm", torch.arange(out_features, dtype=torch.int32, device=device))
        self.is_transposed = False
        with torch.no_grad():
            self.P.normal_(std=in_features**-0.5)
            self.C.zero_()

    @classmethod
    def from_factors(cls, linear: nn.Module, left_MR: Tensor, right_RN: Tensor) -> "PivotedLinear":
        """Return the layer for given factors; bias, dtype, device and mode are those of a plain linear layer."""
        weight = linear.weight
        assert isinstance(weight, Tensor)
        form = interpolate(_wide(left_MR), _wide(right_RN))
        layer = _empty(cls, right_RN.shape[1], left_MR.shape[0], left_MR.shape[1])
        layer.P, layer.C = _parameter(form.pivots_RN, weight), _parameter(form.coefficients_SR, weight)
        layer.perm = form.positions_M.to(weight.device)
        layer.bias = linear.bias
        layer.is_transposed = type(linear).__name__ == "Conv1D"
        return layer.train(linear.training)

    @classmethod
    def from_low_rank(cls, layer: LowRankLinear) -> "PivotedLinear":
        """Return the pivoted form of two factors, the same matrix up to rounding.

        Raises:
            ConfigError: if the layer has an activation or a base.
        """
        if layer.activation is not None or layer.base is not None:
            raise ConfigError(
                f"PivotedLinear: layer={layer.extra_repr()} is no product of two factors; expected no activation and "
                "no base. Keep it as it is, or merge the base."
            )
        pivoted = cls.from_factors(layer.U, layer.U.weight.detach(), layer.V.weight.detach())
        pivoted.is_transposed = layer.is_transposed
        return pivoted

    @property
    def in_features(self) -> int:
        """N."""
        return self.P.shape[1]

    @property
    def out_features(self) -> int:
        """M."""
        return self.perm.shape[0]

    @property
    def rank(self) -> int:
        """R."""
        return self.P.shape[0]

    @property
    def weight(self) -> Tensor:
        """The matrix that the layer stands for, (M, N); computed anew at each use."""
        rows_RN = _wide(self.P)
        product_MN = torch.cat([rows_RN, _wide(self.C) @ rows_RN])
        return product_MN.index_select(0, self.perm).to(self.P.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., N) to (..., M): 2 * R * (M + N - R) FLOPs a token."""
        pivots = F.linear(x, self.P)
        y = torch.cat([pivots, F.linear(pivots, self.C)], dim=-1).index_select(-1, self.perm)
        return y if self.bias is None else y + self.bias

    def to_linear(self) -> nn.Module:
        """Return the layer as the kind of plain layer that it came from."""
        return _plain(self, self.weight.detach(), self.bias)

    def extra_repr(self) -> str:
        """Say the shape."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


LowRank = LowRankLinear | PivotedLinear
"""Every layer of low rank."""


def activation_of(layer: LowRankLinear) -> Callable[[Tensor], Tensor]:
    """Return the function between the factors."""
    return (lambda hidden: hidden) if layer.activation is None else _ACTIVATIONS[layer.activation]


def dense_copy(linear: nn.Module, matrix_MN: Tensor) -> nn.Module:
    """Return a plain linear layer like `linear` with another matrix and the same bias."""
    return _plain(linear, matrix_MN.to(linear.weight.dtype), linear.bias)  # type: ignore[arg-type]


def _values(linear: nn.Linear) -> Tensor:
    """Return the weight of a factor; the codes of an int8 one become floats."""
    return linear.int8_weight().dequantize(torch.float32) if isinstance(linear, Int8Module) else linear.weight


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.dtype == torch.float64 else matrix.float()


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    stored = values.to(device=like.device, dtype=like.dtype).contiguous()
    return nn.Parameter(stored, requires_grad=like.requires_grad)


def _empty(cls: Any, in_features: int, out_features: int, rank: int, **options: Any) -> Any:
    """Build a layer without drawing or holding numbers: all its parameters are replaced at once."""
    return cls(in_features, out_features, rank, bias=False, device="meta", **options)


def _plain(layer: nn.Module, matrix_MN: Tensor, bias: nn.Parameter | None) -> nn.Module:
    rows, columns = matrix_MN.shape
    plain: nn.Module
    if getattr(layer, "is_transposed", type(layer).__name__ == "Conv1D"):
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            plain = Conv1D(rows, columns)
        matrix_MN = matrix_MN.mT
    else:
        plain = nn.Linear(columns, rows, bias=False, device="meta")
    # A trained bias of a frozen matrix unfreezes nothing, nor does a frozen base freeze trained factors.
    matrices = (parameter for name, parameter in layer.named_parameters() if not name.endswith("bias"))
    trains = any(parameter.requires_grad for parameter in matrices)
    plain.weight = nn.Parameter(matrix_MN.contiguous(), requires_grad=trains)
    plain.register_parameter("bias", bias)
    return plain.train(layer.training)
