"""Images that stand for those on a disk: in memory, slow, or damaged."""

import threading
import time

import torch


class Held:
    """Images (n, C, H, W) of a tensor, finished as they are."""

    small = True

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def raw(self, which):
        return self.images[which]

    def finish(self, raw, draws=None):
        return raw


class Slow:
    """Images that take `seconds` each time some of them are read; counts the threads that read."""

    small = False

    def __init__(self, images, seconds):
        self.images, self.seconds, self.threads = images, seconds, set()
        self.labels, self.shape = images.labels, images.shape

    def __len__(self):
        return len(self.images)

    def raw(self, which):
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        return self.images.raw(which)

    def finish(self, raw, draws=None):
        return self.images.finish(raw)


class Damaged(Held):
    """Images of which one cannot be read."""

    def __init__(self, images, bad):
        super().__init__(images)
        self.bad = bad

    def raw(self, which):
        if (torch.as_tensor(which) == self.bad).any():
            raise OSError(f"image {self.bad} does not decode")
        return super().raw(which)
