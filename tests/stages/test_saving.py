"""States and checkpoints are written behind the training, in order, whole or not at all."""

import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from stages.artifacts.network import checkpoint_name
from stages.training import resume, saving


@pytest.fixture
def gate(monkeypatch):
    """Holds up the writing of states until it is set."""
    opened, write = threading.Event(), resume.write

    def late(*arguments):
        assert opened.wait(10)
        write(*arguments)

    monkeypatch.setattr(resume, "write", late)
    return opened


def test_a_training_goes_on_while_its_state_is_written(tmp_path, gate):
    pushed, tensors = [], {"w": torch.arange(5.0), "step": torch.tensor(3.0)}
    curves = [("loss", 1, 0.5)]
    with saving.Saver(tmp_path, lambda: pushed.append(resume.latest(tmp_path)[0])) as saver:
        saver.weights(1, {"w": tensors["w"]})
        saver.state(1, tensors, {"curves": curves})
        tensors["w"].add_(1)  # the next steps change what is being written
        curves.append(("loss", 2, 0.4))
        assert resume.latest(tmp_path) is None
        assert not pushed
        gate.set()
        saver.state(2, tensors, {"curves": curves})
    assert pushed == [1, 2]
    step, saved, record = resume.latest(tmp_path)
    assert (step, len(record["curves"])) == (2, 2)
    assert torch.equal(saved["w"], torch.arange(5.0) + 1)
    older = load_file(tmp_path / resume.SLOTS[0])
    assert torch.equal(older["w"], torch.arange(5.0))
    assert older["step"] == 3
    assert torch.equal(load_file(tmp_path / checkpoint_name(1))["w"], torch.arange(5.0))
    assert resume.sealed(tmp_path / checkpoint_name(1))


def test_the_next_state_waits_for_the_one_before(tmp_path, gate):
    with saving.Saver(tmp_path, lambda: None) as saver:
        saver.state(1, {"w": torch.zeros(3)}, {})
        threading.Timer(0.2, gate.set).start()
        began = time.monotonic()
        saver.state(2, {"w": torch.ones(4)}, {})
        assert time.monotonic() - began > 0.15
    assert torch.equal(resume.latest(tmp_path)[1]["w"], torch.ones(4))


def test_what_cannot_be_written_is_raised_and_nothing_is_written_after_it(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "seal", full)
    saver = saving.Saver(tmp_path, lambda: None)
    saver.weights(1, {"w": torch.zeros(3)})

    def states():
        for step in (1, 2, 3):
            saver.state(step, {"w": torch.zeros(3)}, {})

    # Of any kind: hours may pass until the next weights are kept.
    with pytest.raises(OSError, match="No space"):
        states()
    monkeypatch.undo()
    with saver:
        saver.state(4, {"w": torch.zeros(3)}, {})
    assert resume.latest(tmp_path) is None
