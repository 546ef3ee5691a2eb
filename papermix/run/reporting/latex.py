"""Tables of a report as LaTeX, for a paper with the package booktabs."""

import math
import re
from collections.abc import Mapping, Sequence

from papermix.run.reporting import tables
from papermix.run.reporting.papers import Paper
from papermix.run.reporting.published import HEADER, Compared, cells
from papermix.run.reporting.report import Group, Section, varied
from papermix.run.result import is_share, metric_text

_INTRODUCTION = """% Tables of runs, mean and standard deviation (n - 1) over seeds; made by
%   {command}
% Needs \\usepackage{{booktabs}}. Wide tables: put \\resizebox{{\\linewidth}}{{!}}{{...}} from graphicx around tabular.
"""
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "{''}",
    "[": "{[}", "]": "{]}", "*": "{*}", "±": r"$\pm$", "×": r"$\times$", "–": "--", "’": "'", "-": "{-}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
}  # fmt: skip
# more parameters than this are told in one column, as overrides
_COLUMNS = 4


def escaped(text: str) -> str:
    """A text as pdflatex sets it, letter by letter; what its fonts lack is written as ``[U+4E2D]``."""
    out = []
    for c in " ".join(text.split()):
        if c in _SPECIAL:
            out.append(_SPECIAL[c])
        elif " " <= c <= "~" or (c.isalpha() and "\u00c0" <= c <= "\u00ff" and c not in "ÐÞðþ"):
            out.append(c)
        else:
            out.append(f"[U+{ord(c):04X}]")
    return "".join(out)


def document(found: Sequence[Section], compared: Mapping[str, list[Compared]], papers: Mapping[str, Paper], command: str) -> str:
    """All tables, to be read with ``\\input``."""
    parts = [_INTRODUCTION.format(command=tables.printable(re.sub(r"\s+", " ", command)))]
    parts += [_section(section) for section in found]
    parts += [_paper(papers[name], lines) for name, lines in compared.items()]
    return "\n".join(parts)


def _section(section: Section) -> str:
    keys = varied(section)
    told = 0 < len(keys) <= _COLUMNS and len(set(zip(*keys.values()))) == len(section.groups)
    settings = [list(each) for each in zip(*keys.values())] if told else [[g.name] for g in section.groups]
    metric = section.metric.replace("/", " ").replace("_", " ") + (" (%)" if is_share(section.metric) else "")
    names = [*(keys if told else ["setting"]), "seeds", metric, "parameters", "density", "FLOPs", "time"]
    rows = []
    for g, setting in zip(section.groups, settings):
        value = _mean(section.metric, g, bold=g.mean == section.groups[0].mean)
        rows.append([*map(escaped, setting), str(len(g.values)), value, *map(escaped, tables.costs(g))])
    beside = [escaped(tables.published_text(section, g)) for g in section.groups]
    if any(beside):
        names, rows = [*names, "published"], [[*row, cell] for row, cell in zip(rows, beside)]
    shared = f" All with {' '.join(section.shared)}." if section.shared else ""
    caption = f"{section.dataset}: {section.metric.replace('/', ' ')}, best first; mean and standard deviation over seeds.{shared}"
    aligned = "l" * len(settings[0]) + "r" * 6 + "l" * any(beside)
    return _table(aligned, [escaped(n) for n in names], rows, caption, f"{section.dataset}-{section.metric}")


def _mean(metric: str, group: Group, bold: bool) -> str:
    """``$97.20 \\pm 0.41$`` in the unit of the column."""
    mean = _number(metric, group.mean)
    spread = "" if group.std is None else rf" \pm {_number(metric, group.std)}"
    return f"$\\mathbf{{{mean}}}{spread}$" if bold else f"${mean}{spread}$"


def _number(metric: str, value: float) -> str:
    if not math.isfinite(value):
        return rf"\mathrm{{{value}}}"
    mantissa, _, exponent = metric_text(metric, value).removesuffix(" %").partition("e")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else mantissa


def _paper(paper: Paper, lines: Sequence[Compared]) -> str:
    rows = [[escaped(cell) for cell in cells(line)] for line in lines]
    caption = f"Published and measured numbers: {paper.title} ({paper.cited})."
    return _table("lllrlrrrl", HEADER, rows, caption, f"published-{paper.name}")


def _table(aligned: str, names: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    body = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', label).strip('-')}}}",
            rf"\begin{{tabular}}{{{aligned}}}",
            r"\toprule",
            " & ".join(names) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
