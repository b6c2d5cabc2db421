"""Sizes of the networks, as frozen dataclasses that `config.json` and `pair.json` hold; and the special ids of text."""

from dataclasses import dataclass, field

# ids of `<s>`, `<pad>`, `</s>` and `<unk>`, which come before the pieces of text in every vocabulary (OFA's layout)
BOS, PAD, EOS, UNK = range(4)
NUM_SPECIALS = 4


@dataclass(frozen=True)
class TowerConfig:
    """An image tower.

    Attributes:
        name: a timm model name, or "ofa_resnet" for the ResNet of OFA's checkpoints.
        blocks: blocks per stage of "ofa_resnet": (3, 4, 6), (3, 4, 23) or (3, 8, 36); unused for timm models.
    """

    name: str = "tf_efficientnet_lite2"
    blocks: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "blocks", tuple(self.blocks))  # JSON knows lists only
        if (self.name == "ofa_resnet") != bool(self.blocks):
            raise ValueError(f"TowerConfig: blocks={self.blocks} with name={self.name!r}; only ofa_resnet takes blocks")


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Sizes and switches of the backbone; the defaults are those of every released OFA size."""

    vocab_size: int
    dim: int = 256
    ffn_dim: int = 1024
    heads: int = 4
    encoder_layers: int = 4
    decoder_layers: int = 4
    patch_dim: int = 1024  # width of the image tower's patch features
    max_source_positions: int = 1024
    max_target_positions: int = 1024
    token_bucket_size: int = 256
    image_bucket_size: int = 42  # largest side of a patch grid
    code_grid: int = 16  # side of the grid of image codes that the decoder writes
    attn_scale_factor: float = 2.0
    scale_attn: bool = True  # norm after each attention
    scale_fc: bool = True  # norm inside the feed-forward block
    scale_heads: bool = True
    scale_resids: bool = False
    pre_norm: bool = True
    encoder_entangle: bool = False  # also add position embeddings to the encoder's input
    decoder_entangle: bool = False  # also add position embeddings to the decoder's input
    interpolate_from: int = 0  # grid side whose position embeddings are resized for larger grids; 0: never
    dropout: float = 0.1
    attention_dropout: float = 0.0
    encoder_drop_path: float = 0.0
    decoder_drop_path: float = 0.0

    def __post_init__(self):
        if self.dim % self.heads:
            raise ValueError(f"Seq2SeqConfig: dim={self.dim} is not a multiple of heads={self.heads}; change one")
        if self.code_grid > self.image_bucket_size:
            raise ValueError(
                f"Seq2SeqConfig: code_grid={self.code_grid} is larger than image_bucket_size={self.image_bucket_size}"
            )


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a BERT encoder; the defaults are those of all-MiniLM-L6-v2."""

    vocab_size: int = 30522
    dim: int = 384
    layers: int = 6
    heads: int = 12
    ffn_dim: int = 1536
    max_positions: int = 512

    def __post_init__(self):
        if self.dim % self.heads:
            raise ValueError(f"TextConfig: dim={self.dim} is not a multiple of heads={self.heads}; change one of them")


@dataclass(frozen=True)
class PairConfig:
    """Sizes of the pair apart from the image tower."""

    patch_dim: int  # width of the tower's patch features
    dim: int = 256  # of the common space
    width: int = 1024  # of the image head's hidden layer
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self):
        if isinstance(self.text, dict):  # JSON knows no dataclasses
            object.__setattr__(self, "text", TextConfig(**self.text))
