"""What a scheduler gets to see of our tasks."""

import pickle

from nnunet_octreenca.cluster.tasks import submitted


class Client:
    """Notes what is submitted."""

    def submit(self, *task, **options):
        return task, options


def joined(first, second):
    return f"{first} and {second}"


def test_a_scheduler_unpickles_nothing_of_ours():
    (function, *arguments), options = submitted(Client(), joined, "a", "b", key="k", priority=3)
    assert function is pickle.loads
    assert [type(argument) for argument in arguments] == [bytes]
    assert options == {"key": "k", "priority": 3, "pure": False}
    assert function(*arguments) == "a and b"
