"""Train a named experiment: `python -m experiments.train NAME [--section.field value ...]`."""

from experiments.interrupt import end_on_interrupt

if __name__ == "__main__":  # before the imports, which take seconds
    end_on_interrupt()

from multiscreen_jax.train import distributed, one_line_errors, train
from multiscreen_jax.train.command_line import parse


def main() -> None:
    """Trains; run the same command again to continue."""
    with one_line_errors():
        config = parse("experiments.configs", prog="python -m experiments.train")
        distributed.initialize(config.mesh)
        train(config)


if __name__ == "__main__":
    main()
