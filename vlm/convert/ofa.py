"""OFA's tensor names (fairseq) to ours."""

import re

_STACK = (
    (r"layernorm_embedding", "embed_norm"),
    (r"patch_layernorm_embedding", "patch_norm"),
    (r"code_layernorm_embedding", "code_embed_norm"),
    (r"image_proj", "patch_proj"),
    (r"embed_positions", "text_positions"),
    (r"embed_image_positions", "image_positions"),
    (r"pos_ln", "text_position_norm"),
    (r"image_pos_ln", "image_position_norm"),
    (r"(?:self_)?pos_([qk])_linear", r"self_bias.\1_proj"),
    (r"cross_pos_([qk])_linear", r"cross_bias.\1_proj"),
    (r"token_rel_pos_table_list\.(\d+)", r"relative.\1.text"),
    (r"image_rel_pos_table_list\.(\d+)", r"relative.\1.image"),
    (r"layer_norm", "norm"),
    (r"type_embedding", "type_embedding"),
)
_LAYER = (
    (r"self_attn\.c_attn", "self_attn.head_scale"),
    (r"encoder_attn\.c_attn", "cross_attn.head_scale"),
    (r"self_attn\.(\w+)", r"self_attn.\1"),
    (r"encoder_attn\.(\w+)", r"cross_attn.\1"),
    (r"self_attn_layer_norm", "self_attn_norm"),
    (r"encoder_attn_layer_norm", "cross_attn_norm"),
    (r"(?:self_)?attn_ln", "self_attn_out_norm"),
    (r"cross_attn_ln", "cross_attn_out_norm"),
    (r"(fc[12])", r"ffn.\1"),
    (r"ffn_layernorm", "ffn.norm"),
    (r"final_layer_norm", "ffn_norm"),
    (r"w_resid", "ffn_resid"),
)
_TOWER = (
    (r"conv1", "chain.0.0"),
    (r"bn1", "chain.0.1"),
    (r"layer(\d)\.(.+)", r"chain.\1.\2"),
)
# tables that we compute, and the two further names of the tied embedding
_IGNORED = re.compile(
    r"(encoder|decoder)\.(version|token_rp_bucket|image_rp_bucket|image_position_idx)"
    r"|decoder\.(embed_tokens|output_projection)\.weight"
)


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    stem, dot, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        stem, dot, leaf = name, "", ""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, stem)
        if match:
            return match.expand(replacement) + dot + leaf
    return None


def rename(name: str) -> str | None:
    """Our name of one of OFA's tensors, with the part of the model in front: `backbone.` or `tower.`.

    Returns:
        None for buffers that this code computes and for the copies of the tied embedding.

    Raises:
        KeyError: the name belongs to no part of the model.
    """
    if _IGNORED.fullmatch(name):
        return None
    if name == "encoder.embed_tokens.weight":
        return "backbone.embed.weight"
    stack, _, rest = name.partition(".")
    new = None
    if stack in ("encoder", "decoder"):
        if rest.startswith("embed_images."):
            new = _rename(rest.removeprefix("embed_images."), _TOWER)
            return f"tower.{new}" if new else _unknown(name)
        if match := re.match(r"(layers\.\d+)\.(.+)", rest):
            new = _rename(match[2], _LAYER)
            new = f"{match[1]}.{new}" if new else None
        else:
            new = _rename(rest, _STACK)
    return f"backbone.{stack}.{new}" if new else _unknown(name)


def _unknown(name: str) -> str:
    raise KeyError(name)
