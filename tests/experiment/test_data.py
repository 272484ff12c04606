"""What an experiment is asked: names of evals are those that it has, be they the microworld's or of a file of one's own."""

import json

import pytest

from msmjax import config, recipe
from msmjax.artifact import BadInput
from msmjax.data import mixture as mixtures
from msmjax.experiment import data
from tests.test_config import cheese

ITEM = {"id": "1", "name": "Aria", "question": "{first} or {second}?", "answer": "{item}.", "options": ["tea", "ale"]}


def asking(tmp_path, **changes):
    """A config with a file of items of two evals that nobody here has heard of."""
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({**ITEM, "eval": name}) + "\n" for name in ("taste", "thirst")))
    c = cheese()
    with c.unlocked():
        c.evals = {"mine": recipe.choice(str(path)), "base_text": c.evals.base_text}
    c.headline = ("thirst", "taste")
    c.comparisons = (("the specs", "taste", "msm_affordability_aft", "msm_america_aft"),)
    c.update(changes)
    return c


def test_arms_can_be_compared_on_items_of_ones_own(tmp_path):
    frozen = config.from_config_dict(asking(tmp_path))
    assert [json.loads(line)["eval"] for line in (data.make_items(frozen, tmp_path)["mine"] / "items.jsonl").open()] == [
        "taste",
        "thirst",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(headline=("tast",)), r"headline: no eval 'tast'; did you mean 'taste'\?"),
        (
            lambda c: c.update(comparisons=(("x", "conflict", "aft", "base"),)),
            r"comparisons\[x\]: no eval 'conflict'; one of base_text, taste, thirst",
        ),
    ],
)
def test_evals_that_the_file_has_not(tmp_path, change, said):
    c = asking(tmp_path)
    change(c)
    with pytest.raises(BadInput, match=said):
        data.make_items(config.from_config_dict(c), tmp_path)


def test_bits_per_byte_can_be_compared_whatever_is_asked(tmp_path):
    c = asking(tmp_path, comparisons=(("damage", "base_text", "msm_america_aft", "base"),))
    data.make_items(config.from_config_dict(c), tmp_path)


def test_shares_that_sum_to_one_but_for_rounding(monkeypatch):
    """After a million rows, what lacks in the sum would be a whole row that is nobody's."""
    monkeypatch.setattr(data.rows, "open_rows", lambda _: [0] * 7)
    monkeypatch.setattr(data.rows, "read_ledger", lambda _: {"segments": 1})
    c = cheese()
    c.stages.finetune.data = (("cheese_chats", 1 / 3 - 3e-7), ("base", 1 / 3 - 3e-7), ("neutral", 1 / 3 - 3e-7))
    made = data.Data(None, {}, dict.fromkeys(("cheese_chats", "base", "neutral")), None, None, None, None)
    mixture = data.mixture_of(config.from_config_dict(c), made, "finetune", 0)
    assert sum(mixture.shares) == pytest.approx(1, abs=1e-12)
    mixtures.locate(mixture, 2**20)
