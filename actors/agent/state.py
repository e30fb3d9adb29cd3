"""What a node agent knows: what is asked of it, what is there, what is under way. Its lock guards all of this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from actors.agent.roots import Roots
from actors.agent.task import Task
from actors.disk.marker import Marker
from actors.manifest import Resolved
from actors.messages import Company, DesiredModel, DesiredState, Place


@dataclass(slots=True)
class Goal:
    """What the coordinator asked for last. Sources and companies are sent once: they are kept while a model names them.

    `desired` None: nobody has asked for anything yet.
    """

    desired: DesiredState | None = None
    models: dict[Place, DesiredModel] = field(default_factory=dict)
    resolved: dict[str, Resolved] = field(default_factory=dict)
    companies: dict[str, Company] = field(default_factory=dict)

    def take(self, desired: DesiredState) -> None:
        """This is asked for from now on. Orders to remove are no part of it: they are carried out at once, or never."""
        self.desired = replace(desired, remove=())
        self.models = {model.place: self._accompanied(model) for model in desired.models}
        self.resolved |= desired.resolved
        self.companies |= desired.companies

    def _accompanied(self, model: DesiredModel) -> DesiredModel:
        """A coordinator that has not resolved it, or not heard all, names no company: the fill goes on as it began."""
        before = self.models.get(model.place)
        if model.resolved is not None or model.company is not None or before is None:
            return model
        return replace(model, company=before.company) if before.source.selection == model.source.selection else model

    def source_of(self, model: DesiredModel) -> Resolved | None:
        return self.resolved.get(model.resolved or "")

    def company_of(self, model: DesiredModel) -> Company | None:
        return self.companies.get(model.company or "")

    def fill_at(self, place: Place) -> str | None:
        """The fill that the model there is part of."""
        model = self.models.get(place)
        company = self.company_of(model) if model is not None else None
        return company.fill if company is not None else None

    def forget_unused(self) -> None:
        """Sources and companies that no model names any more are no longer kept."""
        resolved = {model.resolved for model in self.models.values()}
        companies = {model.company for model in self.models.values()}
        self.resolved = {name: each for name, each in self.resolved.items() if name in resolved}
        self.companies = {name: each for name, each in self.companies.items() if name in companies}


@dataclass(slots=True)
class State:
    """`removing`: copies that have moved aside and are not unlinked yet. `leftovers`: ingests may be there that nobody
    wants.
    """

    roots: Roots
    goal: Goal = field(default_factory=Goal)
    tasks: dict[Place, Task] = field(default_factory=dict)
    removing: dict[Place, Marker] = field(default_factory=dict)
    leftovers: bool = True

    def tasks_in(self, root: str) -> Iterator[Task]:
        return (task for task in self.tasks.values() if task.place.root == root)

    def prefetched(self) -> Iterator[tuple[Place, Marker]]:
        """The places where a version that is to be held back lies beside the copy, complete, each with its marker."""
        for place, model in self.goal.models.items():
            root = self.roots.get(place.root) if model.hold else None
            if root is None or place.key not in root.present:
                continue
            version = root.beside.find(model, self.goal.source_of(model))
            if version is not None:
                yield place, version.marker

    def is_wanted(self, task: Task) -> bool:
        """Whether what the task is about is asked for still."""
        model = self.goal.models.get(task.place)
        return model is not None and model.source.selection == task.model.source.selection

    def abandon_leftovers(self) -> None:
        """No ingest is left of what is not wanted, or is there already."""
        if not self.leftovers or self.goal.desired is None:
            return
        wanted = self.goal.models.keys() - dict(self.roots.present()).keys() | self.tasks.keys()
        for root in self.roots.values():
            for key in root.store.ingests(self.goal.desired.owner) if root.store is not None else ():
                if root.place(key) not in wanted:
                    root.usable().abandon(key)
        self.leftovers = False
