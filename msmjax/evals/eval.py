"""What an eval is to the rest of the house."""

from pathlib import Path

from msmjax.corpus.sources import Makers, Source
from msmjax.corpus.teacher_config import TeacherConfig
from msmjax.evals.arm import Arm
from msmjax.evals.results import Cost, Measure
from msmjax.ranges import known

EXPORT = "export"  # in the folder of an arm that an eval asks for: its weights for other programs


class Eval:
    """The settings of an eval. It has items and asks an arm, which scores and speaks; answers come back.

    An answer says `eval`, `item` and its metrics by name; `cluster`, where items share something; `lost`, where a metric could not
    be had; and whatever a reader would want to see of it, the question and what was said first of all.
    """

    def check(self, corpora: dict[str, Source], teachers: dict[str, TeacherConfig], where: str) -> None:
        """Raises BadInput where a setting names what there is not."""
        for judge in self.judges():
            known(judge, teachers, where, "teacher")

    def judges(self) -> tuple[str, ...]:
        """The teachers of the config who judge."""
        return ()

    def needs(self, name: str) -> None:
        """Raises BadInput where a package or a file of code lacks that it takes to ask: before anything is trained, and only where
        somebody is to ask."""

    def reads(self) -> tuple[str, ...]:
        """The corpora of whose rows it measures something."""
        return ()

    def items_from(self, corpora: dict[str, Source]) -> tuple[str, ...]:
        """The corpora that its items are, which must pass the gates like those that are trained on."""
        return ()

    def exports(self) -> bool:
        """Whether it asks another program, which loads EXPORT."""
        return False

    def items(self, parent: Path, name: str, corpora: dict[str, Source], makers: Makers) -> Path | None:
        """The artifact of its items, `items.jsonl`; None where they are not ours to make. It is made before anything is trained:
        raises BadInput for a file of none."""

    def measures(self, name: str, items: list[dict] | None) -> dict[str, Measure] | None:
        """What it measures, by the name under which the report shows it; None where that is not known without items."""
        raise NotImplementedError

    def counts(self, name: str, items: list[dict] | None) -> dict[str, tuple[int, int]]:
        """How many answers a model will give to each of what it measures, and in how many clusters, where that is known before."""
        of_eval: dict[str, list] = {}
        for item in items or []:
            of_eval.setdefault(item.get("eval", name), []).append(item.get("cluster", item["id"]))
        out = {}
        for shown in self.measures(name, items) or ():
            # What is measured of the same items is named by theirs, with an ending.
            if asked := max((one for one in of_eval if shown.startswith(one)), key=len, default=None):
                out[shown] = len(of_eval[asked]), len(set(of_eval[asked]))
        return out

    def depends(self, makers: Makers) -> dict:
        """What answers depend on beside the model, the items, the prompt and the rows."""
        return {}

    def asks(self, makers: Makers) -> dict:
        """Of what `depends` names, what decides about what is asked and said; the rest is how that is read. What was said is kept
        under it until the eval is answered."""
        return self.depends(makers)

    def answer(self, name: str, items: list[dict] | None, arm: Arm) -> list[dict]:
        """The answers of an arm. Every process calls it; those of the first count."""
        raise NotImplementedError

    def cost(self, corpora: dict[str, Source]) -> Cost:
        """What it takes of one model, before there are tokens."""
        raise NotImplementedError
