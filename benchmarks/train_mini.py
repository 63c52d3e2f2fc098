"""The training of `mini`, the small demonstration network that the library ships.

ESM-2's architecture and ESM-2's objective (masked residues, 15 % selected, 80/10/10), on a
laptop's budget: 6 layers, minutes to an hour on two CPU cores.  The module below has
fair-esm's parameter names, so that its state dict *is* the checkpoint; it differs only in
what training on a CPU wants: q, k and v in one product, rows without padding, the language-model
head at the selected positions alone.

    python benchmarks/train_mini.py --fasta natural_proteins.fasta.gz --out mini.safetensors

Shapes: B rows, T tokens in a row, D width, N heads, H width of a head, M selected positions.
Never here: the figures of the model card (evaluate_mini.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from esm2_features import read_fasta
from esm2_features._inputs.alphabet import CLS_TOKEN, EOS_TOKEN, MASK_TOKEN, TOKENS, encode

FIRST_RESIDUE, END_RESIDUE = 4, 24  # the twenty standard ones; only these are ever selected
SELECTED = 0.15
DEFAULT_FASTA = Path(__file__).parents[2] / "shared" / "data" / "natural_proteins.fasta.gz"
DEFAULT_OUT = Path(__file__).parents[1] / "esm2_features" / "data" / "mini.safetensors"

# Tokens in a row -> share of the batches.  Every batch has the same number of tokens, and every
# row is full.  Long rows teach context, short ones keep peptides within the distribution.
WINDOWS = {32: 0.05, 64: 0.15, 128: 0.45, 256: 0.30, 512: 0.05}
DRESSED = {32: 0.5, 64: 0.5}  # share of the rows that get their own <cls> and <eos>, like a peptide

# --------------------------------------------------------------------------------------- data


def sequences_of(fasta: Path) -> list[str]:
    """Read the sequences of a FASTA file, plain or gzipped, in file order."""
    if not fasta.is_file():
        raise SystemExit(f"{fasta}: no such FASTA file; give one with --fasta PATH")
    return [record.seq for record in read_fasta(fasta)]


def split(sequences: list[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    """Shuffle by the seed and split into (training, held-out) sequences."""
    order = np.random.default_rng(seed).permutation(len(sequences))
    cut = round(held_out * len(sequences))
    return [sequences[i] for i in order[cut:]], [sequences[i] for i in order[:cut]]


def select(
    tokens: NDArray[np.int64], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose positions and corrupt them: 80 % `<mask>`, 10 % any residue, 10 % as they are.

    Returns
    -------
    corrupted : tokens of the same shape
    chosen : flat positions, shape (count,)
    """
    flat = tokens.ravel()
    eligible = np.flatnonzero((flat >= FIRST_RESIDUE) & (flat < END_RESIDUE))
    chosen = rng.choice(eligible, count, replace=False, shuffle=False)
    fate = rng.random(count)
    corrupted = flat.copy()
    corrupted[chosen[fate < 0.8]] = MASK_TOKEN
    swapped = chosen[fate >= 0.9]
    corrupted[swapped] = rng.integers(FIRST_RESIDUE, END_RESIDUE, len(swapped))
    return corrupted.reshape(tokens.shape), chosen


def batches(
    sequences: list[str], tokens_per_batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (corrupted tokens (B, T), selected flat positions (M,), their true tokens (M,)).

    A batch has one window length; a sequence is drawn in proportion to its length.
    """
    encoded = [encode(sequence) for sequence in sequences]
    flat = np.concatenate(encoded)
    lengths = np.array([len(e) for e in encoded])
    starts = np.cumsum(lengths) - lengths
    rng = np.random.default_rng([seed, 1])
    count = int(SELECTED * tokens_per_batch * 0.97)  # room for <cls>, <eos> and odd letters
    odds = {}
    for window in WINDOWS:
        room = np.maximum(lengths - window + 1, 0)
        odds[window] = np.cumsum(np.where(room > 0, lengths, 0) / lengths[room > 0].sum())
    while True:
        window = int(rng.choice(list(WINDOWS), p=list(WINDOWS.values())))
        rows = tokens_per_batch // window
        drawn = np.searchsorted(odds[window], rng.random(rows) * odds[window][-1])
        # Overshooting both ends and clipping back shows the termini as often as the middle.
        room = lengths[drawn] - window
        offset = np.clip(rng.integers(-8, room + 9), 0, room)
        tokens = flat[(starts[drawn] + offset)[:, None] + np.arange(window)].astype(np.int64)
        dressed = rng.random(rows) < DRESSED.get(window, 0.0)
        tokens[dressed, 0], tokens[dressed, -1] = CLS_TOKEN, EOS_TOKEN
        corrupted, chosen = select(tokens, count, rng)
        truth = tokens.ravel()[chosen]
        yield torch.from_numpy(corrupted), torch.from_numpy(chosen), torch.from_numpy(truth)


# ------------------------------------------------------------------------------------ network


class Rotary(nn.Module):
    """Rotary positions; a module of its own only because the buffer is in the checkpoint."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponent = torch.arange(0, head_dim, 2).float() / head_dim
        self.register_buffer("inv_freq", 1.0 / (10000**exponent))

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, (T, H) each."""
        angles = torch.outer(torch.arange(length).float(), self.inv_freq)
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (..., T, H) by its positions."""
    left, right = x.chunk(2, -1)
    return (x * cos + torch.cat([-right, left], -1) * sin).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Mix values, (B, N, T, H) each, by whichever of two equal ways measured faster on a CPU."""
    if q.shape[-2] > 256:
        with torch.autocast("cpu", enabled=False):
            mixed = functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    else:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        mixed = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    return mixed.to(v.dtype)


class Attention(nn.Module):
    """Self-attention with rotary positions over rows without padding."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.rot_emb = Rotary(dim // heads)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Mix each row's positions, (B, T, D)."""
        rows, length, dim = x_BTD.shape
        parts = (self.q_proj, self.k_proj, self.v_proj)
        weight, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
        qkv = functional.linear(x_BTD, weight, bias).view(
            rows, length, 3, self.heads, dim // self.heads
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(rows, length, dim))
        return out


class Block(nn.Module):
    """Attention, then the feed-forward part; a LayerNorm in front of each."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Add both parts to the residual stream, (B, T, D)."""
        x_BTD = x_BTD + self.self_attn(self.self_attn_layer_norm(x_BTD), cos, sin)
        out: Tensor = x_BTD + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x_BTD))))
        return out


class Head(nn.Module):
    """The language-model head; its output weight is the embedding's."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense, self.layer_norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.bias = nn.Parameter(torch.zeros(len(TOKENS)))

    def forward(self, x_MD: Tensor, embedding: Tensor) -> Tensor:
        """Return logits, (M, 33)."""
        return functional.linear(
            self.layer_norm(functional.gelu(self.dense(x_MD))), embedding, self.bias
        )


class Mini(nn.Module):
    """ESM-2 for rows without padding, under fair-esm's parameter names."""

    def __init__(self, layers: int, dim: int, heads: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(len(TOKENS), dim)
        self.layers = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.emb_layer_norm_after = nn.LayerNorm(dim)
        self.lm_head = Head(dim)
        for name, parameter in self.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight", "bias")):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=dim**-0.5)
        # Embeddings large enough to survive in the residual stream, first logits near one.
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        nn.init.constant_(self.lm_head.layer_norm.weight, 0.1)

    def forward(self, tokens_BT: Tensor, positions_M: Tensor | None = None) -> Tensor:
        """Return logits, (B * T, 33), or (M, 33) at some flat positions."""
        hidden = self.hidden(tokens_BT).flatten(0, 1)
        if positions_M is not None:
            hidden = hidden[positions_M]
        logits: Tensor = self.lm_head(hidden, self.embed_tokens.weight)
        return logits

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Return the last representation, (B, T, D), its LayerNorm included."""
        masked = tokens_BT == MASK_TOKEN
        scale = (1 - 0.15 * 0.8) / (1 - masked.float().mean(1))  # token dropout, row by row
        x_BTD = self.embed_tokens(tokens_BT) * (~masked * scale[:, None])[:, :, None]
        first: Any = self.layers[0]
        cos, sin = first.self_attn.rot_emb(tokens_BT.shape[1])
        if torch.is_autocast_enabled("cpu"):
            cos, sin = cos.bfloat16(), sin.bfloat16()
        for block in self.layers:
            x_BTD = block(x_BTD, cos, sin)
        hidden: Tensor = self.emb_layer_norm_after(x_BTD)
        return hidden


# ----------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Config:
    """Everything that decides the outcome, the clock guard aside."""

    layers: int = 6
    dim: int = 192
    heads: int = 6
    steps: int = 6000
    batches_per_step: int = 2  # each on a thread of its own
    tokens_per_batch: int = 2048
    muon_lr: float = 5e-3
    adam_lr: float = 4e-3
    weight_decay: float = 0.01
    warmup: float = 0.02
    held_out: float = 0.05
    seed: int = 0


def optimizers(model: Mini, config: Config) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, one a thread; AdamW for all the rest."""
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named.items() if p.ndim != 2 or "embed" in name]
    matrices.sort(key=lambda p: -p.numel())
    decay, count = config.weight_decay, config.batches_per_step
    muons = [
        torch.optim.Muon(matrices[i::count], config.muon_lr, decay, adjust_lr_fn="match_rms_adamw")
        for i in range(count)
    ]
    adam = torch.optim.AdamW(others, config.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [*muons, adam]


def export(model: Mini, path: Path, record: dict[str, Any]) -> None:
    """Write float16 weights (the rotary buffer float32) and the record, by rename."""
    weights = {}
    for name, value in model.state_dict().items():
        if name.endswith("inv_freq"):
            weights[name] = value.clone()
        else:
            if not value.abs().max() < 6e4:
                raise SystemExit(f"{name} does not fit float16; train with a smaller rate")
            weights[name] = value.half()
    shape = {key: str(record[key]) for key in ("layers", "dim", "heads")}
    about = {"format": "pt", "architecture": "esm2", "name": "mini", **shape}
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    save_file(weights, partial, {**about, "training": json.dumps(record)})
    partial.chmod(0o644)
    partial.replace(path)


def gradient(model: Mini, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[float, list[Tensor]]:
    """Return the mean loss in nats at the selected positions, and its gradients."""
    tokens, positions, truth = batch
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens, positions)
    loss = functional.cross_entropy(logits.float(), truth)
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


def prepare(config: Config, compiled: bool) -> Mini:
    """Make the network; compile it outside the clock."""
    torch.manual_seed(config.seed)
    model = Mini(config.layers, config.dim, config.heads)
    if compiled:
        for block in model.layers:
            block.compile(dynamic=False)  # the six share one graph for each window length
        for window in WINDOWS:
            tokens = torch.zeros(config.tokens_per_batch // window, window, dtype=torch.int64)
            gradient(model, (tokens, torch.arange(8), torch.arange(8)))
    return model


def train(config: Config, sequences: list[str], minutes: float, out: Path, compiled: bool) -> None:
    """Train and export; the rates decay to zero at the last step or minute, whichever is first.

    The batches of a step run side by side, a thread each: on a busy machine this loses far
    less than threads that wait for each other in every product.
    """
    torch.set_num_threads(1)
    training, _ = split(sequences, config.held_out, config.seed)
    model = prepare(config, compiled)
    parameters, running = list(model.parameters()), optimizers(model, config)
    groups = [group for optimizer in running for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    tokens_per_step = config.tokens_per_batch * config.batches_per_step
    record = asdict(config) | {
        "parameters": sum(p.numel() for p in parameters),
        "training_sequences": len(training),
        "training_residues": sum(map(len, training)),
        "tokens_per_step": tokens_per_step,
        "hardware": f"{config.batches_per_step} CPU cores, {processor()}",
        "software": f"torch {torch.__version__.split('+')[0]}",
    }
    stream = batches(training, config.tokens_per_batch, config.seed)
    began = saved = time.monotonic()
    recent: list[float] = []
    with ThreadPoolExecutor(config.batches_per_step) as pool:
        for step in itertools.count():
            elapsed = time.monotonic() - began
            progress = max(step / config.steps, elapsed / (60 * minutes))
            if progress >= 1 or time.monotonic() - saved > 60:
                record |= {"steps_done": step, "tokens": step * tokens_per_step}
                export(model, out, record | {"minutes": round(elapsed / 60, 1)})
                loss = np.mean(recent or [math.nan])
                print(f"step {step}, {elapsed:.0f} s, {progress:.1%}: loss {loss:.4f}", flush=True)
                saved = time.monotonic()
                recent.clear()
            if progress >= 1:
                return
            rate = min(1.0, progress / config.warmup + 0.01, (1 - progress) / (1 - config.warmup))
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * rate
            now = list(itertools.islice(stream, config.batches_per_step))
            found = list(pool.map(gradient, itertools.repeat(model), now))
            recent.extend(loss for loss, _ in found)
            for parameter, *parts in zip(parameters, *(parts for _, parts in found), strict=True):
                parameter.grad = torch.stack(parts).mean(0)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            list(pool.map(lambda optimizer: optimizer.step(), running))


def processor() -> str:
    """Name the processor, as well as the system can tell."""
    cpuinfo = Path("/proc/cpuinfo")
    known = cpuinfo.read_text() if cpuinfo.is_file() else ""
    found = re.search(r"model name\s*: (.+)", known)
    return found[1] if found else platform.machine()


def main() -> None:
    """Parse, read, train."""
    parser = argparse.ArgumentParser(description="Train the embedded demonstration network.")
    parser.add_argument("--fasta", type=Path, default=DEFAULT_FASTA)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--minutes", type=float, default=math.inf, help="guard by the clock")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    for name, default in asdict(Config()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = vars(parser.parse_args())
    fasta, out, minutes = given.pop("fasta"), given.pop("out"), given.pop("minutes")
    compiled = given.pop("compile")
    train(Config(**given), sequences_of(fasta), minutes, out, compiled)


if __name__ == "__main__":
    main()
