"""`gvc diff`: no difference of losses per token where the tokens differ."""

from dataclasses import replace
from pathlib import Path

from grouped_lm.config import Config, TokenizerConfig, config_to_dict
from grouped_lm.heads import DenseConfig
from grouped_lm.report.diff import compare_two, print_diff
from grouped_lm.system.files import write_json


def make_run(path: Path, config: Config, loss: float) -> Path:
    path.mkdir()
    write_json(path / "config.json", config_to_dict(config))
    write_json(path / "result.json", {"state": "complete", "val/loss": loss, "val/bits_per_byte": loss / 2})
    return path


def test_losses_of_two_tokenizers_have_no_difference(tmp_path, capsys):
    plain = Config(head=DenseConfig())
    own = replace(plain, tokenizer=TokenizerConfig(name="bytes"))
    runs = [make_run(tmp_path / n, c, v) for n, c, v in (("a", plain, 4.0), ("b", own, 1.0), ("c", plain, 3.5))]
    print_diff(compare_two(runs[0], runs[1]))
    other = capsys.readouterr().out
    assert "-3.0000" not in other
    assert "-1.5000" in other  # bits per byte compare on one text
    print_diff(compare_two(runs[0], runs[2]))
    assert "-0.5000" in capsys.readouterr().out
