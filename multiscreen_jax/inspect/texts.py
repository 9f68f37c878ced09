"""Text from outside, made fit for a page or a figure."""


def printable(text: str) -> str:
    """The text with what cannot be shown, such as half of a surrogate pair, replaced."""
    return "".join(
        c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def figure_text(text: str) -> str:
    """The same for matplotlib, where a dollar sign would start mathematics."""
    return printable(text).replace("$", r"\$")
