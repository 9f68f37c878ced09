"""`python -m tests.train.opening RUN`: prints why the run cannot be opened."""

import sys

from multiscreen_jax.train.trained_run import open_run

if __name__ == "__main__":
    try:
        open_run(sys.argv[1])
    except ValueError as error:
        print(error)
