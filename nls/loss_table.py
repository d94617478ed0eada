r"""The losses that compete under noisy labels, by name: what each needs, what it is known for, how it is made.

The engine trains on a loss through :meth:`Rival.make`; the book prints :func:`loss_table`. Whether a loss is bounded
below, symmetric, or a rate of generalised label smoothing is written here and measured by a test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from nls import _checks, baselines, robust
from nls.losses import backward_corrected_loss, forward_corrected_loss, gls_loss
from nls.remedies import floored_loss
from nls.training import TINY, seeded_generator

__all__ = ["LOSSES", "LossTable", "Rival", "Run", "loss_table", "rows"]

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Run:
    """What a loss may need to know of the training run it is made for.

    Attributes:
        num_examples: Rows of the training set.
        num_classes: K.
        parameter: The parameter, None for a loss without one.
        transition: T, shape [K, K], or None.
        seed: Seed of draws.
    """

    num_examples: int
    num_classes: int
    parameter: float | None
    transition: torch.Tensor | None
    seed: int


@dataclass(frozen=True)
class Rival:
    """A loss with its parameter and its properties.

    Attributes:
        name: The name in :data:`LOSSES`.
        label: What a figure calls it.
        formula: The loss of one example in LaTeX, with ``l_k`` for minus the logarithm of the probability of class k.
        reference: Key of the paper in the book's bibliography.
        build: Makes the loss for a :class:`Run`.
        symbol: The parameter in LaTeX, empty for a loss without one.
        default: The parameter where none is given, None for a loss without one.
        low: Its least value.
        high: Its largest value.
        needs_transition: Whether the transition matrix must be known.
        told: What else must be known, in words.
        bounded: Whether the loss has a lower bound, over all logits, at ``default``.
        symmetric: Whether the losses of all labels sum to a constant, at ``default``; for the mean over its draws.
        in_family: Whether, at ``default``, it is a multiple of generalised label smoothing or of its limit, but for a
            constant; for a matrix, if that is of symmetric noise.
        rate: At which rate, or why not.
    """

    name: str
    label: str
    formula: str
    reference: str
    build: Callable[[Run], Loss]
    symbol: str = ""
    default: float | None = None
    low: float = 0.0
    high: float = float("inf")
    needs_transition: bool = False
    told: str = ""
    bounded: bool = True
    symmetric: bool = False
    in_family: bool = False
    rate: str = "no"

    def make(
        self,
        num_examples: int,
        num_classes: int,
        parameter: float | None = None,
        transition: torch.Tensor | None = None,
        seed: int = 0,
    ) -> Loss:
        r"""Return the loss for one training run, as :func:`nls.fit_each` takes it.

        .. math:: (z, \tilde y, i) \mapsto \ell(z, \tilde y)

        Args:
            num_examples: Rows of the training set, at least 1.
            num_classes: K, at least 2.
            parameter: A number in [low, high]; None for the default.
            transition: T, shape [K, K], rows sum to one; for a loss that needs it, ignored by the others.
            seed: Seed of the draws of a loss that has some, at least 0.

        Returns:
            A function of logits [b, K], labels [b] and positions [b] in the training set that returns losses [b]. One
            with a memory or with draws is a module, whose ``state_dict`` holds them.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If a value is out of range, or the matrix is missing or does not fit.

        Examples:
            >>> loss = LOSSES["gce"].make(num_examples=100, num_classes=2, parameter=1.0)
            >>> loss(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([7]))
            tensor([0.5000])
        """
        num_examples = _checks.integer(num_examples, "num_examples", low=1)
        num_classes = _checks.integer(num_classes, "num_classes", low=2)
        if parameter is None:
            parameter = self.default
        elif self.default is None:
            raise ValueError(f"parameter must be None for the loss {self.name!r}, which has none, got {parameter!r}")
        else:
            parameter = _checks.number(parameter, "parameter", low=self.low, high=self.high)
        if self.needs_transition:
            if transition is None:
                raise ValueError(f"transition must be given for the loss {self.name!r}, got None")
            if _checks.transition_matrix(transition).shape[0] != num_classes:
                expected, got = (num_classes, num_classes), tuple(transition.shape)
                raise ValueError(f"transition must have shape {expected} for {num_classes} classes, got {got}")
        seed = _checks.integer(seed, "seed")
        return self.build(Run(num_examples, num_classes, parameter, transition, seed))


class _Drawn(nn.Module):
    """A loss with draws of its own, whose generator survives through ``state_dict``."""

    def __init__(self, function: Callable[..., torch.Tensor], seed: int) -> None:
        super().__init__()
        self.function, self.generator = function, seeded_generator(seed, "loss")

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return self.function(logits, labels, self.generator)

    def get_extra_state(self) -> torch.Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.generator.set_state(state.cpu())


def _plain(function: Callable[..., torch.Tensor], **options: object) -> Callable[[Run], Loss]:
    """Return a builder for a loss of logits and labels and, if it has one, its parameter."""

    def build(run: Run) -> Loss:
        own = () if run.parameter is None else (run.parameter,)
        return lambda logits, labels, indices: function(logits, labels, *own, reduction="none", **options)

    return build


def _corrected(function: Callable[..., torch.Tensor]) -> Callable[[Run], Loss]:
    """Return a builder for a correction by the transition matrix."""

    def build(run: Run) -> Loss:
        matrix = run.transition
        return lambda logits, labels, indices: function(logits, labels, matrix.to(logits.device), reduction="none")

    return build


def _build_peer(run: Run) -> Loss:
    def losses(logits: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        peers = torch.randint(len(labels), (2, len(labels)), generator=generator).to(labels.device)
        return baselines.sampled_peer_loss(logits, labels, peers, run.parameter, reduction="none")

    return _Drawn(losses, run.seed)


def _build_nlnl(run: Run) -> Loss:
    def losses(logits: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        others = baselines.draw_complementary_labels(labels, run.num_classes, generator)
        return baselines.nlnl_loss(logits, others, reduction="none")

    return _Drawn(losses, run.seed)


def _build_elr(run: Run) -> Loss:
    return robust.ELRLoss(run.num_examples, run.num_classes, run.parameter)


def _build_floored(run: Run) -> Loss:
    rows = run.transition.double()
    floor = run.parameter * float(-torch.xlogy(rows, rows).sum(1).mean())
    return lambda logits, labels, indices: floored_loss(gls_loss(logits, labels, 0.0, reduction="none"), floor)


_LIMIT = r"the limit $r \to -\infty$"

LOSSES: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        Rival(
            "gls", "GLS", r"(1 - r)\, l_y + \tfrac rK \textstyle\sum_k l_k", "wei2022smooth", _plain(gls_loss),
            symbol="r", default=0.0, low=-float("inf"), high=1.0, in_family=True, rate="$r$",
        ),
        Rival(
            "backward", "backward", r"\textstyle\sum_j (T^{-1})_{yj}\, l_j", "patrini2017making",
            _corrected(backward_corrected_loss), needs_transition=True, bounded=False, in_family=True,
            rate=r"$-c/(1 - c)$ for symmetric $T$, else no",
        ),
        Rival(
            "forward", "forward", r"-\log \textstyle\sum_i T_{iy}\, p_i", "patrini2017making",
            _corrected(forward_corrected_loss), needs_transition=True, rate="no, though it shares the minimiser",
        ),
        Rival(
            "peer", "peer", r"l_y - \alpha\, l_{y'}(z')", "liu2020peer", _build_peer, symbol=r"\alpha",
            default=1.0, bounded=False, symmetric=True, in_family=True, rate=f"{_LIMIT}, for uniform labels",
        ),
        Rival(
            "complementary", "complementary", r"l_y - \tfrac{1}{K - 1} \textstyle\sum_{k \ne y} l_k", "wei2022smooth",
            _plain(baselines.complementary_loss), bounded=False, symmetric=True, in_family=True, rate=_LIMIT,
        ),
        Rival(
            "nlnl", "NLNL", r"-\log(1 - p_{\bar y}),\ \bar y \ne y", "kim2019nlnl", _build_nlnl, rate="no, if $K > 2$",
        ),
        Rival(
            "unhinged", "unhinged", r"\bar z - z_y", "vanrooyen2015learning", _plain(baselines.unhinged_loss),
            bounded=False, symmetric=True, in_family=True, rate=_LIMIT,
        ),
        Rival(
            "gce", "GCE", r"(1 - p_y^q) / q", "zhang2018generalized", _plain(robust.gce_loss),
            symbol="q", default=0.7, low=TINY, high=1.0, rate=r"no; $r = 0$ as $q \to 0$",
        ),
        Rival(
            "sce", "SCE", r"\alpha\, l_y + 4\,(1 - p_y)", "wang2019symmetric", _plain(robust.sce_loss),
            symbol=r"\alpha", default=0.1,
        ),
        Rival(
            "bootstrap_soft", "bootstrap, soft", r"\beta\, l_y + (1 - \beta) \textstyle\sum_k p_k l_k",
            "reed2015training", _plain(robust.bootstrap_loss), symbol=r"\beta", default=0.95, high=1.0,
            rate=r"no; $r = 0$ at $\beta = 1$",
        ),
        Rival(
            "bootstrap_hard", "bootstrap, hard", r"\beta\, l_y + (1 - \beta) \min_k l_k", "reed2015training",
            _plain(robust.bootstrap_loss, hard=True), symbol=r"\beta", default=0.8, high=1.0,
            rate=r"no; $r = 0$ at $\beta = 1$",
        ),
        Rival(
            "elr", "ELR", r"l_y + \lambda \log(1 - p \cdot t),\ t \leftarrow .7\,t + .3\,p", "liu2020early", _build_elr,
            symbol=r"\lambda", default=3.0, rate=r"no; $r = 0$ at $\lambda = 0$",
        ),
        Rival(
            "confidence_penalty", "confidence penalty", r"l_y - b \textstyle\sum_k p_k l_k", "pereyra2017regularizing",
            _plain(baselines.confidence_penalty_loss), symbol="b", default=0.1, low=-float("inf"),
            rate=r"no; $r = 0$ at $b = 0$",
        ),
        Rival(
            "normalized_ce", "normalised CE", r"l_y / \textstyle\sum_k l_k", "ma2020normalized",
            _plain(robust.normalized_cross_entropy_loss), symmetric=True,
        ),
        Rival(
            "active_passive", "NCE + MAE", r"l_y / \textstyle\sum_k l_k + 2b\,(1 - p_y)", "ma2020normalized",
            _plain(robust.active_passive_loss), symbol="b", default=1.0, symmetric=True,
        ),
        Rival(
            "floored", "CE with a floor", r"|\overline{l_y} - f| + f,\ f = b\, \mathrm H(T)", "toner2023label",
            _build_floored, symbol="b", default=1.0, needs_transition=True, rate="no; $r = 0$ above the floor",
        ),
    )
}  # fmt: skip
"""Every loss by its name. Parameters other than the one listed are those of its paper for CIFAR-10; a floor is the mean
entropy of the rows of T, times the parameter.

:meta hide-value:
"""


class LossTable(pd.DataFrame):
    """A table of losses, shown with its formulas set."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame  # a part of it is a plain table

    _repr_html_ = None  # it would come first, with dollar signs

    def _repr_markdown_(self) -> str:
        columns = list(self.columns)
        lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        for row in self.astype(str).itertuples(index=False):
            cells = [text.replace("|", r"\vert ") if text.startswith("$") else text for text in row]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


def loss_table() -> LossTable:
    """Return one row for each loss: formula, parameter, needs, bounded below, symmetric, place in the family, paper.

    Generalised label smoothing has three rows, of cross entropy and of a positive and a negative rate.

    Returns:
        The table, with formulas in LaTeX; a notebook shows it as Markdown.

    Examples:
        >>> loss_table().set_index("loss").loc["GCE", "bounded below"]
        'yes'
    """
    return LossTable([_row(rival) for rival in rows()])


def rows() -> list[Rival]:
    """Return the losses in the order of the table, generalised label smoothing at three rates.

    Examples:
        >>> [rival.label for rival in rows()][:3]
        ['cross entropy', 'label smoothing', 'negative smoothing']
    """
    gls, *others = LOSSES.values()
    smoothed = {"reference": "szegedy2016rethinking", "default": 0.4, "rate": "$r > 0$"}
    return [
        dataclasses.replace(gls, label="cross entropy", formula="l_y", symbol="", rate="$r = 0$", reference=""),
        dataclasses.replace(gls, label="label smoothing", **smoothed),
        dataclasses.replace(
            gls, label="negative smoothing", default=-0.4, bounded=False, told="the noise rate", rate="$r < 0$"
        ),
        *others,
    ]


def _row(rival: Rival) -> dict[str, str]:
    yes = {True: "yes", False: "no"}
    shown = f"${rival.symbol} = {rival.default:g}$" if rival.symbol else ""
    return {
        "loss": rival.label,
        "formula": f"${rival.formula}$",
        "parameter": shown,
        "must be told": "$T$" if rival.needs_transition else rival.told,
        "bounded below": yes[rival.bounded],
        "symmetric": yes[rival.symmetric],
        "a smooth rate?": rival.rate,
        "paper": f"{{cite:t}}`{rival.reference}`" if rival.reference else "",
    }
