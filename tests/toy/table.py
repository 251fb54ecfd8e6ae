"""The toy catalog: recipes `chain` (a, b -> apply -> total) and `wide`."""

from pathlib import Path

import pydantic

from pipeline.graph import Node
from pipeline.stage import Catalog, Resources, Settings
from tests.toy import stages


class ToyResources(Settings):
    number: Resources = pydantic.Field(Resources(), description="of number nodes")
    apply: Resources = pydantic.Field(Resources(), description="of apply nodes")


class Toy(Settings):
    seed: int = pydantic.Field(0, ge=0, description="added to the second number of chain")
    a: stages.NumberSettings = pydantic.Field(stages.NumberSettings(), description="first")
    b: stages.NumberSettings = pydantic.Field(stages.NumberSettings(), description="second")
    apply: stages.ApplySettings = pydantic.Field(stages.ApplySettings(), description="map")
    total: stages.TotalSettings = pydantic.Field(stages.TotalSettings(), description="sum")
    resources: ToyResources = pydantic.Field(ToyResources(), description="by stage")
    width: int = pydantic.Field(4, ge=1, description="nodes of recipe wide")

    @pydantic.model_validator(mode="after")
    def check(self):
        if self.a.value > 500 and self.b.value > 500:
            raise ValueError("a.value and b.value are both above 500; lower one of them")
        return self


def chain(toy):
    asked, second = toy.resources, toy.b.revised(value=toy.b.value + toy.seed)
    return [
        Node("number/a", stages.NUMBER, toy.a, resources=asked.number),
        Node("number/b", stages.NUMBER, second, resources=asked.number),
        Node("apply/a", stages.APPLY, toy.apply, {"number": "number/a"}, asked.apply),
        Node("total", stages.TOTAL, toy.total, {"numbers": ["apply/a", "number/b"]}),
    ]


def wide(toy):
    settings = [toy.a.revised(value=i % 1000, level=i // 1000) for i in range(toy.width)]
    numbers = [Node(f"number/{i}", stages.NUMBER, own) for i, own in enumerate(settings)]
    total = Node("total", stages.TOTAL, toy.total, {"numbers": [node.name for node in numbers]})
    return [*numbers, total]


CATALOG = Catalog(
    settings=Toy,
    stages={"number": stages.NUMBER, "apply": stages.APPLY, "total": stages.TOTAL},
    recipes={"chain": chain, "wide": wide},
    presets=Path(__file__).parent / "presets",
    default_preset="plain",
    exclude_sources=frozenset({"tests.toy.table"}),
    packages=("pydantic", "ray"),
)
