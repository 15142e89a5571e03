"""The table of a screen: heads that failed, and runs that were left as they are."""

from grouped_lm.advise.heads import REFERENCE
from grouped_lm.advise.tables import screen_table
from grouped_lm.advise.verdict import Trial, decide
from grouped_lm.measure.devices import DEVICES


def test_heads_without_a_loss_are_in_the_note():
    trials = [
        Trial(name=REFERENCE, losses={0: {8: 5.0, 16: 4.5}}, tokens_per_sec=100.0),
        Trial(name="early", losses={0: {}}, problem="the loss is not finite at step 3"),
        Trial(name="late", losses={0: {8: 5.5}}, problem="the loss is not finite at step 9."),
        Trial(name="finished", losses={0: {8: 5.1}}, note="its run is complete"),
        Trial(name="there", losses={0: {8: 5.1, 16: 4.6}}, note="its run is at step 20, beyond 12"),
        Trial(name="cut", losses={0: {8: 6.0}}),
    ]
    verdict = decide(trials, 16)
    table = screen_table(trials, verdict, 32, DEVICES["a100"])
    assert table.terminal().row_count == 6
    cells = {row[0]: row[1:3] for row in table.cells()}
    assert (cells["early"], cells["late"]) == (["-", "-"], ["8", "5.500"])
    assert table.note.endswith(
        "early is out: the loss is not finite at step 3. late is out: the loss is not finite at step 9. "
        "finished is left out: its run is complete."
    )
