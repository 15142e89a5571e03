"""Evidence as a reproduction leaves it, made up: what follows from it is known."""

from typing import Any

from grouped_lm.reproduction.evidence import TABLES, Evidence

OPTIONS = {
    "dense": "bias=False chunk_rows=256 tied=True",
    "shortlist": "directions=0 own_shortlist=False reserve=True shared_rows=32768 start=counts tied=True",
    "class_full": "tied=True",
    "class_full untied": "tied=False",
}
LOSSES = {"dense": 4.2, "grouped": 5.1, "shortlist": 4.15, "class_full": 4.201, "class_full untied": 4.16, "film": 4.5}
DATA_SIZES = {"tinystories": 0.0, "prose": 1.5}


def make_run(
    kind: str, seed: int, body: str = "gpt2", data: str = "tinystories", step: str = "main", **others: Any
) -> dict:
    """A row of runs.csv; kinds are those of LOSSES."""
    head = kind.split()[0]
    loss = LOSSES[kind] + DATA_SIZES.get(data, 0.0) + 0.002 * seed
    grouped = head in ("grouped", "class_full", "film")
    row = {
        "run": f"{step}/{kind.replace(' ', '-')}-{body}-{data},seed={seed}",
        "state": "complete",
        "model": f"{body.removeprefix('gpt_')}-128x3",
        "model.body": body,
        "head": head,
        "head_options": OPTIONS.get(kind),
        "grouping": "merge_rank" if grouped else "brown" if head == "shortlist" else None,
        "group_size": 224 if grouped or head == "shortlist" else None,
        "data": data,
        "tokenizer": "gpt2",
        "vocab_size": 50257,
        "seed": seed,
        "optim.lr": 0.001,
        "model.n_embd": 128,
        "model.block_size": 256,
        "train.max_steps": 300,
        "train.micro_batch_size": 8,
        "train.grad_accum_steps": 1,
        "trainer/step": 300,
        "trainer/tokens": 614400,
        "val/loss": loss,
        "val/perplexity": 2.718281828**loss,
        "val/bits_per_byte": loss / 2.8,
        "val/group_accuracy": 0.37 if head != "dense" else None,
        "throughput/tokens_per_sec": 1300.0 if head == "dense" else 7000.0,
        "memory/peak": 0.2 if head == "dense" else 0.15,
        "memory/peak_head_gib": 0.01,
    }
    return {key: value for key, value in (row | others).items() if value is not None}


def of_size(size: int, seed: int, data: str = "tinystories", loss: float = 0.0, **others: Any) -> dict:
    """A grouped run of one group size in a sweep of sizes; the head's memory is least at 224."""
    peak = 0.004 * (1 + abs(size - 224) / 500)
    row = make_run("grouped", seed, data=data, step=f"sizes-{size}", group_size=size, **{"memory/peak_head_gib": peak})
    row |= {"train.max_steps": 200, "val/loss": row["val/loss"] + loss}
    answers = {"task/choice_accuracy": 0.4, "task/choices": 500, "task/cloze_accuracy": 0.1, "task/clozes": 300}
    return row | answers | others


def bench_rows() -> Evidence:
    """What the benches leave."""
    memory: list[dict] = []
    for model, attention, ratios, at in (
        ("neo-33m", "fused", (2.4, 3.26, 3.55), 47),
        ("neo-33m", "unfused", (2.0, 2.38, 2.5), None),
        ("gpt2-33m", "fused", (2.4, 3.26, 3.55), 47),
        ("gpt2-33m", "unfused", (2.0, 2.38, 2.5), None),
        ("gpt2-1m", "fused", (12.8, 15.1, 15.7), 1),
    ):
        for head, less in ((None, 1.0), ("shortlist, mean rows", 0.97)):
            for batch, ratio in zip((8, 32, 80), ratios, strict=True):
                row = {"suite": "memory", "part": "claim", "model": model, "attention": attention, "head": head}
                row |= {"micro_batch_size": batch, "block_size": 512, "memory_ratio": ratio * less, "claim_ratio": 3.4}
                row |= {"batch_at_claim": at if head is None or at is None else at + 14, "ratio_limit": 3.8}
                row |= {"flops_ratio": 5.65 if model == "gpt2-1m" else 2.27, "flops_cap": 5.9, "dense_bytes": 2**32}
                memory.append({key: value for key, value in row.items() if value is not None})
    for head, size in (("dense", 600), ("grouped", 200), ("shortlist, mean rows", 260)):
        parts = {"weights": 60, "gradients": 0, "optimizer": 110, "body": 20, "head": size / 4, "temporary": size / 3}
        row = {"suite": "memory", "part": "truth", "model": "gpt2-8m", "micro_batch_size": 4, "block_size": 128}
        row |= {
            "head": head,
            "measured_bytes": size * 2**20,
            "predicted_bytes": size * 2**20,
            "prediction_error": 0.001,
        }
        memory.append(row | {f"{key}_bytes": int(value * 2**20) for key, value in parts.items()})
    for mode in ("training", "inference"):
        for batch in (1, 32):
            for head, size in (("dense", 10), ("grouped", 7)):
                row = {"suite": "memory", "part": "grid", "model": "gpt2-8m", "mode": mode, "block_size": 128}
                row |= {"micro_batch_size": batch, "head": head, "predicted_bytes": size * batch * 2**20}
                memory.append(row | ({"measured_bytes": row["predicted_bytes"]} if batch == 1 else {}))
    steps: list[dict] = []
    for model, ms in (("gpt2-1m", 900.0), ("gpt2-8m", 500.0)):
        for head, time in (
            ("no head", 80.0),
            ("dense", ms),
            ("grouped", 100.0),
            ("shortlist, mean rows", 120.0),
        ):
            row = {"suite": "steps", "model": model, "micro_batch_size": 4, "block_size": 128, "head": head, "ms": time}
            row |= {"ms_q1": time * 0.98, "ms_q3": time * 1.02, "threads": 1, "tokens_per_sec": 512 / time * 1000}
            steps.append(
                row | {"over_dense": ms / time, "share_of_cap": 80 / time, "commit": "c" * 40, "torch": "2.13.0"}
            )
    vocab: list[dict] = []
    for size, ratio in ((50257, 2.0), (100_000, 2.2), (1_000_000, 2.5)):
        for head, less in (("dense", 1.0), ("grouped", ratio), ("shortlist, mean rows", ratio * 0.9)):
            row = {"suite": "vocab", "part": "step", "model": "gpt2-3m", "micro_batch_size": 2, "block_size": 128}
            vocab.append(
                row
                | {"vocab_size": size, "head": head, "predicted_bytes": int(size * 1e4 / less), "ms": size / 1e3 / less}
            )
    return {"bench-memory": memory, "bench-steps": steps, "bench-vocab": vocab}


def make_evidence() -> Evidence:
    """Everything that a whole reproduction has."""
    found: Evidence = {name: [] for name in TABLES} | bench_rows()
    main = ("dense", "grouped", "shortlist")
    runs = [make_run(kind, seed) for kind in LOSSES for seed in range(3)]
    runs += [make_run(kind, seed, body="gpt_neo") for kind in main for seed in range(2)]
    runs += [make_run(kind, seed, data="prose") for kind in main for seed in range(2)]
    for grouping, gain in (("frequency", -0.3), ("random", 0.4), ("kmeans", 0.005)):
        for seed in range(3):
            run = make_run("grouped", seed, grouping=grouping, step=grouping)
            runs.append(run | {"val/loss": run["val/loss"] + gain})
    for size in (64, 128, 224, 448, 1024, 25128):
        for seed in range(2 if size in (224, 448, 25128) else 1):
            runs.append(of_size(size, seed, loss=-0.1 if size == 448 else 0.0))
            if size in (224, 448, 25128):
                runs.append(of_size(size, seed, data="prose"))
    runs.append(make_run("grouped", 7) | {"state": "failed", "reason": "diverged at step 5: loss nan"})
    found["runs"] = runs
    for run in runs[:9]:
        for step in range(0, 301, 30):
            loss = run["val/loss"] + 5 - step / 60
            curve = {"run": run["run"], "step": step, "tokens": step * 2048, "seconds": step * 1.0, "train_loss": loss}
            curve |= {"val_loss": loss + 0.1} if step and step % 60 == 0 else {}
            found["curves"].append(curve | {"peak_gib": run["memory/peak"]})
        for decile in range(1, 11):
            name = {1: "decile 1 (most frequent)", 10: "decile 10 (rarest)"}.get(decile, f"decile {decile}")
            worse = 0.1 * decile if run["head"] == "grouped" else 0.0
            row = {"run": run["run"], "decile": name, "tokens": 1000, "loss": 2.0 + 0.2 * decile + worse}
            found["deciles"].append(row | {"top1_accuracy": 0.3})
        text = ' there was a <b>fox</b> & it\'s "fine". ' * 3
        if run["seed"] == 0:
            found["stories"].append({"run": run["run"], "index": 0, "prompt": "Once upon a time", "text": text})
        environment = {"commit": "a" * 40, "cpu": "A Processor", "cpu_count": 2, "threads": 1, "torch": "2.13.0"}
        found["environments"].append({"run": run["run"]} | environment)
    for data, correlation in (("tinystories", 0.31), ("prose", 0.49)):
        row = {"data": data, "tokenizer": "gpt2", "vocab_size": 50257, "ids": 6656, "tokens": 578738, "first": 2048}
        row |= {"rank_correlation": correlation, "low": correlation - 0.02, "high": correlation + 0.02}
        found["order"].append(row | {"share_of_first": 0.71, "share_of_top": 0.96, "unigram_nats": 7.5})
    for name in ("main-gpt2", "bench-memory"):
        row = {"scale": "cpu", "machine": "2 CPU cores", "step": name, "about": "this and that", "minutes": 3.0}
        found["steps"].append(row | {"state": "done", "taken": 2.5, "command": "gvc sweep families " + "x=1 " * 30})
    return found
