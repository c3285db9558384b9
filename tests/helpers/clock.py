"Promises of speed in seconds of the processor, so that they hold on a machine that is busy with something else."
import contextlib, os


def processor_seconds() -> float:
    "Of this process, its threads, and its children that have ended."
    return sum(os.times()[:4])


@contextlib.contextmanager
def at_most(seconds: float):
    start = processor_seconds()
    yield
    used = processor_seconds() - start
    assert used < seconds, f'took {used:.1f} s of the processor, and {seconds} would do'
