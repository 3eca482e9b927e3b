"""Models of random weights in the shapes of two that PSI is used with: one bound by the host, one by its KV cache."""

import json
from pathlib import Path
from typing import Any

from benchmarks.support.llama30m import write_tokenizer

SMALL, LARGE = "qwen2.5-0.5b", "qwen3-1.7b"
_VOCABULARY = 151_936
_COMMON = {
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    SMALL: (
        "qwen2",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
    ),
    LARGE: (
        "qwen3",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
}


def make_model(folder: Path, name: str) -> None:
    """Write configuration, tokenizer and bf16 weights, which are drawn on the GPU."""
    import torch
    import transformers

    library: Any = transformers  # its classes have no usable types
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    _pad_vocabulary(folder / "tokenizer.json", _VOCABULARY)
    kind, shape = _SHAPES[name]
    config = library.AutoConfig.for_model(kind, **_COMMON, **_ENDS, **shape)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        library.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _pad_vocabulary(file: Path, size: int) -> None:
    """A word for each id that the model can write."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    vocabulary.update({f"Ġ#{number}": number for number in range(len(vocabulary), size)})
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
