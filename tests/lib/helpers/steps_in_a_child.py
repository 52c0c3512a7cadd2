"""What test_cpu_engine.py runs in another process, which can import this file but not a test."""

from nnunet_octreenca.ops import nca_steps


def put_steps(queue, state, weights):
    """Four steps, as an array in the queue."""
    queue.put(nca_steps(state, weights, 4).numpy())
