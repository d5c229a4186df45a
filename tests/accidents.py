"""What happens to a sweep while it runs."""

from lmech import checkpoints


def cut(monkeypatch):
    """The process is gone after the second state."""

    class Gone(BaseException):
        pass

    write, calls = checkpoints.write, []

    def last(*arguments):
        calls.append(1)
        parts = write(*arguments)
        if len(calls) == 2:
            raise Gone
        return parts

    monkeypatch.setattr(checkpoints, "write", last)
    return Gone
