"""Next words: the claims of the chapter hold in a small run, and each falls when something is planted in the page."""

import nbformat
import pytest
import torch
from chapters import NOTEBOOKS, run_chapter, run_solution, unexpected

import nls
import nls.next_words
from nls import plotting
from nls.next_words import WordTable, count_words, load_topics, uniform_prior
from nls.store import load_results
from nls.word_networks import ARMS

STEM = "24_next_words"
SMALL = {"num_folds": 4, "live_folds": 3, "num_tokens": 7000}
CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOKS / f"{STEM}.ipynb", as_version=4).cells}


@pytest.fixture(scope="module")
def page():
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nls.next_words, "load_topics", lambda: Thinned(load_topics()))
        return run_chapter(STEM, patch, **SMALL)


def again(page, cells, **planted):
    """Return the claims that are not as the page says, with names planted and some of its cells executed again."""
    names = dict(page) | planted | {"strict": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "glue", lambda name, value: None)
        for cell in (*cells, "numbers", "claims"):
            exec(compile(CELLS[cell], f"{STEM}:{cell}", "exec"), names)
    return unexpected(names)


# Mutations: cells to execute again, and what is planted before.


class Thinned:
    """A text of which a half validates and tests: the page in less time."""

    def __init__(self, text):
        self.text = text

    def __getattr__(self, name):
        return getattr(self.text, name)

    def __len__(self):
        return len(self.text)

    def split(self, fold):
        """Return the training words, and every other one of the rest."""
        train, validation, test = self.text.split(fold)
        every = torch.arange(len(self.text)) % 2 == 0
        return train, validation & every, test & every


class Leaking(Thinned):
    """A text that is tested on what it was trained on."""

    def split(self, fold):
        """Return the training words, and every thirtieth of them twice."""
        train = self.text.split(fold)[0]
        some = train & (torch.arange(len(self.text)) % 30 == 0)
        return train, some, some


def schemes_swapped(counts, scheme, strength, prior):
    """Take a constant share for add-k and the other way round, at strengths that fit."""
    other = {"rate": "pseudo", "pseudo": "rate"}.get(scheme, scheme)
    fitting = {"pseudo": 100 * strength, "rate": min(strength / 3000, 1.0)}.get(other, strength)
    return WordTable(counts, other, fitting, prior)


def rates_turned(counts, scheme, strength, prior):
    """Give the rate to what was seen and the rest to the prior."""
    return WordTable(counts, scheme, 1 - strength, prior)


def plain_kneser_ney(contexts, words, num_words, size):
    """Take a table at the usual rate for the model of Kneser and Ney."""
    empty = WordTable(count_words(contexts, words, num_words, 0), "rate", 1.0, uniform_prior(num_words))
    return WordTable(count_words(contexts, words, num_words, size), "rate", 0.1, empty)


def one_word(contexts, words, num_words, size):
    """Count contexts of one word, whatever is asked for."""
    return count_words(contexts, words, num_words, min(size, 1))


def renamed(study, names):
    """Call arms by other names."""
    return study.assign(arm=study["arm"].replace(names))


def swapped(first, second):
    """Return the names that swap two."""
    return {first: second, second: first}


def columns_from(study, **sources):
    """Report some columns in place of others."""
    return study.assign(**{name: study[source] for name, source in sources.items()})


def flat_prior(words, num_words):
    """Take the uniform law for the unigram one."""
    return uniform_prior(num_words)


NETWORK = ("network", "masses")
ALL_RATES_LOST = {"uniform 0.1": "other", "uniform 0.2": "another", "uniform 0.4": "hard", "hard": "uniform 0.4"}
MUTATIONS = {
    "a small text": (lambda page: ((), {"num_words": 4000}), {"text-is-large-enough"}),
    "contexts of one word": (
        lambda page: (("contexts",), {"count_words": one_word}), {"told-that-one-word-follows"}),
    "half of the rate in the loss": (
        lambda page: (("identity",), {"nls": Halved()}), {"a-rate-is-a-constant-share"}),
    "rates turned round": (lambda page: (("once", "once-table"), {"WordTable": rates_turned}), {"once-rate"}),
    "targets tested on themselves": (
        lambda page: (("once", "once-table"), {"text": Leaking(page["text"])}), {"better-data"}),
    "no unigram law": (
        lambda page: (("tables", "beside", "choose", "once", "once-table"), {"unigram_prior": flat_prior}),
        {"prior-before-share", "once-prior"}),
    "no Kneser-Ney": (
        lambda page: (("tables", "beside", "choose", "calibrated"), {"kneser_ney": plain_kneser_ney}),
        {"kneser-ney", "kneser-ney-is-calibrated"}),
    "shares swapped": (
        lambda page: (("tables", "beside", "choose"), {"WordTable": schemes_swapped}), {"constant-beats-add-k"}),
    "tested on the training text": (
        lambda page: (("tables", "beside", "choose"), {"text": Leaking(page["text"])}), {"usual-rate-too-small"}),
    "hard target called smoothed": (
        lambda page: (NETWORK, {"study": renamed(page["study"], ALL_RATES_LOST)}),
        {"network-gains", "no-better-calibrated", "no-mass-for-the-unseen"}),
    "nothing mixed in": (
        lambda page: (NETWORK, {"study": columns_from(
            page["study"], validation_nll_uniform="validation_nll", test_nll_uniform="test_nll")}),
        {"mixing-does-it", "a-little-is-left"}),
    "unseen words not ruled out": (
        lambda page: (NETWORK, {"study": columns_from(
            page["study"], validation_known_nll="validation_nll", test_known_nll="test_nll")}),
        {"gain-is-unseen-words"}),
    "hard and decayed swapped": (
        lambda page: (NETWORK, {"study": renamed(page["study"], swapped("hard", "weight decay"))}),
        {"decay-knows-more"}),
    "priors swapped": (
        lambda page: (NETWORK, {"study": renamed(page["study"], {
            "uniform 0.1": "unigram 0.1", "uniform 0.4": "unigram 0.4", "unigram 0.1": "uniform 0.1",
            "unigram 0.4": "uniform 0.4", "uniform 0.2": "none"})}),
        {"uniform-for-networks"}),
    "rate -> |rate|": (
        lambda page: (NETWORK, {"study": renamed(page["study"], swapped("negative", "uniform 0.1"))}),
        {"negative-has-no-minimum"}),
    "live rates lost": (
        lambda page: (("live", "live-table"), {"run_words": lambda fold, rate, **rest: hard_rows(page, fold)}),
        {"small-and-live"}),
    "live words not ruled out": (
        lambda page: (("live", "live-table"), {"run_words": lambda fold, rate, **rest: known_is_all(page, fold, rate)}),
        {"small-known-words"}),
}  # fmt: skip


class Halved:
    """The package with a loss that takes half of the rate."""

    def __getattr__(self, name):
        return getattr(nls, name)

    def gls_loss(self, logits, labels, rate):
        """Return the loss at half of the rate."""
        return nls.gls_loss(logits, labels, rate / 2)


def rows_of(page, fold, rate):
    """Return what a live network of the page reported."""
    live = page["live"]
    chosen = live[(live["fold"] == fold) & (live["rate"] == rate)]
    return chosen.drop(columns=["fold", "rate"]).to_dict("records")


def hard_rows(page, fold):
    """Return the rows of the hard target."""
    return rows_of(page, fold, 0.0)


def known_is_all(page, fold, rate):
    """Report the loss over all words as that over known words."""
    return [row | {"test_known_nll": row["test_nll"]} for row in rows_of(page, fold, rate)]


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = set().union(*(names for _, names in MUTATIONS.values()))
    untested = {claim.name for claim in page["claims"] if claim.verdict == "not tested"}
    assert untested == {"hundreds-of-words"}
    assert {claim.name for claim in page["claims"]} - fallen - untested == set()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_claims_fall_under_a_mutation(mutation, page):
    plant, expected = MUTATIONS[mutation]
    cells, planted = plant(page)
    assert expected - again(page, cells, **planted) == set()


def test_the_page_shows_how_much_text_there_is(page, capsys):
    again(page, ())
    shown = capsys.readouterr().out
    assert f"running words: {len(load_topics()):,}" in shown
    assert f"vocabulary: {load_topics().num_words:,}" in shown


def test_the_stored_study_is_whole():
    study = load_results("next_words")
    assert set(study["arm"]) == set(ARMS)
    assert (study.groupby(["arm", "fold"]).size() == 4).all()
    assert study.groupby("fold").size().eq(4 * len(ARMS)).all()
    assert study["digest"].nunique() == study["python"].nunique() == 1
    assert study["fold"].nunique() >= 5
    for part in ("validation", "test"):
        masses = study[[f"{part}_mass_{kind}" for kind in ("0", "1", "2-10", "11+")]].sum(axis=1)
        assert masses.tolist() == pytest.approx([1.0] * len(study), abs=1e-4)


WRONG = {
    "solution-average": ("other = frequency**scale / (frequency**scale).sum()", "other = frequency"),
    "solution-plausible": ('"rate", 0.1, uniform', '"pseudo", 1.0, unigram_prior(words, num_words)'),
    "solution-perplexity": ('last_epoch["test_known_nll"]', 'last_epoch["test_nll"]'),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
