"""A run comes back as a model and its tokenizer."""

import grouped_lm


def test_a_run_is_loaded_from_its_folder(gvc, tiny):
    run = gvc("train", *tiny, "head=grouped", "hydra.run.dir=run").run_dir
    model, tokenizer = grouped_lm.load_run(run)
    assert not model.training
    assert model.head.vocab_size == tokenizer.vocab_size
    assert isinstance(model.head, grouped_lm.Head)
