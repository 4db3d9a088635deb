"""State dicts of PyG in a `GraphTransformer`, where they map."""

from __future__ import annotations

import re
from typing import Any

from attention_core.errors import UsageError
from attention_core.pretrained import Checkpoint, Family, names
from attention_core.pretrained.renaming import Weights, some, split_off

STACK = r"(?:convs|layers|blocks)"
NODES = "embedding.project"

_BLOCK = {
    "attn.in_proj_weight": f"{names.QKV}.weight",
    "attn.in_proj_bias": f"{names.QKV}.bias",
    "attn.out_proj": names.OUT,
    "norm2": names.ATTENTION_NORM,
    "mlp.0": names.UP,
    "mlp.3": names.DOWN,
    "norm3": names.MLP_NORM,
}


def _gps_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """A block of GPS without messages is one whose norm stands behind each residual branch."""
    sizes = checkpoint.sizes("encoder")
    nodes = checkpoint.tensor(f"{NODES}.weight")
    embedded = nodes.shape[1] == sizes["dim"] and f"{NODES}.bias" not in checkpoint.ours
    return {
        **sizes,
        "heads": checkpoint.number_of_heads(sizes["dim"], "heads", 16),
        "norm_order": "post",
        "eps": 1e-5,
        "activation": "relu",
        "num_classes": checkpoint.length(f"{names.CLASSIFIER}.weight") or None,
        "node_types" if embedded else "node_features": nodes.shape[0 if embedded else 1],
    }


def _gps_without_messages(weights: Weights) -> tuple[Weights, dict[str, str]]:
    refused = {
        r"\.conv\.": "messages (conv) have no place: the local part of a GraphTransformer is "
        "attention, local=Edges()",
        r"\.module\.running_mean": "BatchNorm has no place, but norm='layer_norm' with "
        "norm_kwargs={'mode': 'node'} has",
    }
    for pattern, why in refused.items():
        found = [name for name in weights if re.search(pattern, name)]
        if found:
            raise UsageError(f"weights: GPSConv's {why}; they have {some(found)}.")
    return split_off(weights, {r".*\.norm1\..*": "a norm of messages, of which there are none"})


def _no_place(weights: Weights) -> tuple[Weights, dict[str, str]]:
    raise UsageError(
        "weights: PyG's convolutions alone are no transformer, whose blocks have a second residual "
        "branch. GATConv, GATv2Conv and TransformerConv of `graph` load them, by load_state_dict."
    )


#: By name, what is more particular first.
GRAPH_TRANSFORMERS = {
    "pyg-gps": Family(
        recognises=lambda w: any(re.match(STACK + r"\.0\.attn\.in_proj_weight$", n) for n in w),
        table={
            **{
                f"{stack}.#.{theirs}": f"encoder.blocks.#.{ours}"
                for stack in ("convs", "layers", "blocks")
                for theirs, ours in _BLOCK.items()
            },
            **dict.fromkeys(("node_emb", "node_encoder", "embedding", "emb"), NODES),
            **dict.fromkeys(("lin", "head", "classifier", "lin_out"), names.CLASSIFIER),
        },
        settings=_gps_settings,
        prepare=_gps_without_messages,
    ),
    "pyg-convolutions": Family(
        recognises=lambda w: any(
            re.search(r"\.0\.(att_src|att_l|att|lin_key\.weight|lin\.weight|nn\.0\.weight)$", n)
            for n in w
        ),
        table={},
        settings=lambda checkpoint: {},
        prepare=_no_place,
    ),
}
