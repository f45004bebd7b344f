"""Tables of what notebooks show as HTML."""

import html
from collections.abc import Sequence

_LEFT = ' style="text-align: left"'


def html_table(
    title: str, rows: Sequence[Sequence[str]], notes: Sequence[str] = (), texts: int = 1
) -> str:
    """An HTML table; all text is escaped.

    Args:
      title: above the table.
      rows: the first is the header; an empty header is left out.
      notes: lines below the table.
      texts: how many of the first columns are aligned to the left, like text.
    """

    def line(cells: Sequence[str], kind: str) -> str:
        made = [
            f"<{kind}{_LEFT if column < texts else ''}>{html.escape(cell)}</{kind}>"
            for column, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(made)}</tr>"

    header, *body = rows
    parts = [
        f"<p><b>{html.escape(title)}</b></p>",
        "<table>",
        *([f"<thead>{line(header, 'th')}</thead>"] if any(header) else []),
        f"<tbody>{''.join(line(cells, 'td') for cells in body)}</tbody>",
        "</table>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
    ]
    return "\n".join(parts)
