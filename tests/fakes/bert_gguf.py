"""A tiny BERT embedding model that the real engine loads: a few kilobytes, made from a seed.

Its vectors mean nothing, but they are deterministic, differ between texts, and travel the same
way as those of a real embedding model.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH = 64
_BLOCKS = 2
_HEADS = 4
_CONTEXT = 128
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_bert(path: Path, *, seed: int = 7) -> Path:
    """Write the model to `path` and return it."""
    # The engine's WordPiece writes "▁" before what starts a word; lone letters cover any text.
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    vocab = [*_SPECIAL, *(f"▁{c}" for c in letters), *letters]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny-bert")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(_BLOCKS)
    writer.add_feed_forward_length(WIDTH * 2)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocab)
    writer.add_token_type_count(2)
    writer.add_token_scores([0.0] * len(vocab))
    types = [gguf.TokenType.CONTROL] * len(_SPECIAL)
    writer.add_token_types([*types, *[gguf.TokenType.NORMAL] * (len(vocab) - len(types))])
    for name, token in (("pad", 0), ("unk", 1), ("sep", 3), ("mask", 4)):
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_bos_token_id(2)  # [CLS]
    writer.add_eos_token_id(3)
    rng = np.random.default_rng(seed)
    for name, shape in _tensors(len(vocab)).items():
        norm = "norm.weight" in name
        values = np.ones(shape) if norm else rng.normal(0, 0.3, shape)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(vocab: int) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab, WIDTH),
        "position_embd.weight": (_CONTEXT, WIDTH),
        "token_types.weight": (2, WIDTH),
        "token_embd_norm.weight": (WIDTH,),
        "token_embd_norm.bias": (WIDTH,),
    }
    square, up, down = (WIDTH, WIDTH), (WIDTH * 2, WIDTH), (WIDTH, WIDTH * 2)
    shapes = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    shapes |= {"ffn_up": up, "ffn_down": down}
    for block in range(_BLOCKS):
        for name, shape in shapes.items():
            tensors[f"blk.{block}.{name}.weight"] = shape
            tensors[f"blk.{block}.{name}.bias"] = shape[:1]
        for name in ("attn_output_norm", "layer_output_norm"):
            tensors[f"blk.{block}.{name}.weight"] = (WIDTH,)
            tensors[f"blk.{block}.{name}.bias"] = (WIDTH,)
    return tensors
