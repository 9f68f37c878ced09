"""Train a named experiment: `python -m experiments.train NAME [--section.field value ...]`."""

from multiscreen_jax.train import one_line_errors, train
from multiscreen_jax.train.command_line import parse


def main() -> None:
    """Trains; run the same command again to continue."""
    with one_line_errors():
        train(parse("experiments.configs", prog="python -m experiments.train"))


if __name__ == "__main__":
    main()
