"What a piece of work takes of a computer's memory."
import gc, tracemalloc


def peak_of(work): # a function: gives bytes that are not Python's or numpy's, or None
    "Bytes at most while something is done: the least of three, since garbage and threads of other tests only add."
    work() # what is made once
    return min(_peak_of(work) for _ in range(3))


def _peak_of(work):
    gc.collect()
    tracemalloc.start()
    try:
        beside = work() or 0
        return tracemalloc.get_traced_memory()[1] + beside
    finally: tracemalloc.stop()
