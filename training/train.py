"""Train the embedded model: `python -m training.train --minutes 60 --save /tmp/train`."""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from training.data import DEFAULT_CORPORA, Batch, Mixture, batches, load_corpora, pack
from training.export import DEFAULT_OUT, export, load_checkpoint
from training.model import Llama, Shape


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm up, hold, fall to zero; counted in seconds or in tokens."""

    start: float
    budget: float
    warmup: float = 0.02
    fall_from: float = 0.45

    def progress(self, spent: float) -> float:
        """How much of the budget is used, 0 to 1."""
        return min(1.0, (spent - self.start) / self.budget)

    def rate(self, spent: float) -> float:
        """The share of the full learning rate to use now."""
        progress = self.progress(spent)
        rising = min(1.0, progress / self.warmup) if self.warmup else 1.0
        falling = (1.0 - progress) / (1.0 - self.fall_from)
        return max(0.005, min(rising, falling, 1.0))


def optimizers(model: Llama, learning_rate: float, decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    embedding = [model.model.embed_tokens.weight]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": embedding, "weight_decay": decay}]
    return [
        torch.optim.Muon(matrices, learning_rate, decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.95), eps=1e-10),
    ]


def loss_of(model: Llama, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next token."""
    device = model.cos.device
    with torch.autocast(device.type, dtype=torch.bfloat16):
        logits = model(batch.input_ids.to(device), batch.lengths)
    targets = batch.targets.to(device)
    # In parts that fit the processor's cache: a whole batch of float32 logits is 128 MB.
    parts = zip(torch.split(logits, 512), torch.split(targets, 512), strict=True)
    losses = [F.cross_entropy(rows.float(), row, reduction="sum") for rows, row in parts]
    return torch.stack(losses).sum() / (targets >= 0).sum()


def held_out_stories(mixture: Mixture, count: int) -> Batch:
    """The first few held-out stories."""
    stories = mixture.corpora.held_out["stories"][:count]
    return pack([mixture.document(text)[:2048] for text in stories])


@torch.no_grad()
def held_out_loss(model: Llama, kept: Batch) -> float:
    """Mean loss per token of the held-out stories."""
    model.eval()
    loss = loss_of(model, kept).item()
    model.train()
    return loss


@dataclass(slots=True)
class Training:
    """One run and all that has to be saved of it."""

    shape: Shape
    model: Llama
    optimizers: list[torch.optim.Optimizer]
    learning_rate: float
    folder: Path
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    mixed: dict[str, int] = field(default_factory=dict)

    def save(self, name: str = "last.pt") -> None:
        """Write a checkpoint that `resume` and the export can read."""
        state = {
            "shape": asdict(self.shape), "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step, "tokens": self.tokens, "seconds": self.seconds,
            "mixed": dict(self.mixed),
        }  # fmt: skip
        torch.save(state, self.folder / (name + ".part"))
        (self.folder / (name + ".part")).replace(self.folder / name)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        saved = load_checkpoint(path)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.tokens = saved["step"], saved["tokens"]
        self.seconds, self.mixed = saved["seconds"], saved["mixed"]

    def update(self, loss: Tensor, rate: float) -> None:
        """One optimizer step at `rate` of the full learning rate."""
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, default=DEFAULT_CORPORA)
    parser.add_argument("--tokenizer", type=Path, default=DEFAULT_OUT / "tokenizer.json")
    parser.add_argument("--save", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to train")
    parser.add_argument("--tokens", type=int, help="or how much to read: the same run each time")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    parser.add_argument("--decay-now", action="store_true", help="only let the rate fall to zero")
    parser.add_argument("--batch", type=int, default=8192, help="tokens in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--layers", type=int, default=Shape().num_hidden_layers)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> tuple[Training, Mixture]:
    """The model with its optimizers, and the text it will read."""
    torch.manual_seed(args.seed)
    shape = Shape(num_hidden_layers=args.layers)
    model = Llama(shape, args.dropout).to(args.device)
    args.save.mkdir(parents=True, exist_ok=True)
    made = optimizers(model, args.learning_rate, args.weight_decay)
    training = Training(shape, model, made, args.learning_rate, args.save)
    if args.resume:
        training.resume(args.resume)
    # A resumed run reads on in a new order; it never reads the first rounds again.
    rng = random.Random(args.seed + training.step)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    return training, Mixture(tokenizer, load_corpora(args.corpora), rng, tokens=training.mixed)


def schedule_of(args: argparse.Namespace, training: Training) -> Schedule:
    """The schedule asked for, in tokens if they are given, else in seconds."""
    budget = float(args.tokens or args.minutes * 60)
    if args.decay_now:
        spent = training.tokens if args.tokens else training.seconds
        return Schedule(spent, budget, warmup=0.0, fall_from=0.0)
    return Schedule(0.0, budget)


def report(**figures: float) -> None:
    """One line of figures as JSON."""
    print(json.dumps({name: round(figure, 4) for name, figure in figures.items()}), flush=True)


def train(training: Training, stream: Iterator[Batch], schedule: Schedule, by_tokens: bool, kept: Batch) -> None:
    """Read until the budget is spent, reporting and saving on the way."""
    began, before = time.monotonic(), training.seconds
    saved = reported = training.seconds
    losses: list[float] = []
    for batch in stream:
        spent = float(training.tokens) if by_tokens else training.seconds
        if schedule.progress(spent) >= 1.0:
            break
        loss = loss_of(training.model, batch)
        training.update(loss, schedule.rate(spent))
        training.step += 1
        training.tokens += batch.input_ids.numel()
        training.seconds = before + time.monotonic() - began
        losses.append(loss.item())
        if training.seconds - reported > 20:
            reported = training.seconds
            report(step=training.step, tokens=training.tokens, minutes=training.seconds / 60,
                   loss=sum(losses) / len(losses), rate=schedule.rate(spent),
                   speed=training.tokens / training.seconds)  # fmt: skip
            losses.clear()
        if training.seconds - saved > 240:
            saved = training.seconds
            training.save()
            report(step=training.step, held_out=held_out_loss(training.model, kept))


def main() -> None:
    """Train, save the last checkpoint, and export it beside."""
    args = arguments()
    training, mixture = prepare(args)
    kept = held_out_stories(mixture, 60)
    stream = batches(mixture, args.batch)
    train(training, stream, schedule_of(args, training), bool(args.tokens), kept)
    training.save()
    report(step=training.step, held_out=held_out_loss(training.model, kept))
    export(training.model.state_dict(), training.shape, args.save / "export")


if __name__ == "__main__":
    main()
