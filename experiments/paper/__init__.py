"""The papers' figures and tables, one study per file, at small scale and at the papers'.

    python -m experiments.paper list
    python -m experiments.paper list scaling
    python -m experiments.paper run learning_rates abcdigits
    python -m experiments.paper report

`run` trains and measures what the study's CSV does not hold yet, goes on where it was cut off, and
rewrites RESULTS.md. `report` does the last alone: RESULTS.md and all figures from the CSV files. At
`--scale paper` tables and page are in `--folder`, and token files come from `prepare_data`.
"""
