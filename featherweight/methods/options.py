"""Options of every method, and what is known of it by them alone; without torch, so that a recipe is judged at once.

The methods themselves derive from these classes: `methods/int8.py` holds what `Int8` does, here stands what it can be
asked for.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from featherweight.config import Config

Tokens = Literal["auto"] | Annotated[int, Field(gt=0)]


class MethodOptions(Config):
    """Options of a method, and what follows from them before it meets a model."""

    keeps_parameters: ClassVar[bool] = False
    """The parameters stay the same objects, so an optimizer may hold them already."""
    freezes_model: ClassVar[bool] = False
    """The model's own weights are frozen, and what trains is a small part."""
    needs_pretrained: ClassVar[bool] = False
    """It changes little of a model, or keeps what the model knows: on random weights it is refused in a recipe."""
    needs_layerwise: ClassVar[bool] = False
    """Takes effect with layer-wise updates alone (`fw.optim.layerwise`)."""

    @property
    def needs_calibration(self) -> bool:
        """Whether `apply` needs data."""
        return False

    @property
    def checkpoints_activations(self) -> bool:
        """Whether it brings activation checkpointing along, in the place of the model's own."""
        return False

    @property
    def title(self) -> str:
        """Name of the method's class, as messages call it."""
        return type(self).__name__.removesuffix("Options")


class Int8Options(MethodOptions):
    """Options of int8 weights."""

    keeps_parameters: ClassVar[bool] = True

    target_modules: str | list[str] = "all-linear"
    """Modules whose weights become int8: all-linear, a regular expression or names, as in PEFT."""
    exclude_modules: str | list[str] = []
    """Modules that keep their float weights: a regular expression or names."""
    embeddings: bool = False
    """Take embeddings and the output head too."""
    group_size: Annotated[int, Field(gt=0)] = 256
    """Elements of a row that share a scale; each scale takes four bytes."""


class MsTOptions(MethodOptions):
    """Options of the Mini-Sequence Transformer."""

    keeps_parameters: ClassVar[bool] = True

    mlp: bool = True
    """Run feed-forward layers in chunks; they keep only their input for the backward pass."""
    head: bool = True
    """Compute the loss in chunks, without logits, when labels are given. The output's logits are then None."""
    head_in_eval: bool = False
    """Do so in eval mode too; else a model in eval mode returns logits, which metrics may need."""
    checkpoint: Literal["selective", "offload"] | bool = False
    """Activation checkpointing of the layers: true keeps each layer's input and repeats the layer in the backward pass,
    selective keeps attention's result too, offload moves the inputs to host memory, false leaves the model's way."""
    chunk_size: Tokens = "auto"
    """Tokens of a chunk in feed-forward layers; auto chooses by their width and leaves short inputs whole."""
    head_chunk_size: Tokens = "auto"
    """Tokens of a chunk in the loss; auto chooses by the size of the vocabulary."""
    save: Literal["input", "products"] = "input"
    """What feed-forward layers keep: their input, or also gate and up projections, which are then computed once."""
    accum_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """In which dtype gradients of weights are summed over chunks; auto takes float32 for 16-bit weights."""
    tokenwise: bool = False
    """Run everything in a layer but attention in chunks: norms, projections, the feed-forward layer. A model whose
    layers cannot be cut is refused."""

    @model_validator(mode="after")
    def _keeps_one_kind(self) -> "MsTOptions":
        if self.tokenwise and self.save == "products":
            raise ValueError(
                "save='products' is given beside tokenwise=True, whose regions keep their inputs alone; expected "
                "save='input'. Drop one of the two."
            )
        return self

    @property
    def checkpoints_activations(self) -> bool:
        """Whether `checkpoint` is on."""
        return bool(self.checkpoint)


class CoreGradientOptions(MethodOptions):
    """Options of core gradients."""

    keeps_parameters: ClassVar[bool] = True
    needs_layerwise: ClassVar[bool] = True

    target_modules: str | list[str] = "all-linear"
    """Layers that may leave cores: all-linear, a regular expression, or a list of names."""
    exclude_modules: str | list[str] = []
    """Layers left out, same forms."""
    prefer: Literal["speed", "memory"] = "speed"
    """speed: leave a core where it takes clearly fewer FLOPs than the gradient. memory: where it takes fewer bytes."""
    refresh: Literal["thin", "full"] = "thin"
    """How a new basis is computed: from thin products with the factors of the gradient, or from the whole gradient,
    which is then formed for this layer and step."""
    share_basis: bool = False
    """One right basis for layers that read the same input (q, k, v; gate, up), so that one thin product is computed and
    kept for all of them. Which layers these are says `featherweight.methods.shared_input.shared_inputs`; which of their
    weights have a basis on the right side (`proj_type`), of one rank, says the optimizer: its report names the others.
    Saves activations and FLOPs; in the optimizer's state each weight keeps a copy of the basis, as without sharing.
    """

    @model_validator(mode="after")
    def _shared_bases_are_thin(self) -> "CoreGradientOptions":
        if self.share_basis and self.refresh == "full":
            raise ValueError(
                "share_basis=True fits one basis to thin products of several layers, and refresh='full' wants the "
                "whole gradient of one; expected one of the two. Leave refresh at 'thin'."
            )
        return self


class LoRAOptions(MethodOptions):
    """Options of LoRA; fields that `peft.LoraConfig` has mean the same."""

    freezes_model: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True

    r: int = Field(default=16, gt=0)
    """Rank of the change of each module."""
    lora_alpha: int = Field(default=32, gt=0)
    """The change is multiplied by lora_alpha / r, or by lora_alpha / sqrt(r) with use_rslora."""
    target_modules: list[str] | str | None = None
    """Names, a regular expression or all-linear; None takes all linear layers without the output head."""
    exclude_modules: list[str] | str = []
    """Names or a regular expression of modules to leave out."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapters' inputs that is dropped in training."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r), which lets larger ranks learn."""
    use_dora: bool = False
    """Train the length of each output's weights apart from their direction (DoRA); slower, and not on int8 weights."""


class Base4bitOptions(MethodOptions):
    """Options of frozen 4-bit weights."""

    freezes_model: ClassVar[bool] = True

    target_modules: str | list[str] = "all-linear"
    """Modules whose weights become four bits: all-linear, a regular expression or names, as in PEFT."""
    exclude_modules: str | list[str] = []
    """Modules that keep their float weights: a regular expression or names."""


class InRankOptions(MethodOptions):
    """Options of InRank."""

    explained: float = Field(default=0.95, gt=0, le=1)
    """Share of the spectrum that the rank must explain; else it grows."""
    criterion: Literal["energy", "variance"] = "energy"
    """energy: sums of squares; variance: about the mean over all min(M, N) values, the official code's form."""
    growth: Literal["change", "product"] = "change"
    """Of what the spectrum is taken. change: U V - U0 V0, what was learned since the start, so that initial values set
    no rank; it keeps the first factors until growth ends. product: U V, the official code's way."""
    init_rank: int = Field(default=2, ge=1)
    """R at the start."""
    buffer: int = Field(default=100, ge=0)
    """Components that train beyond R; cut where a layer has no room for them."""
    every: int = Field(default=25, ge=1)
    """Optimizer steps between checks. The official code counts forward passes, of micro-batches and evaluation too."""
    warmup: int = Field(default=200, ge=0)
    """Optimizer steps before the first check."""
    patience: int | None = Field(default=3, ge=1)
    """Growth ends after so many checks without any; None: only at freeze_step."""
    freeze_step: int | None = Field(default=None, ge=1)
    """Optimizer step at which growth ends at the latest."""
    drop_buffer: bool = True
    """Cut the buffer off when growth ends; it then changes the function by what R does not explain."""
    max_rank: int | None = Field(default=None, ge=1)
    """Largest number of live components; None: the last at which two factors are smaller than the matrix."""
    rank_multiple: int = Field(default=1, ge=1)
    """Live components are rounded up to multiples of this, which bounds the number of shapes that a compiler sees."""
    init: Literal["kaiming", "spectral", "orthogonal"] = "spectral"
    """Of the factors. spectral: truncated SVD of the layer's own weight, rescaled to its norm; kaiming: as in the
    official code; orthogonal: orthonormal rows."""
    buffer_init: Literal["zero", "random"] = "random"
    """Of the first buffer. random: as the first components; zero: its columns of U are zero, as in every later buffer,
    which costs quality."""
    keep_w0: bool = False
    """Keep the layer's weight, frozen, beside the factors, which then begin at zero: the paper's InRank. Saves no
    memory."""
    activation: Literal["silu", "gelu"] | None = None
    """Between the factors, as in CoLA; such layers can not be merged, and keep their buffer."""
    target_modules: str | list[str] = "all-linear"
    """Modules to grow: all-linear (without the output head), a regular expression, or a list of names."""
    exclude_modules: str | list[str] = ["lm_head"]
    """Modules left out, same forms."""
    lr_factor: Literal["rank"] | Annotated[float, Field(gt=0)] = "rank"
    """Multiplier of the learning rate for the factors. rank: N / (3 K) of the smaller side and the live components,
    from 1 to 4, and it follows when K changes; 1.0: the rate of everything else, as in the official code. It takes
    effect in a recipe, in `trainer_optimizer`, and where an optimizer is built from `param_groups` of this method."""
    seed: int = Field(default=0, ge=0)
    """Of the initial factors and of new rows."""

    @model_validator(mode="after")
    def _fits(self) -> "InRankOptions":
        if self.activation and self.keep_w0:
            raise ValueError(f"activation={self.activation} and keep_w0=True do not fit; expected one of them.")
        if self.max_rank is not None and self.max_rank < self.init_rank:
            raise ValueError(f"max_rank={self.max_rank} is below init_rank={self.init_rank}; expected at least that.")
        return self


class S2FTOptions(MethodOptions):
    """Options of structured sparse fine-tuning; fields that `fw.S2FTConfig` has mean the same."""

    freezes_model: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True

    r_equivalent: int | None = Field(default=None, gt=0)
    """Train as many parameters in each module as LoRA of this rank has there; without any amount, 16."""
    num_channels: int | None = Field(default=None, gt=0)
    """Channels to train in each module."""
    channel_ratio: float | None = Field(default=None, gt=0, le=1)
    """Share of the channels of each module to train."""
    channel_pattern: dict[str, int | float] = {}
    """Other amounts for some modules, by the end of their name or a regular expression: channels, or a share."""
    target_modules: list[str] | str | None = None
    """Names, a regular expression or all-linear; None takes attention outputs and last feed-forward matrices."""
    axis_pattern: dict[str, Literal["input", "output"]] = {}
    """input (columns) or output (rows) for some modules, by the end of their name or a regular expression."""
    unit: Literal["auto", "head", "channel"] = "auto"
    """What is chosen as a whole; auto takes heads where the amount is at least one."""
    selection: Literal["random", "weight", "spectral"] = "random"
    """How channels are chosen; what needs data first is chosen with fw.s2ft.select."""
    select: Literal["largest", "smallest"] = "largest"
    """Which end of the scores is trained."""
    scope: Literal["layer", "global"] = "layer"
    """The same amount in each layer, or the best over all layers of a kind."""
    seed: int = 0
    """Of random choices; each module draws from (seed, its name)."""
    multiple_of: int = Field(default=8, gt=0)
    """Amounts of channels are rounded up to a multiple of this."""
    update: Literal["delta", "inplace"] = "delta"
    """The change stays beside the weight, or the weight holds it while it trains."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the selected inputs that is dropped in training."""

    @model_validator(mode="after")
    def _one_amount(self) -> "S2FTOptions":
        amounts = {name: getattr(self, name) for name in ("num_channels", "channel_ratio", "r_equivalent")}
        given = [f"{name}={value}" for name, value in amounts.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} say twice how much to train; expected one of them. Keep one.")
        return self


class WeLoreOptions(MethodOptions):
    """What a plan asks of `WeLore`, which does the work."""

    needs_pretrained: ClassVar[bool] = True

    rank_reduction: float | None = None
    """Share of all ranks to drop, in (0, 1); it counts ranks and not parameters. Without any budget: 0.5."""
    param_ratio: float | None = Field(default=None, gt=0, lt=1)
    """Parameters of the whole model that stay, as a share of what it has."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Bytes of the whole model that stay at most."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """The cut on the normalised singular values itself, as in the official scripts."""
    rank_pattern: dict[str, int] | None = None
    """Ranks by module name; modules that are not named stay as they are."""
    allocation: Literal["threshold", "energy", "uniform"] | None = None
    """How ranks are shared out: the paper's threshold, the energy of each matrix, or alike. None: threshold for
    rank_reduction, energy for param_ratio and max_bytes."""
    energy_floor: float | None = Field(default=None, gt=0, lt=1)
    """Share of its energy that every matrix keeps at least, whatever the budget says; less than the budget goes then.
    Kinds with flat spectra so keep nearly all of their ranks. Without data a small model needs 0.9999."""
    scope: Literal["all", "lrc"] | None = None
    """Cut all matrices, or only those that lose at least half of their rank (LRC). None: lrc where train says so."""
    method: Literal["plain", "whitened", "refit"] = "plain"
    """plain: the weights alone. whitened: least error of the outputs on calibration data. refit: also each left factor
    anew, on the inputs that the compressed layers before it give."""
    storage: Literal["auto", "dense", "factored", "pivoted"] = "auto"
    """How a cut matrix is kept; auto: the fewest bytes, or factors where train is given."""
    train: Literal["lrc", "nlrc", "all"] | None = None
    """What stays trainable: the LRCs, the other selected matrices, or everything. None changes nothing."""
    train_norms: bool = True
    """With train lrc or nlrc, the norms train along, as in the official code."""
    min_dim: int = Field(default=64, ge=2)
    """Matrices with a smaller side are left alone."""
    target_modules: str | list[str] = "all-linear"
    """Modules to cut: all-linear (without the output head), a regular expression, or a list of names."""
    exclude_modules: str | list[str] = ["lm_head"]
    """Modules left out, same forms."""

    @field_validator("rank_reduction")
    @classmethod
    def _is_a_share(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 1:
            raise ValueError(
                "is out of range; expected 0 < rank_reduction < 1. It is the share of all ranks that is dropped: set "
                "it to 0.5, for example."
            )
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> "WeLoreOptions":
        budgets = ("rank_reduction", "param_ratio", "max_bytes", "threshold", "rank_pattern")
        given = [name for name in budgets if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{given[0]}={getattr(self, given[0])} and {given[1]}={getattr(self, given[1])} are two budgets; "
                "expected one of them. Remove the other."
            )
        if self.effective_scope == "lrc" and (self.param_ratio is not None or self.max_bytes is not None):
            raise ValueError("scope=lrc has no budget in parameters or bytes; expected rank_reduction. Use that.")
        return self

    @property
    def effective_scope(self) -> str:
        """Scope after the default is resolved."""
        return self.scope or ("lrc" if self.train in ("lrc", "nlrc") else "all")

    @property
    def needs_calibration(self) -> bool:
        """Whether `method` looks at data."""
        return self.method != "plain"
