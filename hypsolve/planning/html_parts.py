"""Parts of HTML that the report and notebooks share: verdict and tables of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from hypsolve.planning.slo_text import describe_answer
from hypsolve.planning.text import (
    HEADS,
    Verdict,
    describe_proof,
    describe_query,
    infeasible_lines,
    judge_load,
    rows_of_nodes,
    title,
)
from hypsolve.verify.bottleneck import verify_certificate

if TYPE_CHECKING:
    from hypsolve.planning.plan import Plan


def fragment(plan: Plan) -> str:
    """Return title, verdict and table of nodes as HTML, for `Plan._repr_html_`."""
    table = html_table(rows_of_nodes(plan), HEADS) if plan.fits else ""
    heading = f"<p><b>{escape(title(plan))}</b>: {escape(describe_query(plan))}</p>"
    return f"<div>{heading}{''.join(verdict(plan))}{table}</div>"


def verdict(plan: Plan) -> Iterator[str]:
    """Yield whether the load is met and then what is proved, or why nothing fits."""
    if not plan.fits:
        words, *reasons = infeasible_lines(plan)
        items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
        yield f'<div class="verdict none"><strong>{escape(sentence(words))}</strong>'
        yield f"<ul>{items}</ul></div>" if items else "</div>"
        return
    words, service, kind = sentence(describe_proof(plan)), "", ""
    if plan.forecast is not None:
        judged = judge_load(plan.forecast)
        if plan.slo_answer is not None:
            words_of = describe_answer(plan.slo_answer, plan.query.load)
            judged = Verdict(words_of, plan.slo_answer.is_met)
        service = f"<strong>{escape(sentence(judged.words))}</strong><br>"
        if not plan.query.is_simulated and plan.slo_answer is None:
            words += f" (This is about the {plan.objective_name} alone, not about the load.)"
        kind = "" if judged.is_met else " none"
    certificate = plan.result.certificate
    if certificate is not None:
        broken = verify_certificate(plan.result.instance, certificate)
        words += (
            f" Its certificate is refuted: {broken[0]}."
            if broken
            else " Its certificate was verified in exact fractions."
        )
    if plan.stopped:
        words += f" Stopped: {plan.stopped}."
    yield f'<p class="verdict{kind}">{service}{escape(words)}</p>'


def html_table(
    rows: Sequence[Mapping[str, str]], heads: Mapping[str, str] | None = None
) -> str:
    """Return rows as a table.

    `heads` explains columns. The explanations are shown on hover, and below the table, where
    touch screens and paper show them too. On narrow screens each row becomes a block, in which
    every cell repeats its head.
    """
    heads = {name: text for name, text in (heads or {}).items() if name in rows[0]}
    cells = (
        f'<abbr title="{escape(heads[name])}">{escape(name)}</abbr>'
        if name in heads
        else escape(name)
        for name in rows[0]
    )
    head = "".join(f'<th scope="col">{cell}</th>' for cell in cells)
    body = "".join(
        "<tr>" + "".join(_cell(name, str(value)) for name, value in row.items()) + "</tr>"
        for row in rows
    )
    below = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in heads.items()
    )
    legend = f'<dl class="heads">{below}</dl>' if below else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{legend}"


def _cell(name: str, text: str) -> str:
    is_number = text[:1].isdigit() and len(text) < 12
    kind = ' class="number"' if is_number else ""
    return f'<td{kind} data-head="{escape(name)}">{escape(text)}</td>'


def capital(words: str) -> str:
    """Return words with a capital letter at the start."""
    return f"{words[:1].upper()}{words[1:]}"


def sentence(words: str) -> str:
    """Return words as a sentence: a capital at the start, a full stop at the end."""
    return capital(words) + ("" if words.endswith(".") else ".")
