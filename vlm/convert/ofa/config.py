"""The settings that an OFA checkpoint carries, as our configurations.

fairseq's checkpoints name them as the original's command line does, the port to transformers by its `config.json`.
Nothing is guessed from the sizes of tensors: what a file does not say has the value that the original code gives it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm.image import ImageTransform
from vlm.models.config import Seq2SeqConfig, TowerConfig
from vlm.predictor import Prefix

BLOCKS = {  # bottlenecks in the three stages of the tower, whatever the name says elsewhere
    "resnet18": (2, 2, 2),
    "resnet34": (3, 4, 6),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# sides of the photos that the publisher's examples of the port show each model, by its width; 480 for larger ones
HUB_IMAGE_SIZES = {256: 256, 512: 256, 768: 384}
PREFIXES: dict[str | None, Prefix] = {  # the original's `prompt_type`
    None: "none",
    "none": "none",
    "src": "source_and_end",
    "prev_output": "source",
}
BATCH_NORM_EPS, SYNC_BATCH_NORM_EPS = 1e-5, 1e-3  # the original's synchronised batch norm has another than torch's


@dataclass(frozen=True)
class Settings:
    """What a checkpoint says of itself.

    Attributes:
        backbone: `vocab_size` is 1: only the tensors know it.
        tower: the image tower.
        image: how photos were prepared.
        batch_norm_eps: of the tower.
        prefix: what the decoder was given before answers to questions and to hypotheses.
    """

    backbone: Seq2SeqConfig
    tower: TowerConfig
    image: ImageTransform
    batch_norm_eps: float
    prefix: Prefix = "none"


def from_fairseq(values: Mapping[str, Any]) -> Settings:
    """Read the settings of a fairseq checkpoint, flat, under the names of the command line.

    Raises:
        KeyError: a setting is missing, so that this is not an OFA model.
        ValueError: a setting asks for what this backbone does not have.
    """
    _require(
        values,
        decoder_embed_dim=values["encoder_embed_dim"],
        decoder_ffn_embed_dim=values["encoder_ffn_embed_dim"],
        decoder_attention_heads=values["encoder_attention_heads"],
        decoder_normalize_before=values.get("encoder_normalize_before", True),
        activation_fn="gelu",
        no_scale_embedding=True,
        layernorm_embedding=True,
        patch_layernorm_embedding=True,
        code_layernorm_embedding=True,
        add_type_embedding=True,
        share_all_embeddings=True,
    )
    backbone = Seq2SeqConfig(
        vocab_size=1,
        dim=values["encoder_embed_dim"],
        ffn_dim=values["encoder_ffn_embed_dim"],
        heads=values["encoder_attention_heads"],
        scale_attn=values.get("scale_attn", False),
        scale_fc=values.get("scale_fc", False),
        scale_heads=values.get("scale_heads", False),
        scale_resids=values.get("scale_resids", False),
        max_source_positions=values.get("max_source_positions", 1024),
        max_target_positions=values.get("max_target_positions", 1024),
        # with the switch off, the original adds positions to the decoder's input whatever the other switch says
        decoder_entangle=not values.get("disable_entangle", False),
        interpolate_from=values.get("orig_patch_image_size", 256) // 16 if values.get("interpolate_position") else 0,
        **_common(values),
    )
    normalisation = IMAGENET if values.get("imagenet_default_mean_and_std") else {}
    image = ImageTransform(values.get("patch_image_size", 480), **normalisation)
    if (kind := values.get("prompt_type")) not in PREFIXES:
        raise ValueError(f"prompt_type={kind!r} is not supported; released models have none, src or prev_output")
    eps = SYNC_BATCH_NORM_EPS if values.get("sync_bn") else BATCH_NORM_EPS
    return Settings(backbone, _tower(values), image, eps, PREFIXES[kind])


def from_transformers(values: Mapping[str, Any]) -> Settings:
    """Read the `config.json` of the port to transformers.

    It says nothing of photos; their size is that of the publisher's examples.

    Raises:
        KeyError: a setting is missing, so that this is not an OFA model.
        ValueError: a setting asks for what this backbone does not have.
    """
    _require(
        values,
        decoder_ffn_dim=values["encoder_ffn_dim"],
        decoder_attention_heads=values["encoder_attention_heads"],
        decoder_normalize_before=values.get("encoder_normalize_before", True),
        activation_function="gelu",
        scale_embedding=False,
        layernorm_embedding=True,
        patch_layernorm_embedding=True,
        code_layernorm_embedding=True,
        add_type_embedding=True,
    )
    normformer = values.get("normformer", True)
    positions = values.get("max_position_embeddings", 1024)
    backbone = Seq2SeqConfig(
        vocab_size=1,
        dim=values["d_model"],
        ffn_dim=values["encoder_ffn_dim"],
        heads=values["encoder_attention_heads"],
        scale_attn=normformer,
        scale_fc=normformer,
        scale_heads=normformer,
        max_source_positions=positions,
        max_target_positions=positions,
        decoder_entangle=values.get("entangle_position_embedding", False),
        **_common(values),
    )
    return Settings(backbone, _tower(values), ImageTransform(HUB_IMAGE_SIZES.get(backbone.dim, 480)), BATCH_NORM_EPS)


def _common(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that both call by the same names."""
    return {
        "encoder_layers": values["encoder_layers"],
        "decoder_layers": values["decoder_layers"],
        "token_bucket_size": values.get("token_bucket_size", 256),
        "image_bucket_size": values.get("image_bucket_size", 42),
        "code_grid": values.get("code_image_size", 128) // 8,  # a code stands for 8 x 8 pixels
        "attn_scale_factor": float(values.get("attn_scale_factor", 2)),
        "pre_norm": values.get("encoder_normalize_before", True),
        "encoder_entangle": values.get("entangle_position_embedding", False),
        "dropout": values.get("dropout", 0.1),
        "attention_dropout": values.get("attention_dropout", 0.0),
        "encoder_drop_path": values.get("encoder_drop_path_rate", 0.0),
        "decoder_drop_path": values.get("decoder_drop_path_rate", 0.0),
    }


def _tower(values: Mapping[str, Any]) -> TowerConfig:
    if values["resnet_type"] not in BLOCKS:
        raise ValueError(f"resnet_type={values['resnet_type']!r} is no image tower that is known; {', '.join(BLOCKS)}")
    return TowerConfig("ofa_resnet", BLOCKS[values["resnet_type"]])


def _require(values: Mapping[str, Any], **fixed: Any) -> None:
    """Refuse settings other than `fixed`; a missing one has the value of every released model."""
    for name, value in fixed.items():
        if values.get(name, value) != value:
            raise ValueError(f"{name}={values[name]!r} is not supported; every released model has {value!r}")
