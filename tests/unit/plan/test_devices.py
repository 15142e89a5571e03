"""Plans for several devices, and of `gvc advise`, have the kernels of heads, as plans for one device do."""

import numpy as np
import pytest

from grouped_lm.advise import heads as advised
from grouped_lm.bench.variants import load_variant
from grouped_lm.config import Config, ModelConfig, TokenizerConfig
from grouped_lm.heads import GroupedConfig
from grouped_lm.heads.losses import kernels
from grouped_lm.measure.devices import DEVICES, find_interconnect
from grouped_lm.plan import devices
from grouped_lm.plan.tables import devices_notes, kernel_notes

BODY = ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=16)
CONFIG = Config(model=BODY, head=GroupedConfig(), tokenizer=TokenizerConfig(name="bytes"))


@pytest.mark.parametrize(("device", "mode"), [("h100", "plan"), ("v100", "auto")])
def test_the_kernels_of_a_device_are_part_of_every_plan(device, mode, monkeypatch):
    modes = []

    def note(step):
        return lambda *args, **kwargs: modes.append(kernels._mode) or step(*args, **kwargs)

    for module in (devices, advised):
        monkeypatch.setattr(module, "fake_step", note(module.fake_step))
    link = find_interconnect("25GB", on_cpu=False)
    assert len(devices.plan_heads_on_devices(CONFIG, 2, DEVICES[device], link)) == 4
    advised.estimate_cost(CONFIG, load_variant("grouped"), DEVICES[device], np.ones(257, dtype=np.int64))
    assert set(modes) == {mode}
    assert kernels._mode == "auto"
    notes = kernel_notes(DEVICES[device])
    assert bool(notes) == (mode == "plan")
    assert set(notes) <= set(devices_notes(DEVICES[device], link))
