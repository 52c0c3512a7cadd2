"""nnU-Net's prediction in one process: workers are called, what they get is pickled and back."""

import multiprocessing
import pickle
import queue
import threading
from contextlib import nullcontext
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

from nnunetv2.inference import data_iterators, predict_from_raw_data

from nnunet_octreenca.integration import predictor
from nnunet_octreenca.integration.register import TRAINER_SHIMS


class PicklingPool(ThreadPool):
    """Threads that get what processes would get, and remember how many bytes that was."""

    sent: list[int] = []  # noqa: RUF012  emptied by the fixture

    def apply_async(self, func, args=(), **options):
        content = pickle.dumps((func, args))
        self.sent.append(len(content))
        return super().apply_async(*pickle.loads(content), **options)


def preprocessed_here(cases, segs, outputs, plans, description, configuration, *_):
    """nnU-Net's worker, called; its queue and events are of this process."""
    configuration = pickle.loads(pickle.dumps(configuration))
    items, done, abort = queue.Queue(), threading.Event(), threading.Event()
    data_iterators.preprocess_fromfiles_save_to_queue(
        cases, segs, outputs, plans, description, configuration, items, done, abort
    )
    while not items.empty():
        yield items.get()


def workers_here(monkeypatch):
    """nnU-Net's workers as threads of this process."""
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINER_SHIMS))
    context = SimpleNamespace(Pool=PicklingPool)
    # What `result.get(timeout=0.1)` raises, which is not Python's own TimeoutError.
    timeout = multiprocessing.TimeoutError
    monkeypatch.setattr(
        predict_from_raw_data,
        "multiprocessing",
        SimpleNamespace(get_context=lambda kind: context, TimeoutError=timeout),
    )
    monkeypatch.setattr(
        predict_from_raw_data, "preprocessing_iterator_fromfiles", preprocessed_here
    )
    # Pools of processes are watched; these are of threads.
    monkeypatch.setattr(predictor, "watched_pools", lambda **modules: nullcontext())
    PicklingPool.sent = []
