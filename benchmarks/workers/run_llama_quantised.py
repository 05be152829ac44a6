"""llama.cpp's own quantisations of one model: FOLDER -> FOLDER/llama-*.npy and JSON on stdout.

FOLDER holds weights.npz (float32, by seriatim's names), model.json (the numbers of a Llama) and
windows.npy (ids [window, id]). Written are the F16 file, each quantisation of it by
llama_model_quantize, and float32 logits [window * id, vocabulary] of all.
"""

import ctypes
import json
import sys
from pathlib import Path

import gguf
import llama_cpp as lc
import numpy as np

FTYPES = {"Q8_0": lc.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": lc.LLAMA_FTYPE_MOSTLY_Q4_0}
LAYER = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
ROOT = {"embed": "token_embd", "norm": "output_norm", "head": "output"}


def name(ours: str) -> str:
    parts = ours.split(".")
    if parts[0] != "layers":
        return f"{ROOT[parts[0]]}.{parts[1]}"
    return f"blk.{parts[1]}.{LAYER[parts[2]]}.{parts[3]}"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key as llama.cpp turns them: pairs next to each other."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


def write_f16(path: Path, weights: dict[str, np.ndarray], m: dict) -> None:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(m["context"])
    writer.add_embedding_length(m["width"])
    writer.add_block_count(m["layers"])
    writer.add_feed_forward_length(m["ffn"])
    writer.add_head_count(m["heads"])
    writer.add_head_count_kv(m["kv_heads"])
    writer.add_rope_dimension_count(m["channels"])
    writer.add_rope_freq_base(m["rope_theta"])
    writer.add_layer_norm_rms_eps(m["eps"])
    writer.add_vocab_size(m["vocabulary"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(lc.LLAMA_FTYPE_MOSTLY_F16)
    for ours, weight in weights.items():
        part = ours.split(".")[-2]
        if part in ("query", "key") and m["layout"] == "half":
            weight = interleaved(weight, m["heads" if part == "query" else "kv_heads"])
        whole = weight.astype(np.float16 if weight.ndim == 2 else np.float32)
        writer.add_tensor(name(ours), np.ascontiguousarray(whole))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source: Path, target: Path, kind: str, *, pure: bool) -> None:
    params = lc.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = FTYPES[kind], pure, 2
    code = lc.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if code:
        raise SystemExit(f"llama_model_quantize to {kind} gave {code}")


def types(path: Path) -> dict[str, int]:
    """How many weights of each type; vectors are left out."""
    found: dict[str, int] = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        if len(tensor.shape) == 2:
            kind = tensor.tensor_type.name
            found[kind] = found.get(kind, 0) + int(tensor.n_elements)
    return found


def logits(path: Path, windows: np.ndarray) -> np.ndarray:
    """float32 [window * id, vocabulary]; keys and values in float32: weights are compared."""
    count, length = windows.shape
    model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
    params = lc.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = length
    params.type_k = params.type_v = lc.GGML_TYPE_F32
    params.n_threads = params.n_threads_batch = 2
    context = lc.llama_init_from_model(model, params)
    size = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    rows = np.empty((count, length, size), np.float32)
    batch = lc.llama_batch_init(length, 0, 1)
    for index, ids in enumerate(windows.tolist()):
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        batch.n_tokens = length
        for place, id in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = id, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        if lc.llama_decode(context, batch):
            raise SystemExit(f"llama_decode failed on window {index}")
        found = np.ctypeslib.as_array(lc.llama_get_logits(context), (length, size))
        rows[index] = found
    lc.llama_batch_free(batch)
    lc.llama_free(context)
    lc.llama_model_free(model)
    return rows.reshape(-1, size)


@lc.llama_log_callback
def quiet(level, text, data) -> None:
    """llama.cpp's log, of which only errors matter here."""
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


def main() -> None:
    folder = Path(sys.argv[1])
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    with np.load(folder / "weights.npz") as file:
        weights = dict(file)
    windows = np.load(folder / "windows.npy")
    source = folder / "F16.gguf"
    write_f16(source, weights, json.loads((folder / "model.json").read_text()))
    report = {}
    for kind in ("F16", "Q8_0", "Q4_0", "Q4_0 pure"):
        path = folder / f"{kind.replace(' ', '-')}.gguf"
        if kind != "F16":
            quantise(source, path, kind.split()[0], pure=kind.endswith("pure"))
        np.save(folder / f"llama-{path.stem}.npy", logits(path, windows))
        report[kind] = {"bytes": path.stat().st_size, "types": types(path)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
