"""The language model that comes with dpclip, for a first run without a download."""

from importlib.resources import files
from pathlib import Path

__all__ = ["builtin_model_path"]


def builtin_model_path() -> Path:
    """The folder of the built-in model, for `AutoModelForCausalLM.from_pretrained` and its
    tokenizer.

    A GPT-2 of 1.75 million parameters (context 128 tokens, vocabulary 2,048), pre-trained on
    WikiText-2 only, so that nothing in it is private; `training.json` in the folder is the record
    of its training.

    Raises:
        FileNotFoundError: this installation of dpclip lacks the model's files.
    """
    folder = Path(str(files(__name__) / "builtin"))
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no built-in model: install dpclip again, or name another model"
        )
    return folder
