"""Pre-train the small language model that ships with dpclip, on WikiText-2 and nothing else.

    python experiments/builtin_model/pretrain.py DATA --output dpclip/models/builtin --minutes 25

DATA is a folder with `train.txt.gz` and `valid.txt.gz` of WikiText-2. The output is a Hugging Face
folder: a GPT-2 with tied head in float16, a byte-level BPE tokenizer, and `training.json`, the
record of the run.
"""

import argparse
import gzip
import hashlib
import json
import math
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"  # begins and ends every text
PAD = "<|pad|>"  # its own token, so that padding is never mistaken for an end
SHORTEST_PARAGRAPH = 40  # characters; shorter lines are captions and stubs


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, apart from the clock."""

    layers: int = 3
    width: int = 192
    heads: int = 6
    context: int = 128
    vocabulary: int = 2048
    batch: int = 16
    peak_lr: float = 2e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    # share of windows that begin where a paragraph begins, as private records will
    aligned: float = 0.5


SPELLING = [
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r" ?<unk>"), ""),
    (re.compile(r'" ([^"]*) "'), r'"\1"'),
    (re.compile(r"(?<=\d) – (?=\d)"), "–"),
    (re.compile(r" ('s|'t|'re|'ve|'ll|'d|'m|n't)\b"), r"\1"),
    (re.compile(r" ([.,;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[$£€]) "), r"\1"),
    # what an unknown word left behind: empty brackets, doubled marks
    (re.compile(r"\( *\)|\[ *\]"), ""),
    (re.compile(r"[,;:][ ,;:]*(?=[,;:.)])"), ""),
    (re.compile(r'""'), '"'),
    (re.compile(r"\s{2,}"), " "),
]


def plain_spelling(line: str) -> str:
    """WikiText spells text as spaced tokens; give back ordinary English, without the
    unknown words.
    """
    for pattern, replacement in SPELLING:
        line = pattern.sub(replacement, line)
    return line.strip()


def paragraphs(path: Path) -> list[str]:
    """The running text of one split, headings left out."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [plain_spelling(line) for line in lines if not line.lstrip().startswith("=")]
    return [text for text in texts if len(text) >= SHORTEST_PARAGRAPH]


def learn_tokenizer(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE: every string has a spelling in it, so there is no unknown token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )


def packed(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """All texts end to end as token ids, each followed by the end token."""
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
        ids += [*encoding.ids, tokenizer.eos_token_id]
    return torch.tensor(ids)


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> GPT2LMHeadModel:
    """A GPT-2 without dropout: private training brings noise enough."""
    config = GPT2Config(
        vocab_size=recipe.vocabulary,
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return GPT2LMHeadModel(config)


def windows(
    stream: Tensor, end_id: int, recipe: Recipe, generator: torch.Generator
) -> Iterator[Tensor]:
    """Batches [batch, context] of windows: part begin a paragraph, the others begin anywhere."""
    last = len(stream) - recipe.context
    openings = torch.cat(
        [torch.zeros(1, dtype=torch.long), (stream == end_id).nonzero().flatten() + 1]
    )
    openings = openings[openings <= last]
    offsets = torch.arange(recipe.context)
    while True:
        anywhere = torch.randint(0, last + 1, (recipe.batch,), generator=generator)
        chosen = openings[torch.randint(0, len(openings), (recipe.batch,), generator=generator)]
        aligned = torch.rand(recipe.batch, generator=generator) < recipe.aligned
        yield stream[torch.where(aligned, chosen, anywhere)[:, None] + offsets]


@torch.no_grad()
def perplexity(
    model: GPT2LMHeadModel, stream: Tensor, recipe: Recipe, most_windows: int | None = None
) -> float:
    """Per token, over consecutive windows of one context each; the first token of a window is not
    scored.
    """
    rows = stream[: len(stream) // recipe.context * recipe.context].view(-1, recipe.context)[
        :most_windows
    ]
    model.eval()
    total = sum(model(part, labels=part).loss.item() * len(part) for part in rows.split(64))
    model.train()
    return math.exp(total / len(rows))


def learning_rate(step: int, done: float, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak; `done` is the share of time
    used.
    """
    cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return recipe.peak_lr * min(1.0, (step + 1) / recipe.warmup_steps) * cosine


def new_optimizer(model: GPT2LMHeadModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; biases and LayerNorm gains are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.95))


def pretrain(
    model: GPT2LMHeadModel, batches: Iterator[Tensor], recipe: Recipe, minutes: float, valid: Tensor
) -> list[dict[str, float]]:
    """Train until the time is used; returns the log: step, loss, validation perplexity (a part),
    seconds.
    """
    optimizer = new_optimizer(model, recipe)
    log: list[dict[str, float]] = []
    start = time.monotonic()
    step = 0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, done, recipe)
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 200 == 0:
            seconds = round(time.monotonic() - start)
            quick = perplexity(model, valid, recipe, most_windows=64)
            entry = {
                "loss": round(loss.item(), 3),
                "valid_perplexity": round(quick, 2),
                "seconds": seconds,
            }
            log.append({"step": step, **entry})
            print(log[-1], flush=True)
    log.append({"step": step, "seconds": round(time.monotonic() - start)})
    return log


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Weights in float16 on disk; the config says float32, which is what `from_pretrained` then
    gives.
    """
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    tied = "lm_head.weight"  # the embedding again; stored once
    half = {name: value.half() for name, value in model.state_dict().items() if name != tied}
    model.save_pretrained(output, state_dict=half)
    (output / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pre-train dpclip's built-in model on WikiText-2.")
    parser.add_argument("data", type=Path, help="folder with train.txt.gz and valid.txt.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--minutes", type=float, default=25.0, help="training time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options, recipe = arguments(), Recipe()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    train_texts, valid_texts = (
        paragraphs(options.data / f"{split}.txt.gz") for split in ("train", "valid")
    )
    tokenizer = learn_tokenizer(train_texts, recipe)
    train, valid = packed(tokenizer, train_texts), packed(tokenizer, valid_texts)
    model = new_model(tokenizer, recipe)
    generator = torch.Generator().manual_seed(options.seed)
    batches = windows(train, tokenizer.eos_token_id, recipe, generator)
    log = pretrain(model, batches, recipe, options.minutes, valid)
    save(model, tokenizer, options.output)
    # score what was written, rounding included
    stored = GPT2LMHeadModel.from_pretrained(options.output)
    steps = int(log[-1]["step"])
    record = {
        "data": "WikiText-2 (Merity et al. 2016, arXiv:1609.07843), train split, paragraphs only",
        "data_sha256": hashlib.sha256((options.data / "train.txt.gz").read_bytes()).hexdigest(),
        "data_licence": "CC BY-SA 3.0",
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "tokens": steps * recipe.batch * recipe.context,
        "train_tokens": len(train),
        "valid_tokens": len(valid),
        "valid_perplexity_per_token": round(perplexity(stored, valid, recipe), 2),
        "seed": options.seed,
        "minutes": options.minutes,
        "threads": options.threads,
        "torch": torch.__version__,
        "processor": platform.machine(),
        "recipe": asdict(recipe),
        "log": log,
    }
    (options.output / "training.json").write_text(
        json.dumps(record, indent=1) + "\n", encoding="utf-8"
    )
    print(
        {
            name: record[name]
            for name in ("steps", "tokens", "parameters", "valid_perplexity_per_token")
        }
    )


if __name__ == "__main__":
    main()
