"""Tasks are what they say, the same every time, and a model that knows the stories solves them."""

import pytest
import torch

from grouped_lm.config import Config, ModelConfig, TokenizerConfig
from grouped_lm.data.tokenizers.base import BytesTokenizer
from grouped_lm.evaluate.story_tasks import (
    log_likelihoods,
    make_choices,
    make_clozes,
    make_questions,
    score_tasks,
    split_last_sentence,
    split_long,
)
from grouped_lm.heads import ClassFullConfig
from grouped_lm.models.lm import build_lm

STORIES = [
    f'{name} had a {toy}. "Nice {toy}!" said Tom. {name} loved the {toy}.'
    for name, toy in (("Ann", "kite"), ("Bob", "drum"), ("Cid", "boat"), ("Dan", "doll"), ("Eve", "cup"))
]


def small_model(block_size: int = 16):
    torch.manual_seed(0)
    shape = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=block_size)
    config = Config(model=shape, head=ClassFullConfig(), tokenizer=TokenizerConfig(name="bytes"))
    return build_lm(config).eval()


def test_sentences():
    assert split_last_sentence('A b. "C!" said d. E f?') == ('A b. "C!" said d.', " E f?")
    assert split_last_sentence("One only.") is None


def test_choices_hold_the_right_ending_and_three_others():
    choices = make_choices([*STORIES, "Short."])
    assert len(choices) == 5
    for story, choice in zip(STORIES, choices, strict=True):
        assert choice.context + choice.options[choice.answer] == story
        assert len(set(choice.options)) == 4
        assert all(any(other.endswith(option) for other in STORIES) for option in choice.options)
    assert make_choices(STORIES) == make_choices(STORIES)
    assert len({choice.answer for choice in make_choices(STORIES * 1)}) > 1
    assert make_choices(STORIES[:2]) == []


def test_clozes_ask_for_a_word_that_was_there():
    clozes = make_clozes([*STORIES, "A dog ran home."])
    assert [(c.context + c.word + ".", c.word) for c in clozes] == [
        (story, f" {word}") for story, word in zip(STORIES, ("kite", "drum", "boat", "doll", "cup"), strict=True)
    ]


@pytest.mark.parametrize(("n_context", "n_end"), [(1, 1), (5, 3), (30, 4), (16, 16), (3, 17), (2, 50), (40, 33)])
def test_windows_of_a_continuation(n_context, n_end):
    context, end = list(range(n_context)), list(range(100, 100 + n_end))
    windows = split_long(context, end, 16)
    assert [token for _, targets in windows for token in targets] == end
    ids = context + end
    for inputs, targets in windows:
        assert 1 <= len(targets) <= len(inputs) <= 16
        last = ids.index(targets[-1])
        assert ids[last - len(inputs) : last] == inputs
    assert len(windows[0][0]) == min(16, n_context + n_end - 1)


@torch.no_grad()
def test_log_likelihoods_are_those_of_the_joint():
    model = small_model()
    pairs = [([256, 5, 9], [3, 4]), ([256], [7]), (list(range(30)), list(range(20)))]
    for (total, greedy), pair in zip(log_likelihoods(model, pairs, 2), pairs, strict=True):
        expected, all_best = 0.0, True
        for inputs, targets in split_long(*pair, 16):
            joint = model.head.log_prob(model.hidden(torch.tensor([inputs])))[0, -len(targets) :]
            expected += joint.gather(1, torch.tensor(targets)[:, None]).sum().item()
            all_best &= joint.argmax(1).tolist() == targets
        assert total == pytest.approx(expected, abs=1e-4)
        assert greedy == all_best


def test_a_model_that_has_read_the_stories_answers_right():
    model, tokenizer = small_model(block_size=64), BytesTokenizer()
    ids = [torch.tensor([256, *story.encode(), 256]) for story in STORIES]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=256)[:, :65]
    questions = make_questions(tokenizer, STORIES)
    before = score_tasks(model, questions, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        model(batch[:, :-1], batch[:, 1:]).nll.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = score_tasks(model, questions, 4)
    assert before["task/cloze_accuracy"] == 0
    assert after == {"task/choice_accuracy": 1, "task/choices": 5, "task/cloze_accuracy": 1, "task/clozes": 5}
