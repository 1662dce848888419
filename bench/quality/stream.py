"""`python -m bench.quality.stream`: facts told once, asked for after millions of tokens of text.

A small model learns the task `Pairs` on at most 2048 tokens. Then it reads one long stream that
begins with facts; at several lengths a copy of its state is asked for them. Runs go on where they
were interrupted. `--report` makes docs/results_streams.md and its plot from the results.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from atlas_ext.models import Atlas, AtlasCache, AtlasConfig
from bench.memory import resident_kib

from . import stream_report, training
from .models import count_parameters
from .tasks import IGNORED
from .tasks.haystack import haystack, scatter
from .tasks.pairs import FACT, QUESTION, Pairs, ask, facts_of

WORK = Path("bench-results") / "streams"  # weights, and the states of runs that are not finished
RESULTS = training.RESULTS / "streams"
TASK = Pairs.of(keys=128, values=32, facts=64, length=2048, steps=1500, batch_size=1)
POINTS = (2**11, 2**14, 2**16, 2**18, 2**20, 2**22, 10_000_000)
FRESH = 16  # new facts that a copy of the state is told, and asked for at once
PIECE = 2048  # tokens read at a time
# facts and length of the stages of training; the next begins at PASSED right answers
STAGES = ((4, 32), (8, 64), (16, 128), (32, 256), (64, 512), (64, 1024), (64, 2048))
PASSED = 0.9
LEARNING_RATE, WARM_UP, RAMP = 4e-3, 50, 100
LAST_STEPS = 300  # of the last stage, where the learning rate goes down
FLOOR = 1e-8  # a write of this size beside the strongest one counts as none


class Recipe(NamedTuple):
    """A memory, and the weight of `spread_of_writes` in its training loss."""

    config: dict[str, Any]
    spread: float


# The Omega rule with W = 1 on a linear memory of polynomial features. The convolution has two taps,
# so that a fact's last token alone sees key and value: with more, training may choose that tokens
# after it write, and those are noise, on which the gates then cannot close.
PLAIN: dict[str, Any] = {
    "hidden_size": 64, "num_layers": 1, "num_heads": 1, "head_dim": 32, "variant": "omeganet",
    "memory": "linear", "window": 1, "retention": False, "chunk_size": 16, "conv_size": 2,
}  # fmt: skip
MODELS = {
    "sparse-writes": Recipe(PLAIN, 0.1),
    "free-writes": Recipe(PLAIN, 0.0),
    "retention": Recipe(PLAIN | {"retention": True}, 0.1),
}


class Stream:
    """Facts at random places of the first tokens of a held-out text, which starts again where it is
    too short.

    Attributes:
        keys, values: tokens of the facts, [1, facts].
        fresh_keys, fresh_values: of facts that do not stand in the stream, [1, FRESH].
    """

    def __init__(self, task: Pairs, seed: int, begin: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        more = task.stage(task.facts + FRESH, task.length + (FACT + QUESTION) * FRESH)
        keys, values = more.tell(generator, 1)
        self.keys, self.fresh_keys = keys.split([task.facts, FRESH], dim=1)
        self.values, self.fresh_values = values.split([task.facts, FRESH], dim=1)
        self.text = haystack(held_out=True)
        self.offset = int(torch.randint(len(self.text), (), generator=generator))
        facts = facts_of(self.keys, self.values)
        self.begin = scatter(generator, facts, self._text(0, begin))

    def _text(self, start: int, stop: int) -> Tensor:  # [1, stop - start] int64
        at = torch.arange(self.offset + start, self.offset + stop)
        return self.text[None, at % len(self.text)].long()

    def read(self, start: int, stop: int) -> Tensor:  # [1, stop - start] int64
        """The tokens from `start` to `stop`, exclusive."""
        if start >= self.begin.shape[1]:
            return self._text(start, stop)
        head = self.begin[:, start:stop]
        return torch.cat([head, self._text(start + head.shape[1], stop)], dim=1)


def spread_of_writes(model: Atlas, x: Tensor) -> Tensor:  # embeddings [B, T, hidden_size] -> scalar
    """How far above FLOOR tokens write, beside the strongest write of their sequence and head: mean
    of log(1 + strength / (FLOOR * strongest)), a log-sum penalty (Candès, Wakin, Boyd 2008).

    Without it nothing in 2048 tokens tells the gates to close on noise more than a little. It does
    not see which tokens are facts, and a memory that shrinks all writes alike gains nothing.
    """
    (block,) = model.blocks
    gamma, eta, _, _ = block.memory.compute_gates(block.memory_norm(x))
    strength = eta * gamma.sum(dim=-1)  # [B, T, H]
    return torch.log1p(strength / (FLOOR * strength.amax(dim=1, keepdim=True))).mean()


def train(model: Atlas, task: Pairs, seed: int, spread: float, label: str) -> dict[str, Any]:
    """Trains on fresh sequences that grow by STAGES as soon as the model gets along with them."""
    stages = [stage for stage in STAGES if stage[0] <= task.facts and stage[1] <= task.length]
    generator = training.generator(seed, "train")
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.99), eps=1e-12, weight_decay=0.0
    )
    stage, accuracy, tokens_seen, first, last = 0, 0.0, 0, 0, 0
    started = time.process_time()
    bar = tqdm(range(task.steps), desc=label, leave=False, mininterval=1.0)
    for step in bar:
        current = task.stage(*stages[stage])
        tokens, labels = current.batch(generator, task.batch_size * task.length // current.length)
        scored, x = labels != IGNORED, model.embedding(tokens)
        logits = model.compute_logits(model.encode(x)[scored])
        loss = F.cross_entropy(logits, labels[scored])
        if spread and stage:  # once it recalls at all
            ramp = min(1.0, (step - first) / RAMP)
            loss = loss + ramp * spread * spread_of_writes(model, x)
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (1 - last / LAST_STEPS)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.CLIP)
        if torch.isfinite(norm):  # a batch that overflows changes nothing
            optimizer.step()
        right = float((logits.argmax(-1) == labels[scored]).float().mean())
        accuracy += 0.05 * (right - accuracy)
        tokens_seen += tokens.numel()
        bar.set_postfix(length=current.length, loss=loss.item(), accuracy=accuracy)
        if stage + 1 == len(stages):
            last += 1
            if last == LAST_STEPS:
                break
        elif accuracy > PASSED:
            stage, accuracy = stage + 1, 0.0
            first = first or step
    return {
        "train_length": stages[stage][1],
        "train_accuracy": round(accuracy, 4),
        "train_steps": step + 1,
        "train_tokens": tokens_seen,
        "train_seconds": round(time.process_time() - started, 1),
    }


@torch.inference_mode()
def recall(model: Atlas, cache: AtlasCache, keys: Tensor, values: Tensor) -> int:
    """Asks a copy of the state for all keys, [1, n]; the number of right answers."""
    hidden = model.encode(model.embedding(ask(keys)), cache.clone())
    logits = model.compute_logits(hidden[:, 1::QUESTION])
    return int((logits.argmax(-1) == values).sum())


@torch.inference_mode()
def examine(model: Atlas, stream: Stream, cache: AtlasCache) -> dict[str, Any]:
    """What the state holds of the facts told at the beginning, whether it still takes new ones,
    and what it weighs."""
    told = cache.clone()
    facts = facts_of(stream.fresh_keys, stream.fresh_values).flatten(1)
    model.encode(model.embedding(facts), told)
    return {
        "right": recall(model, cache, stream.keys, stream.values),
        "facts": stream.keys.shape[1],
        "fresh_right": recall(model, told, stream.fresh_keys, stream.fresh_values),
        "fresh": FRESH,
        "cache_bytes": cache.num_bytes,
        "resident_mib": round(resident_kib("VmRSS") / 1024, 1),
    }


@torch.inference_mode()
def listen(
    model: Atlas, stream: Stream, points: tuple[int, ...], path: Path, label: str
) -> list[dict[str, Any]]:
    """Reads the stream up to the last point; what is known, and memory used, at each.

    The state is saved in `path` at every point, and taken up from there.
    """
    cache, records = AtlasCache(), []
    if path.exists():
        saved = torch.load(path, weights_only=True)
        cache.load_state_dict(saved["cache"])
        records = saved["records"]
    position, seconds = (records[-1]["tokens"], records[-1]["seconds"]) if records else (0, 0.0)
    bar = tqdm(initial=position, total=points[-1], unit="token", desc=label, leave=False)
    for point in points[len(records) :]:
        started = time.process_time()
        for start in range(position, point, PIECE):
            stop = min(start + PIECE, point)
            model.encode(model.embedding(stream.read(start, stop)), cache)
            bar.update(stop - start)
        position = point
        seconds = round(seconds + time.process_time() - started, 1)
        records.append({"tokens": point, "seconds": seconds} | examine(model, stream, cache))
        part = path.with_suffix(".part")
        torch.save({"cache": cache.state_dict(), "records": records}, part)
        part.replace(path)
    bar.close()
    return records


def run(
    name: str, seed: int, task: Pairs, points: tuple[int, ...], results: Path, work: Path
) -> dict[str, Any]:
    """The result of a model from a seed: read if it is there, else made from what is."""
    path = results / f"{name}-{seed}.json"
    if path.exists():
        return training.read(path)
    label = f"{name}-{seed}"
    torch.manual_seed(seed)
    model = Atlas(AtlasConfig(vocab_size=task.vocab_size, **MODELS[name].config))
    work.mkdir(parents=True, exist_ok=True)
    weights = work / f"{label}.model.pt"
    if weights.exists():
        saved = torch.load(weights, weights_only=True)
        model.load_state_dict(saved["model"])
        trained = saved["trained"]
    else:
        trained = train(model, task, seed, MODELS[name].spread, label)
        torch.save({"model": model.state_dict(), "trained": trained}, weights)
    stream = Stream(task, seed, points[0])
    records = listen(model, stream, points, work / f"{label}.state.pt", label)
    result = {
        "memory": name,
        "seed": seed,
        "parameters": count_parameters(model),
        "spread": MODELS[name].spread,
        "config": model.config.to_dict(),
        "task": {"keys": task.keys, "values": task.values, "facts": task.facts},
        **trained,
        "points": records,
        "environment": training.environment(),
    }
    training.write(path, result)
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality.stream", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny: does the program work?")
    parser.add_argument("--results", type=Path, help="folder of the JSON files")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of weights and states")
    parser.add_argument("--report", action="store_true", help="only make page and plot")
    parser.add_argument("--docs", type=Path, default=stream_report.DOCS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    results = options.results or (WORK / "quick" if options.quick else RESULTS)
    if options.report:
        for path in stream_report.write(results, tuple(MODELS), options.docs):
            print(f"wrote {path}")
        return 0
    torch.set_num_threads(options.threads)
    work = options.work / "quick" if options.quick else options.work
    task, points = (TASK.quick(), (32, 128)) if options.quick else (TASK, POINTS)
    for seed in range(options.seeds):
        for name in options.models:
            result = run(name, seed, task, points, results, work)
            for record in result["points"]:
                print(f"{name}-{seed}  {stream_report.sentence(record)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
