"""Calls between requests: an engine's weights change only while no request runs."""

import threading
import time
from types import SimpleNamespace

import pytest

from pipeline.inference.vllm_stepper import Stepper


class SlowEngine:
    """Finishes each request after three steps, and answers with the weights that each step saw."""

    def __init__(self):
        self.weights, self.running = "old", {}

    def add_request(self, name, **request):
        self.running[name] = []

    def step(self):
        time.sleep(0.01)
        for seen in self.running.values():
            seen.append(self.weights)
        done = [name for name, seen in self.running.items() if len(seen) == 3]
        return [SimpleNamespace(request_id=name, finished=True, seen=self.running.pop(name)) for name in done]


@pytest.fixture
def stepper():
    stepper = Stepper(SlowEngine, (ValueError,))
    yield stepper
    stepper.close()


def test_a_call_waits_for_the_requests_that_run_and_later_requests_wait_for_it(stepper):
    answers = []
    threads = [threading.Thread(target=lambda: answers.extend(stepper.serve([{}, {}]))) for _ in range(3)]
    threads[0].start()
    while not stepper.engine.running:
        time.sleep(0.001)
    call = threading.Thread(target=lambda: stepper.call(lambda engine: setattr(engine, "weights", "new")))
    call.start()
    time.sleep(0.01)
    for thread in threads[1:]:
        thread.start()
    for thread in (call, *threads):
        thread.join()
    assert all(len(set(answer.seen)) == 1 for answer in answers), "no request saw both weights"
    assert {answer.seen[0] for answer in answers} == {"old", "new"}


def test_a_call_that_fails_leaves_the_engine_running(stepper):
    with pytest.raises(ZeroDivisionError):
        stepper.call(lambda engine: 1 / 0)
    assert stepper.call(lambda engine: engine.weights) == "old"
    assert len(stepper.serve([{}])) == 1
