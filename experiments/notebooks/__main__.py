"""Executes the notebooks and rewrites their .ipynb files in place.

python -m experiments.notebooks                 all
python -m experiments.notebooks 02 04           those that begin like this
"""

import sys

try:
    from experiments.notebooks import pairs
except ModuleNotFoundError as error:
    sys.exit(f"error: needs the package {error.name}; run: pip install -e '.[notebooks]'")


def main() -> None:
    chosen = [
        source
        for source in pairs.sources()
        if not sys.argv[1:] or source.name.startswith(tuple(sys.argv[1:]))
    ]
    if not chosen:
        names = ", ".join(source.stem for source in pairs.sources())
        begun = " or ".join(map(repr, sys.argv[1:]))
        print(f"error: no notebook begins with {begun}; there are {names}", file=sys.stderr)
        sys.exit(2)
    for source in chosen:
        took = pairs.write(source)
        size = source.with_suffix(".ipynb").stat().st_size
        times = f"{took.seconds:.0f} s, {took.processor:.0f} s of processor time"
        print(f"{source.stem}: {times}, {size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
