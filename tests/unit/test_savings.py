"""What a run's results say about choosing, from the lines of its rounds."""

from __future__ import annotations

from typing import Any

from cotune import savings
from cotune.selection import Selection


def line(counts: dict[str, int], **more: Any) -> dict[str, Any]:
    found = Selection(counts, answers=counts, is_new=True, seconds=1.0)
    totals = dict.fromkeys(counts, 9)
    return {"selection": savings.round_record(found, list(counts), totals, (3.0, 1.0)) | more}


def test_clients_are_listed_up_to_a_number_and_counted_all() -> None:
    counts = {f"c{i:04d}": 3 for i in range(savings.LISTED + 3)}
    found = savings.summary([line(counts)], ["fedhds"], dict.fromkeys(counts, 9))
    assert list(found["clients"]) == list(counts)[: savings.LISTED]
    assert found["num_clients"] == savings.LISTED + 3
    assert found["chosen"] == 3 * len(counts)


def test_cut_examples_are_those_of_the_round_that_knows_most() -> None:
    """Each round counts all that were met so far; a resumed run begins again at none."""
    rounds = [line({"a": 3}, cut=2), line({"a": 3}, cut=5), line({"a": 3}, cut=0), line({"a": 3})]
    assert savings.summary(rounds, ["fedhds"], {"a": 9})["cut"] == 5
    assert savings.summary([], ["fedhds"], {})["cut"] == 0
