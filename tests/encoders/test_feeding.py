"""Batches on their way to a device: in order, together as asked for, and no more than there are."""

import contextlib

import pytest
import torch

from stages.encoders import embedded
from stages.encoders.embedded import FeatureNetwork, Features
from stages.encoders.feeding import AHEAD, fed, grouped

CPU = torch.device("cpu")


def test_pieces_are_put_together_in_order():
    pieces = list(torch.arange(23).split(4))
    sizes = [[len(piece) for piece in group] for group in grouped(iter(pieces), 8)]
    assert sizes == [[4, 4], [4, 4], [4, 3]]
    batches = list(fed(grouped(iter(pieces), 8), CPU))
    assert [len(batch) for batch in batches] == [8, 8, 7]
    assert torch.equal(torch.cat(batches), torch.arange(23))
    assert list(fed(iter([]), CPU)) == []


def network(seen, bad=None):
    """Takes doubled images; the features of one are not finite."""

    def compute(inputs):
        seen.append(len(inputs))
        features = inputs.flatten(1).clone()
        if bad is not None:
            features[(inputs[:, 0, 0, 0] == 2 * bad).nonzero().flatten()] = torch.inf
        return Features(features)

    return FeatureNetwork("x", "0" * 64, "none", 4, compute, CPU, lambda images: 2 * images)


def test_a_network_sees_prepared_images_in_batches_put_together():
    images, seen = torch.arange(80.0).reshape(20, 1, 2, 2), []
    one = network(seen)
    ready = (one.ready(piece) for piece in images.split(3))
    found = embedded.extract(one, ready, together=6)
    assert seen == [6, 6, 6, 2]
    assert torch.equal(found.features, 2 * images.flatten(1))
    assert torch.equal(one(images[:2]).features, found.features[:2])


def test_an_image_is_named_in_whatever_batch_it_is():
    images = torch.arange(80.0).reshape(20, 1, 2, 2)
    one = network([], bad=4 * 13)
    with pytest.raises(ValueError, match="the features are NaN or infinite in image 13;"):
        embedded.extract(one, images.split(3), together=6)
    images[7, 0, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="the pixels are NaN or infinite in image 7;"):
        embedded.extract(one, images.split(3), together=6)


class Card:
    """A device that notes what it is told: copies on one stream, work on another."""

    type = "cuda"

    def __init__(self):
        self.said, self.open, self.most = [], 0, 0

    def stream(self, name):
        card = self

        class Event:
            def __init__(self):
                self.done = False
                card.open += name == "using"
                card.most = max(card.most, card.open)

            def synchronize(self):
                card.open -= 1

        class Stream:
            def record_event(self):
                return Event()

            def wait_event(self, event):
                card.said.append("arrived")

        return Stream()


class Piece(list):
    """Rows in pinned memory."""

    def to(self, card, non_blocking=False):
        assert non_blocking
        card.said.append(f"sent {self[0]}")
        return Piece(self)

    def record_stream(self, stream):
        """Kept by the stream that uses it."""


def test_a_gpu_gets_the_next_batch_while_it_works_and_the_host_is_not_far_ahead(monkeypatch):
    card = Card()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: card.stream("copying"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: card.stream("using"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    seen = []
    for batch in fed(([Piece([i])] for i in range(6)), card):
        card.said.append(f"work {batch[0]}")
        seen += batch
    assert seen == list(range(6))
    order = ["sent 0", "sent 1", "arrived", "work 0", "sent 2", "arrived", "work 1"]
    assert card.said[: len(order)] == order
    assert card.said[-2:] == ["arrived", "work 5"]
    assert card.most == AHEAD + 1
