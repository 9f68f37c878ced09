"""The papers' figures and tables, one study per file, at small scale and at the papers'.

    python -m experiments.paper list
    python -m experiments.paper run learning_rates abcdigits
    python -m experiments.paper report

`run` trains and measures what the study's CSV does not hold yet, and goes on where it was cut off.
`report` rewrites RESULTS.md and all figures from the CSV files alone.
"""
