"""A matrix of shares as a table, the darker the larger its values. Pure: numbers in, HTML out."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from cotune.changes import number

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
STEPS = 10


def heat_map(title: str, names: Sequence[object], rows: Sequence[object]) -> Markup:
    """A figure; empty when there are no rows.

    Args:
        title: of the figure.
        names: of rows and columns; a row without a name has none.
        rows: [names, names]; what is no number is a dash on white, what is no list a row without cells.
    """
    if not rows:
        return Markup("")
    head = Markup("").join(Markup('<th scope="col"><bdi>{}</bdi></th>').format(name) for name in names)
    lines = [
        Markup('<tr><th scope="row"><bdi>{}</bdi></th>{}</tr>\n').format(
            names[place] if place < len(names) else "",
            Markup("").join(map(_cell, row if isinstance(row, list | tuple) else ())),
        )
        for place, row in enumerate(rows)
    ]
    return Markup(
        '<figure><figcaption>{title}</figcaption><div class="scroll" tabindex="0" role="region" '
        'aria-label="{title}"><table class="heat">\n<thead><tr><td></td>{head}</tr></thead>\n'
        "<tbody>{lines}</tbody></table></div></figure>\n"
    ).format(title=title, head=head, lines=Markup("").join(lines))


def shade(value: object) -> int:
    """How dark a cell is: 0 for 0 and below, `STEPS` for 1 and above."""
    return round(STEPS * min(1.0, max(0.0, number(value) or 0.0)))


def _cell(value: object) -> Markup:
    found = number(value)
    text = DASH if found is None else f"{round(found, 2) + 0.0:.2f}".replace("-", MINUS)
    return Markup('<td class="num h{}">{}</td>').format(shade(value), text)
