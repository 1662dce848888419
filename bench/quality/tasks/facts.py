"""Facts about a small world, scattered in long noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import IGNORED, Task, distinct
from .haystack import BYTES, scatter, windows

WALKS, TAKES, WHERE = range(BYTES, BYTES + 3)  # words
FACT, QUESTION = 3, 2  # tokens: "person walks-to place", "person takes thing"; "where-is X"


def last(said: Tensor, what: Tensor) -> tuple[Tensor, Tensor]:  # [B, Q, F] bool, [B, F]
    """`what` of the last fact that says it, and whether one does, both [B, Q]."""
    order = said * torch.arange(1, said.shape[-1] + 1)
    newest = order.max(dim=-1)
    return what.gather(1, newest.indices), newest.values > 0


@dataclass(frozen=True)
class Facts(Task):
    """People walk to places and take things, between bytes of real text; at the end the model is
    asked where somebody or something is (tasks qa1 and qa2 of BABILong, Kuratov et al. 2024,
    arXiv 2406.10149, but words are tokens, nothing is dropped, and there are several questions).

    A person is where he or she walked last; a thing is where the person is who took it last. What
    cannot be known is asked but not scored. Tokens: bytes, three words, people, things, places.

    Attributes:
        hops: 1: questions about people, answered by one fact; 2: about things, answered by two.
        facts, questions: of a sequence.
        people, things, places: number of each.
        lengths: of the parts, on which a model is tested that was trained on `length`.
    """

    hops: int = 1
    facts: int = 16
    questions: int = 4
    people: int = 8
    things: int = 8
    places: int = 8
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)

    def __post_init__(self) -> None:
        wanted = BYTES + 3 + self.people + self.things + self.places
        if self.vocab_size != wanted:
            raise ValueError(f"Facts: vocab_size: wanted {wanted}, got {self.vocab_size}")
        if self.hops not in (1, 2):
            raise ValueError(f"Facts: hops: wanted 1 or 2, got {self.hops}")
        least = FACT * self.facts + QUESTION * self.questions
        if self.length < least:
            raise ValueError(f"Facts: length: wanted at least {least}, got {self.length}")

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        def draw(choices: int) -> Tensor:
            return torch.randint(choices, (size, self.facts), generator=generator)

        person, thing, place = draw(self.people), draw(self.things), draw(self.places)
        walks = draw(2) == 1
        asked = distinct(generator, size, (self.people, self.things)[self.hops - 1], self.questions)
        first_person = WHERE + 1
        first_thing = first_person + self.people
        first_place = first_thing + self.things
        if self.hops == 1:
            subject, who, known = first_person + asked, asked, torch.tensor(True)
        else:
            subject = first_thing + asked
            who, known = last(~walks[:, None] & (thing[:, None] == asked[..., None]), person)
        where, walked = last(walks[:, None] & (person[:, None] == who[..., None]), place)
        answer = torch.where(known & walked, first_place + where, IGNORED)
        facts = torch.stack(
            [
                first_person + person,
                torch.where(walks, WALKS, TAKES),
                torch.where(walks, first_place + place, first_thing + thing),
            ],
            dim=-1,
        )
        body = self.length - QUESTION * self.questions
        questions = torch.stack([torch.full_like(subject, WHERE), subject], dim=-1).flatten(1)
        tokens = torch.cat(
            [scatter(generator, facts, windows(generator, size, body)), questions], dim=1
        )
        labels = torch.full_like(tokens, IGNORED)
        labels[:, body + 1 :: QUESTION] = answer
        return tokens, labels

    def parts(self) -> dict[str, Facts]:
        return {f"{length} tokens": replace(self, length=length) for length in self.lengths}

    def quick(self) -> Facts:
        small = replace(self, facts=8, length=40, lengths=(40, 64))
        return replace(small, steps=20, batch_size=8)
