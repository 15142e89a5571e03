"""What makes a run the run it is: which fields of a config may change under it, and a hash of the others."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from grouped_lm.config import Config, config_to_dict

FREE_FIELDS = (
    "name",
    "data.cache_dir",
    "data.name",
    "model.attention",
    "model.activation_checkpointing",
    "tracking",
    "judge",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.eval_batch_size",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_minutes",
    "train.keep_checkpoints",
    "train.mirror",
    "train.on_nonfinite",
    "train.max_nonfinite",
    "train.hang_minutes",
    "train.resume",
    "train.device",
    "train.cuda_graphs",
    "train.devices",
    "train.nodes",
    "train.strategy",
    "train.vocab_parallel",
    "train.max_restarts",
)
"""Fields that may change between a run and its continuation."""

IDENTITY_FIELDS = (
    "seed",
    "model.name",
    "model.body",
    "model.n_layer",
    "model.n_head",
    "model.n_embd",
    "model.block_size",
    "model.dropout",
    "model.window_size",
    "model.embedding",
    "head",
    "grouping.name",
    "grouping.seed",
    "data.source",
    "data.train",
    "data.valid",
    "data.text_field",
    "data.num_train_stories",
    "data.num_valid_stories",
    "data.seed",
    "data.hub_id",
    "data.hub_config",
    "data.hub_revision",
    "data.hub_train",
    "data.hub_valid",
    "data.hub_join_rows",
    "tokenizer.name",
    "tokenizer.vocab_size",
    "tokenizer.file",
    "optim.name",
    "optim.lr",
    "optim.beta1",
    "optim.beta2",
    "optim.eps",
    "optim.weight_decay",
    "optim.warmup_steps",
    "optim.min_lr_ratio",
    "optim.grad_clip",
    "optim.sparse_rows",
    "train.max_steps",
    "train.micro_batch_size",
    "train.grad_accum_steps",
    "train.dtype",
    "train.compile",
    "train.threads",
    "train.label_smoothing",
    "train.z_loss",
)
"""Fields that are what a run is, and the head's whole config. A test finds the field that stands in neither list."""

ADDED_LATER = {
    "tokenizer.vocab_size": None,
    "tokenizer.file": None,
    "model.embedding": "table",
    "optim.sparse_rows": False,
    "train.label_smoothing": 0.0,
    "train.z_loss": 0.0,
    "head.bias": False,
    "head.own_shortlist": False,
    "head.start": "zero",
    "head.shared_rows": 0,
    "head.reserve": False,
}
"""Fields that the first checkpoints did not know, and the values by which a run is the same as without them: these are
left out of its hash, so that a new field makes no stranger of an old run."""


ALWAYS_HASHED = {"train.devices": 1}
"""Free fields that the hash of the first runs has, with the one value that they had: it is every run's."""


def config_identity(values: dict[str, Any]) -> dict[str, Any]:
    """Return every field that decides what a run computes, flat: {"optim.lr": 0.001, ...}."""

    def walk(prefix: str, node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            path = f"{prefix}{key}"
            if path not in FREE_FIELDS:
                yield from walk(f"{path}.", value) if isinstance(value, dict) else [(path, value)]

    return dict(walk("", values))


def first_identity(values: dict[str, Any]) -> dict[str, Any]:
    """Return `config_identity` as a run without any of the later fields had it."""
    identity = config_identity(values)
    return {key: value for key, value in identity.items() if key not in ADDED_LATER or value != ADDED_LATER[key]}


def only_identity(identity: dict[str, Any]) -> dict[str, Any]:
    """Return a saved identity without fields that are free."""
    return {key: value for key, value in identity.items() if key not in FREE_FIELDS}


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return "optim.lr: 0.001 -> 0.5, ..." for every field in which two identities differ, "" where none does."""
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed)


def config_hash(config: Config) -> str:
    """Return a sha256 of what a run is: two configs with the same hash describe the same run."""
    return _hash(first_identity(config_to_dict(config)))


def known_hashes(config: Config) -> tuple[str, ...]:
    """Return `config_hash`, and the hash with every later field in it, which some checkpoints carry."""
    return config_hash(config), _hash(config_identity(config_to_dict(config)))


def _hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity | ALWAYS_HASHED, sort_keys=True).encode()).hexdigest()
