"""What is called before a model runs: from the calling thread alone."""

from __future__ import annotations

import torch

from exporter.models.loading import FUNCTIONS, make_first_calls


def test_all_are_called_in_both_precisions_on_tensors_too_short_to_be_shared_out() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        make_first_calls()
    called = [event for event in profile.events() if event.name.removeprefix("aten::") in FUNCTIONS]
    assert {event.name.removeprefix("aten::") for event in called} == set(FUNCTIONS)
    assert all(event.input_shapes[0][0] < 2048 for event in called)  # the least that torch gives a second thread
    assert len(called) >= 2 * len(FUNCTIONS)
    assert {event.thread for event in called} == {called[0].thread}
