"""Writing text, one token at a time, from the exact joint distribution of any head."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from grouped_lm.config import Config
from grouped_lm.data.tokenizer import build_tokenizer
from grouped_lm.models.lm import LanguageModel
from grouped_lm.run_folder import RunFolder
from grouped_lm.runtime import resolve_device, set_threads


def pick_token(log_prob: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """Return one token id.

    Args:
        log_prob: (V,) log-probabilities, on the CPU.
        temperature: >= 0; 0 takes the likeliest token, the lowest id among equals.
        top_k: draw from the k likeliest only; None means all V.
        generator: where the draw comes from.
    """
    if temperature == 0:
        return int(log_prob.argmax())
    scaled = log_prob.double() / temperature
    if top_k is not None and top_k < scaled.numel():
        kept = scaled.topk(top_k).indices
        scaled = torch.full_like(scaled, -torch.inf).index_copy(0, kept, scaled[kept])
    return int(torch.multinomial(scaled.softmax(0), 1, generator=generator))


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt_ids: list[int],
    max_new_tokens: int,
    *,
    block_size: int,
    eot_id: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield new token ids until end-of-text or `max_new_tokens`.

    Args:
        model: in evaluation mode.
        prompt_ids: at least one id; what exceeds the last `block_size` is not seen.
        max_new_tokens: most ids to yield, >= 1.
        block_size: longest context of the body.
        eot_id: ends the text; it is not yielded.
        temperature, top_k, generator: see `pick_token`.
    """
    device = next(model.parameters()).device
    generator = generator or torch.Generator()
    ids = list(prompt_ids)
    for _ in range(max_new_tokens):
        context = torch.tensor([ids[-block_size:]], device=device)
        log_prob = model.head.log_prob(model.hidden(context)[0, -1])
        token = pick_token(log_prob.cpu(), temperature, top_k, generator)
        if token == eot_id:
            return
        ids.append(token)
        yield token


def generate_texts(
    run_dir: Path,
    config: Config,
    *,
    prompt: str = "",
    num_samples: int = 1,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Yield texts that the newest checkpoint of a run writes after `prompt`.

    Raises:
        RunFolderError, CheckpointError: no such run, or no usable checkpoint in it.
    """
    device = resolve_device(config.train.device)
    set_threads(config.train.threads)
    model, _ = RunFolder(run_dir).load_model(config, device)
    tokenizer = build_tokenizer(RunFolder(run_dir).own_tokenizer(config.tokenizer), config.data)
    generator = torch.Generator().manual_seed(seed)
    prompt_ids = [
        tokenizer.eot_id,
        *tokenizer.encode(prompt),
    ]  # as in training, where every story follows one
    for _ in range(num_samples):
        ids = generate(
            model,
            prompt_ids,
            max_new_tokens,
            block_size=config.model.block_size,
            eot_id=tokenizer.eot_id,
            temperature=temperature,
            top_k=top_k,
            generator=generator,
        )
        yield tokenizer.decode(list(ids))
