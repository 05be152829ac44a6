"""A GGUF file from a Hugging Face folder of a tied Llama in bf16, or from another GGUF.

    make_gguf.py FOLDER OUT            the same weights, bf16
    make_gguf.py IN.gguf OUT q4_0      quantised by llama.cpp itself, with its defaults

Runs under the interpreter that holds llama_cpp and gguf. The vocabulary is made up: ids are fed.
"""

import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

TYPES = {"q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(folder: Path, out: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    describe(writer, config)
    vocabulary(writer, config["vocab_size"])
    for name, bits in tensors(folder / "model.safetensors"):
        add(writer, config, name, bits)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: gguf.GGUFWriter, config: dict) -> None:
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(llama_cpp.LLAMA_FTYPE_MOSTLY_BF16)


def vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """SentencePiece's kind: three specials, 256 bytes, then words that are only numbers."""
    kinds = gguf.TokenType
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [*specials, *(f"<0x{b:02X}>" for b in range(256))]
    pieces += [f"w{i}" for i in range(len(pieces), size)]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    types += [kinds.NORMAL] * (size - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces[:size])
    writer.add_token_scores([-float(i) for i in range(size)])
    writer.add_token_types(types[:size])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def tensors(path: Path):
    """(name, bits [shape] as uint16) of each tensor of a safetensors file in bf16."""
    data = np.memmap(path, np.uint8, "r")
    length = int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8 : 8 + length]))
    for name, facts in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in facts["data_offsets"])
            yield name, np.frombuffer(data[begin:end], "<u2").reshape(facts["shape"])


def add(writer: gguf.GGUFWriter, config: dict, name: str, bits: np.ndarray) -> None:
    """Vectors in f32, as llama.cpp wants them; rows of q and k in the order of its rotation."""
    inner = name.removeprefix("model.").removesuffix(".weight")
    if bits.ndim == 1:
        wide = (bits.astype(np.uint32) << 16).view(np.float32)
        writer.add_tensor(renamed(inner), wide)
        return
    if inner.endswith(("q_proj", "k_proj")):
        key = "num_attention_heads" if inner.endswith("q_proj") else "num_key_value_heads"
        heads, (rows, columns) = config[key], bits.shape
        bits = bits.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
        bits = bits.reshape(rows, columns)
    raw = np.ascontiguousarray(bits).view(np.uint8)
    writer.add_tensor(renamed(inner), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)


def renamed(inner: str) -> str:
    if inner.startswith("layers."):
        _, index, rest = inner.split(".", 2)
        return f"blk.{index}.{NAMES[rest]}.weight"
    return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[inner]


def quantise(source: Path, out: Path, kind: str) -> None:
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = TYPES[kind]
    if code := llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), how):
        raise SystemExit(f"llama_model_quantize refused {source.name} as {kind}: code {code}")


if __name__ == "__main__":
    source, out, *kind = sys.argv[1:]
    if kind:
        quantise(Path(source), Path(out), *kind)
    else:
        write(Path(source), Path(out))
