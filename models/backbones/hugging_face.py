"""The names that Hugging Face's vision transformers have for their weights (ViT, DeiT, DINOv2,
DINOv3, the image towers of CLIP and SigLIP), as timm's names."""

import re
from collections.abc import Container, Mapping

import torch
from torch import Tensor

_POOL = "attn_pool.in_proj."
_NAMES = (
    (r"^(vit|deit|dinov2|dinov2_with_registers|dinov3_vit|clip|siglip)\.", ""),
    (r"^vision_model\.", ""),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^(embeddings\.)?(register_tokens|storage_tokens)$", "reg_token"),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?\.(projection\.)?(weight|bias)$", r"patch_embed.proj.\2"),
    (
        r"^(encoder\.)?layers?\.(\d+)\.(?=attention|self_attn|norm|layer|mlp|inter|out)",
        r"blocks.\2.",
    ),
    (r"^(blocks\.\d+\.)attention\.attention\.(query|key|value)\.", r"\1attn.\2."),
    (r"^(blocks\.\d+\.)(?:attention|self_attn)\.q_proj\.", r"\1attn.query."),
    (r"^(blocks\.\d+\.)(?:attention|self_attn)\.k_proj\.", r"\1attn.key."),
    (r"^(blocks\.\d+\.)(?:attention|self_attn)\.v_proj\.", r"\1attn.value."),
    (
        r"^(blocks\.\d+\.)(?:attention|self_attn)\.(?:output\.dense|o(?:ut)?_proj)\.",
        r"\1attn.proj.",
    ),
    (r"^(blocks\.\d+\.)(?:layernorm_before|layer_norm1)\.", r"\1norm1."),
    (r"^(blocks\.\d+\.)(?:layernorm_after|layer_norm2)\.", r"\1norm2."),
    (r"^(blocks\.\d+\.)layer_scale([12])\.lambda1$", r"\1ls\2.gamma"),
    (r"^(blocks\.\d+\.)(?:intermediate\.dense|mlp\.weights_in|mlp\.up_proj)\.", r"\1mlp.fc1."),
    (r"^(blocks\.\d+\.)(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.", r"\1mlp.fc2."),
    (r"^(blocks\.\d+\.)mlp\.gate_proj\.", r"\1mlp.fc1_g."),
    (r"^pre_layrnorm\.", "norm_pre."),  # Hugging Face's own spelling
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_(weight|bias)$", rf"{_POOL}\1"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
)
"""Patterns of Hugging Face's names and what timm has in their place, applied in turn."""


def timm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a Hugging Face vision transformer as timm has them: by its names, queries, keys
    and values of a block as one matrix, tokens and positions [1, T, width]. Other weights stay as
    they are; nothing is copied but what is joined."""
    renamed = {_timm_name(name): weight for name, weight in weights.items()}
    found: dict[str, Tensor] = {}
    for name, weight in renamed.items():
        attention = re.fullmatch(r"(.*\.attn)\.(query|key|value)\.(weight|bias)", name)
        if attention is not None:
            found |= _fused(attention[1], attention[2], attention[3], renamed)
        elif name.startswith(_POOL):
            kind, width = name.removeprefix(_POOL), len(weight) // 3
            found[f"attn_pool.q.{kind}"] = weight[:width]
            found[f"attn_pool.kv.{kind}"] = weight[width:]
        elif name in ("cls_token", "pos_embed"):
            found[name] = weight.reshape(1, -1, weight.shape[-1])
        else:
            found[_gated(name, renamed)] = weight
    return found


def _fused(
    attention: str, part: str, kind: str, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The one matrix, or vector, of a block's queries, keys and values; without all three, as with
    DINOv3, whose keys have no bias, the one alone."""
    three = [weights.get(f"{attention}.{each}.{kind}") for each in ("query", "key", "value")]
    whole = [each for each in three if each is not None]
    if len(whole) == 3:
        return {f"{attention}.qkv.{kind}": torch.cat(whole)}
    return {f"{attention}.{part[0]}_{kind}": weights[f"{attention}.{part}.{kind}"]}


def _gated(name: str, names: Container[str]) -> str:
    """The name in a perceptron that has a gate beside its first layer."""
    block, _, kind = name.partition(".mlp.fc1.")
    if kind and f"{block}.mlp.fc1_g.{kind}" in names:
        return f"{block}.mlp.fc1_x.{kind}"
    return name


def _timm_name(name: str) -> str:
    for theirs, timms in _NAMES:
        name = re.sub(theirs, timms, name)
    return name
